"""The client commands against a real server process, and `nightmill run` without a server."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nightmill.client import Client

_LISTENS = re.compile(r"listens on (http://\S+/v1)")


@pytest.fixture(scope="module")
def base_url(tmp_path_factory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("served")
    process = subprocess.Popen(
        [sys.executable, "-m", "nightmill", "serve", "--emulate", "--port", "0", "--folder", str(folder)],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    printed, found = "", None
    for line in process.stderr:
        printed += line
        found = found or _LISTENS.search(line)
        if found and "EMULATED" in line:
            break
    else:
        pytest.fail(f"the server did not start: {printed}")
    yield found[1]
    process.send_signal(signal.SIGTERM)
    process.stderr.read()
    assert process.wait(timeout=60) == 0
    process.stderr.close()


@pytest.fixture(autouse=True)
def use_the_server(request, monkeypatch):
    if "base_url" in request.fixturenames:
        monkeypatch.setenv("OPENAI_BASE_URL", request.getfixturevalue("base_url"))


def rows(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


def test_a_batch_is_submitted_watched_and_fetched(base_url, nightmill, input_file):
    submitted = nightmill("submit", input_file(3), "--metadata", "night=1")
    batch_id = submitted.out.strip()
    assert submitted.code == 0
    assert f"nightmill watch {batch_id}" in submitted.err

    watched = nightmill("watch", batch_id)
    assert (watched.code, watched.out) == (0, f"{batch_id} is completed\n")
    assert "completed: 3 of 3 done (3 ok, 0 failed)" in watched.err

    results = nightmill("results", batch_id)
    assert results.code == 0
    assert [row["custom_id"] for row in rows(results.out)] == ["line-0", "line-1", "line-2"]

    shown = nightmill("show", batch_id)
    assert re.search(r"lines +3 of 3 done \(3 ok, 0 failed\)", shown.out)
    assert re.search(r"metadata night +1", shown.out)
    assert nightmill("show", batch_id, "--json").json["metadata"] == {"night": "1"}

    cancelled = nightmill("cancel", batch_id)
    assert cancelled.code == 2
    assert cancelled.err == "nightmill: Cannot cancel a batch with status 'completed'.\n"


def test_the_priority_of_a_batch_is_given_and_changed(base_url, nightmill, input_file):
    made = [nightmill("submit", input_file(1), "--priority", "-3").out.strip() for _ in range(2)]
    assert Client().api.retrieve_priority(made[0]).priority == -3
    nightmill("watch", made[0])
    refused = nightmill("prioritize", made[0], "--priority", "5")
    assert refused.code == 2
    assert refused.err == "nightmill: Cannot change the priority of a batch with status 'completed'.\n"
    assert nightmill("prioritize", made[1], "--priority", "11").code == 2


def test_submit_can_watch_the_batch(base_url, nightmill, input_file):
    ran = nightmill("submit", input_file(2), "--watch", "--json")
    assert (ran.code, ran.json["status"], ran.json["request_counts"]["completed"]) == (0, "completed", 2)


def test_results_are_written_to_files(base_url, nightmill, input_file, tmp_path):
    batch_id = nightmill("submit", input_file(2), "--watch", "--json").json["id"]
    ran = nightmill("results", batch_id, "-o", tmp_path / "out.jsonl", "-e", tmp_path / "err.jsonl", "--json")
    assert ran.code == 0
    assert ran.json["output"]["bytes"] == (tmp_path / "out.jsonl").stat().st_size
    assert ran.json["errors"] is None
    assert not (tmp_path / "err.jsonl").exists()
    both = nightmill("results", batch_id, "--json")
    assert (both.code, both.out) == (2, "")
    assert "-o and -e" in both.err


def test_an_invalid_file_exits_with_2_and_lists_its_lines(base_url, nightmill, input_file):
    ran = nightmill("submit", input_file(1, bad=("{",)), "--no-check", "--watch")
    assert ran.code == 2
    assert "line 2: This line is not parseable as valid JSON." in ran.err
    batch_id = ran.out.split()[0]
    results = nightmill("results", batch_id)
    assert (results.code, results.out) == (2, "")


def test_lists_show_every_page(base_url, nightmill, input_file):
    made = [nightmill("submit", input_file(1)).out.strip() for _ in range(3)]
    listed = nightmill("list", "--limit", "3")
    assert listed.out.startswith("ID ")
    assert len(listed.out.splitlines()) == 4
    ids = [row["id"] for row in rows(nightmill("list", "--limit", "3", "--json").out)]
    assert set(ids) == set(made)
    behind = rows(nightmill("list", "--after", ids[0], "--limit", "2", "--json").out)
    assert [row["id"] for row in behind] == ids[1:]


def test_files_are_uploaded_listed_downloaded_and_deleted(base_url, nightmill, input_file, tmp_path):
    path = input_file(2, name="mine.jsonl")
    file_id = nightmill("files", "upload", path).out.strip()
    assert file_id in nightmill("files").out
    listed = rows(nightmill("files", "list", "--purpose", "batch", "--json").out)
    assert [row["filename"] for row in listed if row["id"] == file_id] == ["mine.jsonl"]
    heading, *others = nightmill("files").out.splitlines()
    assert heading.startswith("ID ")
    assert max(map(len, (heading, *others))) <= 80
    assert nightmill("files", "download", file_id).out == path.read_text()
    assert nightmill("files", "download", file_id, "-o", tmp_path / "copy.jsonl").code == 0
    assert (tmp_path / "copy.jsonl").read_bytes() == path.read_bytes()
    assert nightmill("files", "delete", file_id).out == f"{file_id} is deleted\n"
    gone = nightmill("files", "download", file_id)
    assert (gone.code, gone.out, gone.err.count("\n")) == (2, "", 1)


@pytest.mark.parametrize(
    "words", [["show"], ["watch"], ["results"], ["cancel"], ["prioritize", "--priority", "1"]]
)
def test_an_unknown_batch_gives_a_one_line_error(base_url, nightmill, words):
    ran = nightmill(*words, "batch_00000000000000000000000000000000")
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)


def test_rows_are_sent_and_returned_with_their_answers(base_url):
    bodies = [{"messages": [{"role": "user", "content": f"Say {number}"}]} for number in range(5)]
    with Client(base_url) as client:
        answers = list(client.send(bodies, model="m", on_change=lambda _: None))
    assert [answer.custom_id for answer in answers] == [f"request-{number}" for number in range(1, 6)]
    assert [answer.request["messages"] for answer in answers] == [body["messages"] for body in bodies]
    assert all(answer.is_ok and answer.body["choices"] for answer in answers)


def test_a_file_is_answered_without_a_server(nightmill, input_file, tmp_path):
    ran = nightmill("run", input_file(3), "--emulate")
    assert (ran.code, ran.out) == (0, f"{tmp_path / 'in_output.jsonl'}\n")
    assert "completed: 3 of 3 done (3 ok, 0 failed)\n" in ran.err
    assert [row["custom_id"] for row in rows((tmp_path / "in_output.jsonl").read_text())] == [
        "line-0",
        "line-1",
        "line-2",
    ]


def test_a_run_prints_its_summary_as_json(command, input_file, tmp_path):
    ran = command("run", input_file(2), "--emulate", "-o", tmp_path / "o.jsonl", "--json")
    assert ran.code == 0
    assert ran.json["request_counts"] == {"total": 2, "completed": 2, "failed": 0}
    assert (ran.json["output_path"], ran.json["error_path"]) == (str(tmp_path / "o.jsonl"), None)
    assert ran.json["usage"]["total_tokens"] > 0


def test_a_run_with_failed_lines_exits_with_1_and_names_both_files(nightmill, input_file, tmp_path):
    refused = {
        "custom_id": "refused",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"model": "m", "messages": []},
    }
    ran = nightmill("run", input_file(2, bad=(json.dumps(refused),)), "--emulate")
    assert (ran.code, ran.out.split()) == (
        1,
        [str(tmp_path / f"in_{kind}.jsonl") for kind in ("output", "error")],
    )
    assert "completed: 3 of 3 done (2 ok, 1 failed)\n" in ran.err
    (line,) = rows((tmp_path / "in_error.jsonl").read_text())
    assert line["custom_id"] == "refused"


def test_a_run_of_an_invalid_file_sends_no_line(nightmill, input_file, tmp_path):
    ran = nightmill("run", input_file(1, bad=("{",)), "--emulate")
    assert (ran.code, ran.out) == (2, "")
    assert "line 2: This line is not parseable as valid JSON." in ran.err
    assert "nightmill validate" in ran.err
    assert [entry.name for entry in tmp_path.iterdir()] == ["in.jsonl"]


def test_a_run_stopped_with_ctrl_c_resumes_where_it_stopped(command, input_file, tmp_path):
    path = input_file(20)
    slow = os.environ | {"NIGHTMILL_EMULATOR__DELAY_S": "0.1"}
    words = [sys.executable, "-m", "nightmill", "run", str(path), "--emulate", "--concurrency", "2"]
    stopped = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=slow)
    assert stopped.stderr is not None
    for line in stopped.stderr:
        if line.startswith("in_progress"):
            break
    work = tmp_path / "in.jsonl.nightmill"
    _wait_for_answers(work)
    stopped.send_signal(signal.SIGINT)
    printed = stopped.stderr.read()
    assert stopped.wait(timeout=60) == 130
    stopped.stderr.close()
    assert "the same command goes on from there" in printed
    assert not (tmp_path / "in_output.jsonl").exists()

    again = command("run", path, "--emulate", "--json")
    assert again.json["request_counts"] == {"total": 20, "completed": 20, "failed": 0}
    assert len(rows((tmp_path / "in_output.jsonl").read_text())) == 20
    assert not work.exists()


def _wait_for_answers(work: Path) -> None:
    import time

    give_up_at = time.monotonic() + 60
    while not any(path.stat().st_size for path in (work / "blobs" / "parts").rglob("*") if path.is_file()):
        assert time.monotonic() < give_up_at, "no answer was written"
        time.sleep(0.01)


@pytest.mark.parametrize("words", [["serve"], ["run", "in.jsonl"]])
def test_without_an_upstream_the_command_exits_and_lists_the_options(nightmill, input_file, words):
    input_file(1)
    ran = nightmill(*words)
    assert ran.code == 78
    assert [way in ran.err for way in ("--upstream http", "--upstream auto", "--model", "--emulate")] == [
        True
    ] * 4


def test_the_server_refuses_to_listen_on_all_addresses_without_keys(command, tmp_path):
    ran = command("serve", "--emulate", "--host", "0.0.0.0", "--port", "0", "--folder", tmp_path / "data")
    assert ran.code == 78
    assert "nightmill keys create" in ran.err.splitlines()[-1]


def test_results_of_a_running_batch_are_followed_to_the_end(base_url, nightmill, input_file):
    batch_id = nightmill("submit", input_file(5)).out.strip()
    followed = nightmill("results", "--follow", batch_id)
    assert followed.code == 0
    downloaded = nightmill("results", batch_id)
    assert sorted(followed.out.splitlines()) == sorted(downloaded.out.splitlines())
    assert sorted(row["custom_id"] for row in rows(followed.out)) == [f"line-{number}" for number in range(5)]


def test_results_are_filtered_and_go_on_behind_a_cursor(base_url, nightmill, input_file):
    batch_id = nightmill("submit", input_file(4), "--watch", "--json").json["id"]
    chosen = nightmill("results", batch_id, "--custom-id", "line-2", "--custom-id", "line-0", "--json")
    first, last = rows(chosen.out)
    assert [first["line"]["custom_id"], last["line"]["custom_id"]] == ["line-0", "line-2"]
    rest = nightmill("results", batch_id, "--after", last["cursor"])
    assert [row["custom_id"] for row in rows(rest.out)] == ["line-3"]
    assert nightmill("results", "-f", batch_id, "--outcome", "failed").out == ""
    assert nightmill("results", "-f", batch_id, "--code", "batch_expired").out == ""


def test_wrong_flags_of_results_are_refused(base_url, nightmill, input_file, tmp_path):
    batch_id = nightmill("submit", input_file(1), "--watch", "--json").json["id"]
    wrong = nightmill("results", batch_id, "--outcome", "ok")
    assert (wrong.code, wrong.err) == (2, "nightmill: --outcome is completed or failed, not 'ok'\n")
    both = nightmill("results", "--follow", batch_id, "-o", tmp_path / "out.jsonl")
    assert (both.code, both.out) == (2, "")
    foreign = nightmill("results", "--follow", batch_id, "--after", "abc")
    assert foreign.code == 2
    assert "not a cursor" in foreign.err
    assert nightmill("results", "--follow", "batch_zz").code == 2


def test_a_batch_is_named_by_the_beginning_of_its_id_or_as_the_latest(base_url, nightmill, input_file):
    first = nightmill("submit", input_file(1), "--watch").out.split()[0]
    second = nightmill("submit", input_file(1), "--watch").out.split()[0]
    assert nightmill("show", first[:14], "--json").json["id"] == first
    assert nightmill("show", first.removeprefix("batch_")[:8], "--json").json["id"] == first
    assert nightmill("show", "latest", "--json").json["id"] == second
    unknown = nightmill("show", "batch_zz")
    assert unknown.code != 0
    assert "no batch begins with 'batch_zz'" in unknown.err
    several = nightmill("show", "batch_")
    assert "several batches begin with 'batch_': batch_" in several.err
    assert several.err.endswith("; give more of the id\n")


def test_every_command_of_a_batch_takes_the_beginning_of_its_id(base_url, nightmill, input_file, tmp_path):
    batch_id = nightmill("submit", input_file(2), "--watch").out.split()[0]
    short = batch_id[6:14]
    assert nightmill("events", short).code == 0
    assert re.search(r"lines +2 total, 2 ok, 0 failed", nightmill("receipt", short).out)
    assert "line-1" in nightmill("line", short, "--line", "2").out
    assert len(nightmill("results", short).out.splitlines()) == 2
    assert nightmill("results", short, "--merged", "-o", tmp_path / "merged.jsonl").code == 0
    followed = nightmill("results", short, "--follow")
    assert len(followed.out.splitlines()) == 2
    assert followed.err == "completed: 2 of 2 done (2 ok, 0 failed)\n"
    assert nightmill("retry", short, "--dry-run").out == "no line of these batches matches\n"
    assert nightmill("validation", short).err == "0 invalid lines\n"
    # These refuse a batch that has none, and name it in full.
    for name in ("canary", "attempts"):
        assert batch_id in nightmill(name, short).err
