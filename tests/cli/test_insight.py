"""`show`, `list`, `watch` and `events` with what limits a batch, its forecast and its history."""

import json
import sys

import pytest

from nightmill.core.history import EventKind
from tests.api.conftest import serving
from tests.api.test_batch_insight import BATCH, running_batch

LIMIT = "4 of 4 in flight on gpu; the settings fix this limit."


@pytest.fixture
def server(tmp_path, monkeypatch):
    configured = [{"name": "gpu", "url": "http://127.0.0.1:9/v1", "models": ["m"]}]
    prices = {"m": {"input": 1.0, "output": 2.0}}
    with serving(tmp_path, settings={"upstreams": configured, "prices": prices}) as running:
        monkeypatch.setenv("OPENAI_BASE_URL", f"{running.url}/v1")
        monkeypatch.setenv("OPENAI_API_KEY", "sk-none")
        running_batch(running)
        yield running


def test_show_has_the_limit_and_the_forecast(server, nightmill):
    shown = dict(line.split("  ", 1) for line in nightmill("show", BATCH).out.splitlines())
    assert shown["why"].strip() == LIMIT
    assert "lines/s" in shown["rate"]
    assert "4 in flight, 2 retrying" in shown["rate"]
    assert "in 8 of 10 cases" in shown["ends about"]
    assert shown["in time"].strip() == "100% likely before it expires"
    assert shown["tokens to come"].strip() == "about 2,400"
    assert shown["cost so far"].strip() == "0.0008, and about 0.0032 to come"


def test_show_as_json_has_both_apart_from_the_published_fields(server, nightmill):
    document = nightmill("show", BATCH, "--json").json
    assert document["nightmill"]["why"]["code"] == "concurrency_limit"
    assert document["nightmill"]["forecast"]["tokens_to_come"] == 2_400
    assert document["object"] == "batch"


def test_list_has_a_column_with_the_limit_as_its_code_where_the_sentence_does_not_fit(
    server, nightmill, monkeypatch
):
    heading, row = nightmill("list").out.splitlines()
    assert heading.split() == ["ID", "STATUS", "DONE", "FAILED", "AGE", "MODEL", "WHY"]
    assert row.split("  ")[0] == BATCH[6:14]
    assert row.endswith("concurrency limit")
    monkeypatch.setenv("COLUMNS", "120")
    assert nightmill("list").out.splitlines()[1].endswith(LIMIT)


def test_list_with_wide_has_whole_ids_times_and_sentences(server, nightmill):
    heading, row = nightmill("list", "--wide").out.splitlines()
    assert heading.split()[4:] == ["FAILED", "CREATED", "ENDPOINT", "MODEL", "WHY"]
    assert row.startswith(BATCH)
    assert row.endswith(LIMIT)


@pytest.mark.parametrize("columns", [80, 100, 120, 200])
def test_list_with_wide_fits_the_terminal(server, nightmill, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    heading, row = nightmill("list", "--wide").out.splitlines()
    assert max(len(heading), len(row)) <= columns
    assert row.startswith(BATCH)
    assert {"STATUS", "DONE", "FAILED", "MODEL"} <= set(heading.split())
    assert ("ENDPOINT" in heading, row.endswith(LIMIT)) == (columns == 200, columns == 200)


def test_list_with_quiet_has_ids_only_and_a_status_filters(server, nightmill):
    assert nightmill("list", "-q").out == f"{BATCH}\n"
    assert nightmill("list", "-q", "--status", "in_progress", "--status", "failed").out == f"{BATCH}\n"
    ended = nightmill("list", "--status", "completed")
    assert (ended.code, ended.out, ended.err) == (0, "", "no batch is like that\n")
    assert nightmill("list", "--status", "completed", "--json").out == ""
    assert nightmill("list", "--status", "in_progress", "--json").json["id"] == BATCH
    wrong = nightmill("list", "--status", "done")
    assert wrong.code == 2
    assert "the statuses are validating, in_progress," in wrong.err


def test_events_shows_the_history(server, nightmill):
    detail = {"code": "paused", "sentence": "It waits.", "upstream": None}
    server.do(server.context.store.batch_events.add(BATCH, EventKind.LIMITED, detail))
    server.do(server.context.store.batch_events.add(BATCH, EventKind.PRIORITY_CHANGED, {"priority": 3}))
    rows = nightmill("events", BATCH).out.splitlines()
    assert rows[0].split() == ["N", "WHEN", "WHAT", "WHO", "DETAIL"]
    assert [row.split("  ")[2].strip() for row in rows[1:3]] == ["created", "in progress"]
    assert rows[-2].endswith("nightmill  It waits.")
    assert rows[-1].endswith("priority=3")
    as_json = [json.loads(line) for line in nightmill("events", BATCH, "--json").out.splitlines()]
    assert [row["kind"] for row in as_json] == ["created", "in_progress", "limited", "priority_changed"]
    later = nightmill("events", BATCH, "--after", str(as_json[-2]["sequence"]), "--json").json
    assert later["kind"] == "priority_changed"


def test_events_of_a_batch_that_does_not_exist_is_an_error(server, nightmill):
    ran = nightmill("events", "batch_" + "0" * 32)
    assert ran.code == 2
    assert "No batch found" in ran.err
