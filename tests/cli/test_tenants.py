"""Projects, holds, usage and the audit log, from the command line."""

import asyncio
import getpass
import json
import sys
from dataclasses import replace

import pytest

from nightmill.core.batch import Batch, Event, Status, Tally, Usage
from nightmill.store import migrate, open_store
from nightmill.store.steps import SCHEMA_VERSION

MODEL = "meta-llama/Llama-3.3-70B-Instruct-FP8-dynamic"


@pytest.fixture
def folder(tmp_path):
    """A data folder with two ended batches, one in each of two projects."""

    async def fill(url: str) -> None:
        await migrate(url)
        store = open_store(url, clock=lambda: 86_400.0 * 20_000)
        for number, project in enumerate(("day", "night")):
            made = Batch(
                f"batch_{number}", project, "/v1/embeddings", "file-1", "k", "24h", 1, 2, model=MODEL
            )
            await store.batches.create(made)
            await store.batches.move(made.after(Event.CANCEL_REQUESTED, now=3), expected=made.status)
            lease = await store.batch_leases.lease((Status.CANCELLING,), "w", ttl_s=9)
            after = lease.batch.after(Event.CANCELLED, now=4)
            tally = Tally(0, 0, Usage(7, 1, 5, 2, 12))
            assert await store.batch_leases.publish(lease, replace(after, tally=tally), files=[])
        await store.close()

    made = tmp_path / "data"
    made.mkdir()
    asyncio.run(fill(f"sqlite:///{made / 'nightmill.sqlite'}"))
    return made


def test_usage_as_a_table_as_csv_and_as_json(nightmill, folder):
    table = nightmill("usage", "--folder", folder).out.splitlines()
    assert table[0].split()[:3] == ["PROJECT", "MODEL", "BATCHES"]
    assert [row.split()[:3] for row in table[1:]] == [["day", MODEL, "1"], ["night", MODEL, "1"]]
    csv = nightmill("usage", "--by", "day", "--csv", "--folder", folder).out.splitlines()
    assert csv == [
        "day,batches,requests,completed,failed,input_tokens,cached_tokens,output_tokens,reasoning_tokens",
        "2024-10-04,2,0,0,0,14,2,10,4",
    ]
    row = nightmill("usage", "--project", "night", "--by", "", "--json", "--folder", folder).json
    assert (row["batches"], row["total_tokens"]) == (1, 12)
    assert nightmill("usage", "--from", "2024-10-05", "--json", "--folder", folder).out == ""
    odd = nightmill("usage", "--from", "yesterday", "--folder", folder)
    assert (odd.code, len(odd.err.splitlines())) == (2, 1)


@pytest.mark.parametrize("groups", ["project,model", "project,model,day"])
def test_usage_fits_a_terminal_of_80_columns(nightmill, folder, monkeypatch, groups):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    table = nightmill("usage", "--by", groups, "--folder", folder).out.splitlines()
    assert max(map(len, table)) <= 80
    assert {"REQUESTS", "FAILED", "TOKENS"} <= set(table[0].split())
    assert all("meta-llama/Llama-" in row for row in table[1:])


def test_project_rules_are_shown_and_rules_that_are_not_named_stay(nightmill, folder):
    words = ("projects", "set", "night", "--folder", folder, "--json")
    nightmill(*words, "--open-batches", "3", "--enqueued-tokens", "1000")
    rules = nightmill(*words, "--open-batches", "default", "--output-ttl-s", "7200").json
    assert (rules["open_batches"], rules["enqueued_tokens"], rules["output_ttl_s"]) == (None, 1_000, 7_200)
    shown = nightmill("projects", "show", "night", "--folder", folder)
    assert "enqueued_tokens -  0     1000" in shown.out
    assert nightmill("projects", "show", "night", "--folder", folder, "--json").json["own"] == {
        "enqueued_tokens": 1_000,
        "output_ttl_s": 7_200,
    }
    for odd in ("-1", "many"):
        refused = nightmill("projects", "set", "night", f"--open-batches={odd}", "--folder", folder)
        assert (refused.code, len(refused.err.splitlines())) == (2, 1)


def test_a_hold_is_set_listed_cleared_and_recorded_in_the_audit_log(nightmill, folder):
    assert nightmill("hold", "set", "batch", "batch_1", "--reason", "case 7", "--folder", folder).code == 0
    assert "case 7" in nightmill("hold", "list", "--folder", folder).out
    assert nightmill("hold", "clear", "batch", "batch_1", "--folder", folder).code == 0
    again = nightmill("hold", "clear", "batch", "batch_1", "--folder", folder)
    assert (again.code, len(again.err.splitlines())) == (2, 1)
    unknown = nightmill("hold", "set", "file", "file-unknown", "--folder", folder)
    assert (unknown.code, "no file 'file-unknown'" in unknown.err) == (2, True)

    logged = nightmill("audit", "--json", "--folder", folder).out.splitlines()
    entries = [json.loads(line) for line in logged]
    assert [entry["action"] for entry in entries] == ["hold.cleared", "hold.set"]
    assert {(entry["actor"], entry["hint"]) for entry in entries} == {("operator", getpass.getuser())}
    assert {entry["project_id"] for entry in entries} == {"night"}
    table = nightmill("audit", "--project", "night", "--since", "2024-01-01", "--folder", folder).out
    assert len(table.splitlines()) == 3
    assert nightmill("audit", "--since", "2999-01-01", "--json", "--folder", folder).out == ""
    none = nightmill("audit", "--since", "2999-01-01", "--folder", folder)
    assert (none.out, none.err) == ("", "the audit log has no such entry\n")
    assert nightmill("audit", "--since", "yesterday", "--folder", folder).code == 2


def test_the_before_and_after_flags_of_migrate_exclude_each_other(nightmill, folder):
    ran = nightmill("migrate", "--before", "--after", "--folder", folder)
    assert (ran.code, len(ran.err.splitlines())) == (2, 1)
    for stage in ("--before", "--after"):
        assert nightmill("migrate", stage, "--json", "--folder", folder).json == {"schema": SCHEMA_VERSION}


def test_an_admin_key_is_listed_as_such(nightmill, folder):
    made = nightmill("keys", "create", "ops", "--admin", "--json", "--folder", folder).json
    assert made["scope"] == "admin"
    assert "admin" in nightmill("keys", "list", "--folder", folder).out


@pytest.mark.parametrize("words", [["usage"], ["audit"], ["hold", "list"], ["projects", "show"]])
def test_a_missing_folder_is_not_created(nightmill, tmp_path, words):
    ran = nightmill(*words, "--folder", tmp_path / "nowhere")
    assert ran.code == 78
    assert not (tmp_path / "nowhere").exists()
