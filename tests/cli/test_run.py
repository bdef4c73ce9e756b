"""`nightmill run` on files that are answered, half answered, partly failed, or come from stdin."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.threaded_server import AnsweringHandler, listening

ANSWER = json.dumps({"id": "c", "choices": [{"message": {"content": "Hi"}}], "usage": {"total_tokens": 3}})


class Model(AnsweringHandler):
    """Answers, but not prompts with the word that is refused. Its address is `url`."""

    refused = "\0"
    asked = 0
    url = ""

    def respond(self) -> None:
        body = self.read().decode()
        type(self).asked += 1
        if self.refused in body:
            self.answer(404, b'{"error": {"message": "The model nope does not exist."}}')
        else:
            self.answer(200, ANSWER.encode())


@pytest.fixture
def model() -> Iterator[type[Model]]:
    class OwnModel(Model): ...

    server = listening(OwnModel, backlog=64)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    OwnModel.url = f"http://127.0.0.1:{server.server_port}/v1"
    yield OwnModel
    server.shutdown()
    thread.join()
    server.server_close()


def ids(path: Path) -> list[str]:
    return [json.loads(line)["custom_id"] for line in path.read_text().splitlines()]


@pytest.fixture
def output(tmp_path) -> Path:
    return tmp_path / "in_output.jsonl"


@pytest.fixture
def errors(tmp_path) -> Path:
    return tmp_path / "in_error.jsonl"


def test_an_answered_file_is_not_sent_again(model, nightmill, input_file, output):
    path = input_file(3)
    first = nightmill("run", path, "--upstream", model.url)
    assert (first.code, model.asked) == (0, 3)
    assert "completed: 3 of 3 done (3 ok, 0 failed)\n" in first.err
    model.asked = 0
    second = nightmill("run", path, "--upstream", model.url)
    assert (second.code, second.out, model.asked) == (0, f"{output}\n", 0)
    assert second.err == (
        f"{path} was finished before: 3 of 3 done (3 ok, 0 failed)\nsend all lines again with --again\n"
    )
    document = nightmill("run", path, "--upstream", model.url, "--json").json
    assert (document["is_from_before"], document["request_counts"]["completed"]) == (True, 3)


def test_again_sends_every_line_and_leaves_no_stale_error_file(model, nightmill, input_file, output, errors):
    path = input_file(3)
    model.refused = "Say 1"
    nightmill("run", path, "--upstream", model.url)
    assert (ids(output), ids(errors)) == (["line-0", "line-2"], ["line-1"])
    model.asked, model.refused = 0, "\0"
    again = nightmill("run", path, "--upstream", model.url, "--again")
    assert (again.code, model.asked) == (0, 3)
    assert ids(output) == ["line-0", "line-1", "line-2"]
    assert not errors.exists()


def test_failed_lines_are_explained_and_sent_again(model, nightmill, input_file, output, errors, tmp_path):
    path = input_file(4)
    model.refused = "Say 1"
    first = nightmill("run", path, "--upstream", model.url)
    assert (first.code, first.out) == (1, f"{output}\n{errors}\n")
    assert '1 failed: 1x 404 "The model nope does not exist."\n' in first.err
    assert "send the failed lines again with the same command and --retry-failed\n" in first.err

    still = nightmill("run", path, "--upstream", model.url, "--retry-failed")
    assert (still.code, ids(errors)) == (1, ["line-1"])
    model.asked, model.refused = 0, "\0"
    retried = nightmill("run", path, "--upstream", model.url, "--retry-failed")
    assert (retried.code, retried.out, model.asked) == (0, f"{output}\n", 1)
    assert "completed: 4 of 4 done (4 ok, 0 failed)\n" in retried.err
    assert ids(output) == [f"line-{number}" for number in range(4)]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["in.jsonl", "in_output.jsonl"]
    nothing = nightmill("run", path, "--upstream", model.url, "--retry-failed")
    assert (nothing.code, model.asked) == (0, 1)


def test_the_same_command_finishes_a_retry_that_was_stopped(model, nightmill, input_file, output, errors):
    path = input_file(3)
    model.refused = "Say 1"
    nightmill("run", path, "--upstream", model.url)
    model.refused = "\0"
    stopped = nightmill("run", path, "--upstream", model.url, "--retry-failed", "--timeout", "0")
    assert stopped.code == 75
    assert ids(errors) == ["line-1"]
    ended = nightmill("run", path, "--upstream", model.url)
    assert (ended.code, ended.out) == (0, f"{output}\n")
    assert ids(output) == ["line-0", "line-1", "line-2"]


def test_there_is_nothing_to_retry_before_a_run_is_finished(model, nightmill, input_file):
    path = input_file(3)
    never = nightmill("run", path, "--upstream", model.url, "--retry-failed")
    assert (never.code, model.asked) == (2, 0)
    assert "there is no finished run of" in never.err
    assert nightmill("run", path, "--upstream", model.url, "--timeout", "0").code == 75
    unfinished = nightmill("run", path, "--upstream", model.url, "--retry-failed")
    assert (unfinished.code, "finish it before a retry" in unfinished.err) == (2, True)
    both = nightmill("run", path, "--emulate", "--again", "--retry-failed")
    assert (both.code, "give one of the two" in both.err) == (2, True)


def test_a_run_that_is_out_of_time_says_so_and_goes_on_later(model, nightmill, input_file, output):
    path = input_file(3)
    ran = nightmill("run", path, "--upstream", model.url, "--timeout", "0")
    assert (ran.code, ran.out) == (75, "")
    assert f"{path} is not finished after 0 s: " in ran.err
    assert not output.exists()
    assert nightmill("run", path, "--upstream", model.url).code == 0


def test_an_unfinished_run_of_another_input_begins_anew_on_demand(model, nightmill, input_file, output):
    nightmill("run", input_file(3), "--upstream", model.url, "--timeout", "0")
    path = input_file(2)
    refused = nightmill("run", path, "--upstream", model.url)
    assert refused.code == 2
    assert "has changed since its unfinished run" in refused.err
    assert "--again" in refused.err
    assert nightmill("run", path, "--upstream", model.url, "--again").code == 0
    assert ids(output) == ["line-0", "line-1"]


def test_an_output_of_another_input_is_not_replaced(model, nightmill, input_file, output):
    nightmill("run", input_file(3), "--upstream", model.url)
    ran = nightmill("run", input_file(2), "--upstream", model.url)
    assert (ran.code, ran.out) == (2, "")
    assert f"{output} exists, but not with the answers of" in ran.err
    assert len(ids(output)) == 3


def test_an_invalid_file_keeps_the_output_of_an_earlier_run(model, nightmill, input_file, output):
    nightmill("run", input_file(3), "--upstream", model.url)
    ran = nightmill("run", input_file(2, bad=("{",)), "--upstream", model.url, "--again")
    assert (ran.code, ran.out) == (2, "")
    assert len(ids(output)) == 3


def test_the_output_is_printed_at_the_end(model, nightmill, input_file, output):
    path = input_file(2)
    ran = nightmill("run", path, "--upstream", model.url, "-o", "-")
    assert ran.out == output.read_text()
    assert nightmill("run", path, "--upstream", model.url, "-o", "-").out == ran.out
    both = nightmill("run", path, "--upstream", model.url, "-o", "-", "--json")
    assert (both.code, both.out) == (2, "")


def test_lines_from_stdin_are_answered_on_stdout(model, nightmill, input_file, monkeypatch, tmp_path):
    path = input_file(3)
    model.refused = "Say 1"
    with path.open() as stream:
        monkeypatch.setattr("sys.stdin", stream)
        ran = nightmill("run", "-", "--upstream", model.url)
    assert [json.loads(line)["custom_id"] for line in ran.out.splitlines()] == ["line-0", "line-2"]
    assert "the failed lines are in stdin_error.jsonl" in ran.err
    assert ids(tmp_path / "stdin_error.jsonl") == ["line-1"]
    assert nightmill("run", "-", "--emulate", "--retry-failed").code == 2


def test_lines_from_stdin_are_kept_while_they_are_not_answered(model, nightmill, input_file, monkeypatch):
    with input_file(3).open() as stream:
        monkeypatch.setattr("sys.stdin", stream)
        ran = nightmill("run", "-", "--upstream", model.url, "--timeout", "0")
    assert ran.code == 75
    kept = ran.err.split(" stay in ")[1].split(";")[0]
    ended = nightmill("run", kept, "--upstream", model.url, "-o", "-")
    assert (ended.code, ended.out.count("\n")) == (0, 3)


@pytest.mark.parametrize("text", ["id,review\n1,x\n", "", '[{"model": "m"}]'])
def test_what_is_no_request_lines_is_named_before_anything_is_started(nightmill, tmp_path, text):
    path = tmp_path / "in.csv"
    path.write_text(text)
    ran = nightmill("run", path, "--emulate")
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert ran.err.startswith(f"nightmill: {path} is ")
    assert [entry.name for entry in tmp_path.iterdir()] == ["in.csv"]
