"""`pause`, `resume`, `prioritize`, `deadline`, `limit` and `cancel` against a real server process."""

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

_LISTENS = re.compile(r"listens on (http://\S+/v1)")


@pytest.fixture(scope="module")
def base_url(tmp_path_factory) -> Iterator[str]:
    """A server whose upstream answers nothing, so that batches stay open."""
    folder = tmp_path_factory.mktemp("served")
    unreachable = ("--upstream", "http://127.0.0.1:9/v1")
    process = subprocess.Popen(
        [*(sys.executable, "-m", "nightmill", "serve", "--port", "0", "--folder", str(folder)), *unreachable],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if found := _LISTENS.search(line):
            break
    else:
        pytest.fail("the server did not start")
    yield found[1]
    process.send_signal(signal.SIGTERM)
    process.stderr.read()
    assert process.wait(timeout=60) == 0
    process.stderr.close()


@pytest.fixture
def batch(base_url, nightmill, input_file, monkeypatch) -> Callable[..., str]:
    monkeypatch.setenv("OPENAI_BASE_URL", base_url)
    return lambda *flags: nightmill("submit", input_file(3), *flags).out.strip()


def rows(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


def test_a_batch_is_paused_and_resumed(nightmill, batch):
    batch_id = batch()
    paused = nightmill("pause", batch_id)
    assert paused.code == 0
    assert re.fullmatch(rf"{batch_id[6:14]} is \w+, paused, priority 0, deadline [-0-9: ]+\n", paused.out)
    assert paused.err == "1 changed, 0 unchanged, 0 refused\n"
    assert nightmill("show", batch_id, "--json").json["status"] in ("validating", "in_progress")
    [again] = rows(nightmill("pause", batch_id, "--json").out)
    assert (again["id"], again["result"]) == (batch_id, "unchanged")
    [resumed] = rows(nightmill("resume", batch_id, "--json").out)
    assert (resumed["result"], resumed["paused_at"]) == ("changed", None)


def test_priority_deadline_and_concurrency_of_several_batches_are_changed(nightmill, batch):
    ids = [batch(), batch()]
    done = rows(nightmill("prioritize", *ids, "--priority", "5", "--json").out)
    assert [(row["id"], row["priority"]) for row in done] == [(batch_id, 5) for batch_id in ids]
    done = rows(nightmill("limit", *ids, "--concurrency", "2", "--json").out)
    assert [row["concurrency"] for row in done] == [2, 2]
    assert "concurrency 2" in nightmill("limit", ids[0], "--concurrency", "2").out
    done = rows(nightmill("limit", *ids, "--concurrency", "none", "--json").out)
    assert [row["concurrency"] for row in done] == [None, None]
    before = done[0]["deadline"]
    [sooner] = rows(nightmill("deadline", ids[0], "--until", "+2h", "--json").out)
    assert sooner["deadline"] < before
    [later] = rows(nightmill("deadline", ids[0], "--until", "2033-05-18T03:33:20+00:00", "--json").out)
    assert later["deadline"] == 2_000_000_000


def test_a_filter_shows_its_batches_first_and_needs_a_yes(nightmill, batch):
    made = {batch("--metadata", "night=7") for _ in range(2)}
    other = batch()
    chosen = ("--metadata", "night=7")
    trial = nightmill("pause", *chosen, "--dry-run")
    assert trial.code == 0
    assert {line.split()[0] for line in trial.out.splitlines()} == {it[6:14] for it in made}
    assert trial.err == "would be: 2 changed, 0 unchanged, 0 refused\n"
    refused = nightmill("pause", *chosen)
    assert refused.code == 2
    assert (
        refused.err
        == "nightmill: this would pause 2 batches; add --yes to do it, or --dry-run to list them\n"
    )
    assert nightmill("resume", *chosen, "--yes").err == "0 changed, 2 unchanged, 0 refused\n"
    done = rows(nightmill("pause", *chosen, "--yes", "--json").out)
    assert {row["id"] for row in done if row["paused_at"]} == made
    none = nightmill("cancel", "--metadata", "night=8", "--yes")
    assert (none.code, none.out, none.err) == (0, "", "no batch matches; nothing was changed\n")
    assert nightmill("cancel", *chosen, "--older-than", "2h", "--yes").out == ""
    cancelled = rows(nightmill("cancel", *chosen, "--status", "in_progress", "--yes", "--json").out)
    assert {row["id"] for row in cancelled} <= made
    assert nightmill("cancel", *made).code in (0, 2)
    assert nightmill("cancel", other).out == f"{other[6:14]} is cancelling\n"


def test_a_refusal_names_its_reason(nightmill, batch):
    batch_id = batch()
    nightmill("cancel", batch_id)
    nightmill("watch", batch_id)
    refused = nightmill("pause", batch_id)
    assert refused.code == 2
    assert refused.err == "nightmill: Cannot pause a batch with status 'cancelled'.\n"
    none = f"batch_{'0' * 32}"
    assert nightmill("pause", none).err == f"nightmill: No batch found with id '{none}'.\n"
    several = nightmill("pause", batch_id, none)
    assert several.code == 2
    assert "0 changed, 0 unchanged, 2 refused" in several.err


def test_batches_are_named_by_the_beginnings_of_their_ids_or_as_the_latest(nightmill, batch):
    first, second = batch(), batch()
    paused = rows(nightmill("pause", first[6:14], "latest", "--json").out)
    assert [(row["id"], row["result"]) for row in paused] == [(first, "changed"), (second, "changed")]
    unknown = nightmill("pause", first[6:14], "batch_none")
    assert (unknown.code, unknown.out) == (2, "")
    assert "no batch begins with 'batch_none'" in unknown.err
    assert nightmill("cancel", first[:20]).out.startswith(first[6:14])


@pytest.mark.parametrize(
    "words",
    [
        ("pause",),
        ("pause", "batch_1", "--status", "in_progress"),
        ("pause", "--older-than", "soon"),
        ("pause", "--metadata", "x"),
        ("limit", "batch_1", "--concurrency", "0"),
        ("deadline", "batch_1", "--until", "tomorrow"),
        ("prioritize", "batch_1", "--priority", "11"),
    ],
)
def test_a_wrong_command_is_refused_before_a_server_is_asked(nightmill, words):
    assert nightmill(*words).code == 2
