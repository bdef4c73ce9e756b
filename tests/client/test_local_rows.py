"""Rows and DataFrames are answered without a server, and go on where they were stopped."""

import json
from pathlib import Path

import pandas as pd
import polars as pl
import pytest
from pydantic import BaseModel

import nightmill
from nightmill.errors import RequestError, UnavailableError

BODIES = [{"model": "m", "messages": [{"role": "user", "content": f"Say {number}"}]} for number in range(3)]


def quiet(_progress: object) -> None: ...


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_rows_are_answered_in_their_order_and_no_file_is_left(tmp_path):
    answers = nightmill.run(BODIES, emulate=True, on_progress=quiet)
    assert [answer.request for answer in answers] == BODIES
    assert [answer.custom_id for answer in answers] == ["request-1", "request-2", "request-3"]
    assert all(answer.is_ok and answer.text for answer in answers)
    assert list(tmp_path.iterdir()) == []


def test_texts_take_a_prompt_and_parameters():
    [answer] = nightmill.run(
        iter(["Peru"]),
        prompt="A river in {text}?",
        parameters={"temperature": 0},
        endpoint="/v1/responses",
        emulate=True,
        on_progress=quiet,
    )
    assert answer.request == {"model": "model", "input": "A river in Peru?", "temperature": 0}
    assert answer.text


@pytest.mark.parametrize("library", [pd, pl])
def test_a_dataframe_is_returned_with_its_answers(library):
    frame = library.DataFrame({"id": [1, 2], "text": ["Peru", "Laos"]})
    answered = nightmill.run(frame, emulate=True, on_progress=quiet)
    assert isinstance(answered, library.DataFrame)
    assert list(answered.columns) == ["id", "text", "answer", "error"]
    assert all(isinstance(text, str) and text for text in answered["answer"])


class River(BaseModel):
    name: str


def test_an_answer_that_is_not_of_the_type_is_a_failure():
    typed = nightmill.run(["Peru"], answer_type=River, emulate=True, on_progress=quiet)
    [answer] = typed
    assert answer.request["response_format"]["json_schema"]["name"] == "River"
    assert answer.is_ok == (answer.parsed is not None)


def test_with_an_output_file_an_interrupted_call_goes_on_and_a_finished_one_sends_nothing(tmp_path):
    output = tmp_path / "answers.jsonl"
    with pytest.raises(UnavailableError, match="run it again to go on"):
        nightmill.run(BODIES, emulate=True, output=output, timeout_s=0, on_progress=quiet)
    first = nightmill.run(BODIES, emulate=True, output=output, on_progress=quiet)
    progress: list[object] = []
    second = nightmill.run(BODIES, emulate=True, output=output, on_progress=progress.append)
    assert (second, progress) == (first, [])
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["answers.jsonl", "answers_requests.jsonl"]

    with pytest.raises(RequestError, match="rerun='all'"):
        nightmill.run(BODIES[:2], emulate=True, output=output, on_progress=quiet)
    fewer = nightmill.run(BODIES[:2], emulate=True, output=output, rerun="all", on_progress=quiet)
    assert len(fewer) == len(output.read_text().splitlines()) == 2


def test_failed_rows_are_kept_with_their_reason(tmp_path):
    refused = {"model": "m", "messages": []}
    output = tmp_path / "answers.jsonl"
    answers = nightmill.run([BODIES[0], refused], emulate=True, output=output, on_progress=quiet)
    assert [answer.is_ok for answer in answers] == [True, False]
    assert answers[1].status_code == 400
    [line] = (tmp_path / "answers_error.jsonl").read_text().splitlines()
    assert json.loads(line)["custom_id"] == "request-2"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "there are no rows to send"),
        ([{"messages": []}, {"messages": None, "model": "m"}], "row 2: Messages parameter is required"),
        ([BODIES[0] | {"stream": True}], "row 1: .*Streaming is not supported"),
        ({"messages": []}, "pass a list of rows, not one row"),
    ],
)
def test_rows_that_cannot_be_sent_are_refused(rows, message):
    with pytest.raises(RequestError, match=message):
        nightmill.run(rows, emulate=True, on_progress=quiet)


def test_an_argument_that_a_call_does_not_take_is_refused():
    with pytest.raises(TypeError, match="no argument 'outptu'; did you mean 'output'"):
        nightmill.run(["Peru"], emulate=True, outptu="answers.jsonl")
    with pytest.raises(RequestError, match="prompt are for rows"):
        nightmill.run("in.jsonl", emulate=True, prompt="A river in {text}?")


def test_without_an_output_a_call_that_took_too_long_does_not_promise_to_go_on():
    with pytest.raises(UnavailableError, match=r"the run is not finished.*without output= nothing is kept"):
        nightmill.run(["Peru"], emulate=True, timeout_s=0, on_progress=quiet)


def test_texts_for_a_server_need_the_name_of_a_model():
    with pytest.raises(RequestError, match="pass model_name="):
        nightmill.run(["Peru"], upstream="http://127.0.0.1:9/v1", on_progress=quiet)


def test_a_path_may_be_a_text_or_a_path(tmp_path):
    path = tmp_path / "in.jsonl"
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": BODIES[0]}
    path.write_text(json.dumps(line))
    assert nightmill.run("in.jsonl", emulate=True, on_progress=quiet).completed == 1
    summary = nightmill.run(Path("in.jsonl"), emulate=True, on_progress=quiet)
    assert (summary.is_from_before, summary.output_path) == (True, Path("in_output.jsonl"))
