"""Keys are created, listed and revoked in the store of a data folder."""

import json

import pytest


def test_a_key_is_created_listed_and_revoked(nightmill, tmp_path):
    folder = tmp_path / "data"
    made = nightmill("keys", "create", "Ann's laptop", "--project", "night", "--folder", folder)
    secret = made.out.strip()
    assert (made.code, secret[:13]) == (0, "sk-nightmill-")
    key_id = made.err.splitlines()[-1].split()[0]
    listed = nightmill("keys", "list", "--folder", folder)
    assert [word in listed.out for word in (key_id, "Ann's laptop", "night", secret[-4:])] == [True] * 4
    assert secret not in listed.out
    assert nightmill("keys", "revoke", key_id, "--folder", folder).out == f"{key_id} is revoked\n"
    again = nightmill("keys", "revoke", key_id, "--folder", folder)
    assert (again.code, again.err) == (
        2,
        f"nightmill: no key in use has the id {key_id}; see them with: nightmill keys list\n",
    )
    (key,) = (
        json.loads(line) for line in nightmill("keys", "list", "--folder", folder, "--json").out.splitlines()
    )
    assert key["revoked_at"] is not None


def test_the_list_fits_80_columns_and_says_when_there_is_nothing_in_it(nightmill, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    listed = nightmill("keys", "list", "--folder", folder)
    assert (listed.out, listed.err) == ("", "no keys yet; make one with: nightmill keys create NAME\n")
    made = nightmill("keys", "create", "laptop", "--folder", folder)
    nightmill("keys", "revoke", made.err.split()[0], "--folder", folder)
    assert max(map(len, nightmill("keys", "list", "--folder", folder).out.splitlines())) <= 80
    holds = nightmill("hold", "list", "--folder", folder)
    assert (holds.out, holds.err) == ("", "there are no legal holds\n")
    used = nightmill("usage", "--folder", folder)
    assert (used.out, used.err) == ("", "no batch has ended yet\n")


def test_json_shows_the_secret_once(nightmill, tmp_path):
    made = nightmill("keys", "create", "ci", "--folder", tmp_path, "--json")
    assert set(made.json) == {"id", "name", "project", "scope", "hint", "created_at", "revoked_at", "secret"}
    assert made.err == ""
    assert "secret" not in nightmill("keys", "list", "--folder", tmp_path, "--json").json


@pytest.mark.parametrize("words", [["list"], ["revoke", "key_1"]])
def test_a_missing_folder_is_not_created(nightmill, tmp_path, words):
    folder = tmp_path / "nowhere"
    ran = nightmill("keys", *words, "--folder", folder)
    assert ran.code == 78
    assert "--folder" in ran.err
    assert not folder.exists()


@pytest.mark.parametrize("words", [["keys", "create", "me"], ["migrate"], ["projects", "show", "default"]])
def test_no_second_data_folder_is_made_at_the_default_place(nightmill, tmp_path, words):
    ran = nightmill(*words)
    assert ran.code == 78
    place = tmp_path / "nightmill-data"
    assert ran.err == (
        f"nightmill: there is no data folder at {place}; name the server's with --folder or --config\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_data_folder_that_was_named_is_made_and_said(nightmill, tmp_path):
    folder = tmp_path / "deep" / "data"
    made = nightmill("keys", "create", "me", "--folder", folder)
    assert made.err.startswith(f"made the data folder {folder}\n")
    assert folder.stat().st_mode & 0o777 == 0o700
    assert "made" not in nightmill("keys", "create", "other", "--folder", folder).err


def test_a_data_folder_named_in_the_environment_is_made_too(nightmill, tmp_path, monkeypatch):
    monkeypatch.setenv("NIGHTMILL_FOLDER", str(tmp_path / "data"))
    assert nightmill("keys", "create", "me").err.startswith(f"made the data folder {tmp_path / 'data'}\n")


def test_a_data_folder_that_cannot_be_made_is_one_line(nightmill, tmp_path):
    (tmp_path / "file").write_text("")
    ran = nightmill("keys", "create", "me", "--folder", tmp_path / "file" / "data")
    assert (ran.code, ran.err.count("\n")) == (78, 1)


def test_a_key_may_be_made_that_only_reads(nightmill, tmp_path):
    made = nightmill("keys", "create", "screen", "--read", "--folder", tmp_path, "--json")
    assert made.json["scope"] == "read"
    both = nightmill("keys", "create", "both", "--read", "--admin", "--folder", tmp_path)
    assert (both.code, both.err) == (2, "nightmill: --admin and --read exclude each other\n")
