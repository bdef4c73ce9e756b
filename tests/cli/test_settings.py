"""`nightmill settings`: the effective values, their origin, and what is hidden."""

import json
from pathlib import Path

import pytest

from nightmill.cli.settings import rows_in
from nightmill.settings.loading import settings_from, sources_of
from nightmill.settings.origins import effective_settings

CONFIG = """
[api]
port = 81
[upstream]
timeout_s = 30
[[upstreams]]
name = "gpu-a"
url = "http://a:1/v1?key=sk-in-a-query"
[[upstreams]]
name = "b"
url = "http://b/v1"
headers = {X-Key = "sk-in-a-header"}
[blobs.options]
token = "sk-in-an-option"
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "nightmill.toml"
    path.write_text(CONFIG)
    return path


@pytest.fixture
def shown(nightmill):
    def run(*words: str | Path) -> dict[str, tuple[str, str]]:
        ran = nightmill("settings", *words)
        assert ran.code == 0, ran.err
        lines = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in ran.out.splitlines()]
        return {cells[0]: (cells[1], cells[2]) for cells in lines[1:] if len(cells) == 3}

    return run


def test_only_what_differs_from_the_defaults_is_shown_with_its_origin(shown, config, monkeypatch):
    monkeypatch.setenv("NIGHTMILL_WORKER__PROCESSES", "2")
    assert shown("--config", config, "--folder", "data") == {
        "folder": ("data", "flag"),
        "worker.processes": ("2", "NIGHTMILL_WORKER__PROCESSES"),
        "api.port": ("81", str(config)),
        "upstream.timeout_s": ("30", str(config)),
        "upstreams.gpu-a.url": ("http://a:1/v1?key=…", str(config)),
        "upstreams.gpu-a.timeout_s": ("30", str(config)),
        "upstreams.b.url": ("http://b/v1", str(config)),
        "upstreams.b.headers": ('{"X-Key": "(hidden)"}', str(config)),
        "upstreams.b.timeout_s": ("30", str(config)),
        "blobs.options": ('{"token": "(hidden)"}', str(config)),
    }


def test_the_strongest_source_is_named(shown, config, monkeypatch):
    monkeypatch.setenv("NIGHTMILL_API__PORT", "82")
    monkeypatch.setenv("NIGHTMILL_UPSTREAMS__GPU_A__TIMEOUT_S", "5")
    found = shown("--config", config)
    assert found["api.port"] == ("82", "NIGHTMILL_API__PORT")
    assert found["upstreams.gpu-a.timeout_s"] == ("5", "NIGHTMILL_UPSTREAMS__GPU_A__TIMEOUT_S")


def test_no_secret_is_shown(nightmill, config, monkeypatch, tmp_path):
    secret = tmp_path / "key"
    secret.write_text("sk-in-a-file")
    monkeypatch.setenv("NIGHTMILL_UPSTREAMS__B__API_KEY_FILE", str(secret))
    monkeypatch.setenv("NIGHTMILL_STORE", "postgresql://me:sk-of-the-store@host/d")
    for words in ([], ["--all"], ["--json"], ["upstreams", "blobs", "store"]):
        ran = nightmill("settings", "--config", config, *words)
        assert ran.code == 0
        assert "sk-" not in ran.out + ran.err
    row = next(line for line in ran.out.splitlines() if line.startswith("upstreams.b.api_key"))
    assert row.split() == ["upstreams.b.api_key", "(hidden)", "NIGHTMILL_UPSTREAMS__B__API_KEY_FILE"]


def test_a_section_or_a_variable_chooses_settings_and_one_alone_is_explained(nightmill):
    ran = nightmill("settings", "audit")
    assert [line.split()[0] for line in ran.out.splitlines()] == ["SETTING", "audit.ttl_s", "audit.downloads"]
    ran = nightmill("settings", "NIGHTMILL_API__PORT")
    assert "api.port  8080   default" in ran.out
    assert "Port to listen on; 0 takes a free one." in ran.out


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("api.prot", "did you mean 'api.port'?"),
        ("drain_s", "did you mean 'api.drain_s'?"),
        ("wrker", "did you mean 'worker'?"),
        ("emulatr", "did you mean 'emulator'?"),
        ("zzzz", "see all with: nightmill settings --all"),
    ],
)
def test_a_setting_that_does_not_exist_names_the_one_that_was_probably_meant(nightmill, name, said):
    ran = nightmill("settings", name)
    assert ran.code == 2
    assert ran.err == f"nightmill: there is no setting '{name}'; {said}\n"


def test_all_settings_as_json_name_their_source(nightmill):
    ran = nightmill("settings", "--all", "--json")
    rows = [json.loads(line) for line in ran.out.splitlines()]
    assert len(rows) > 100
    assert {"name": "api.port", "value": 8080, "source": "default", "place": None} in rows


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_fits_the_terminal(width, config):
    sources = sources_of(config=config, environment={"NIGHTMILL_RAY__MODEL__ACCELERATOR_TYPE": "H100"})
    found = effective_settings(settings_from(sources), sources)
    rows = rows_in(found, width)
    assert sum(max(len(row[column]) for row in rows) for column in range(3)) + 4 <= width
    assert max(len(row[1]) for row in rows_in(found, None)) > 100
