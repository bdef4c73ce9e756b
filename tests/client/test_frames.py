"""DataFrames as rows, and answers as their columns, with both libraries."""

import json
import subprocess
import sys

import pytest
from pydantic import BaseModel

from nightmill.client import Client, frames, session
from nightmill.client.answers import Answer
from nightmill.client.async_session import AsyncClient
from nightmill.client.frames import prompt_for, rows_of, to_frame
from nightmill.errors import RequestError, SetupError
from tests.client.batch_server import BatchServer, chat

pandas = pytest.importorskip("pandas")
polars = pytest.importorskip("polars")
FRAMES = [pandas.DataFrame, polars.DataFrame]


class River(BaseModel):
    name: str
    length_km: int


def reply(line: dict) -> tuple[int, object]:
    body = line["body"]
    if line["url"] == "/v1/embeddings":
        return 200, {"data": [{"embedding": [1.0, float(len(body["input"]))]}]}
    text = body["messages"][0]["content"]
    if "nowhere" in text:
        return 400, {"error": {"message": "no such place", "code": "bad"}}
    if "response_format" in body:
        return 200, chat(json.dumps({"name": text[-4:], "length_km": 7 if "Peru" in text else "long"}))
    return 200, chat(text.upper())


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(session, "FIRST_POLL_S", 0.001)


@pytest.fixture
def batches(server) -> BatchServer:
    server.answer = BatchServer(reply)
    return server.answer


def quiet(_batch: object) -> None: ...


@pytest.mark.parametrize("make", FRAMES)
def test_a_dataframe_gets_its_answers_as_columns(server, batches, make):
    frame = make({"place": ["Peru", "nowhere"], "answer": [1, 2]})
    with Client(server.url, api_key="sk") as client:
        answered = client.send(frame, prompt="In {place}", on_change=quiet)
    assert type(answered) is make
    assert list(answered.columns) == ["place", "answer", "error"]
    assert answered["answer"].to_list()[0] == "IN PERU"
    assert answered["error"].to_list()[1] == "no such place"
    if make is polars.DataFrame:
        assert answered.schema["error"] == polars.String
    assert frame["answer"].to_list() == [1, 2]


@pytest.mark.parametrize("make", FRAMES)
def test_typed_answers_become_a_column_for_each_field(server, batches, make):
    frame = make({"text": ["In Peru", "In Laos"]})
    with Client(server.url, api_key="sk") as client:
        answered = client.send(frame, answer_type=River, on_change=quiet)
    assert list(answered.columns) == ["text", "name", "length_km", "error"]
    assert answered["name"].to_list()[0] == "Peru"
    assert int(answered["length_km"].to_list()[0]) == 7
    assert "length_km" in answered["error"].to_list()[1]


@pytest.mark.parametrize("make", FRAMES)
async def test_the_async_client_takes_a_dataframe(server, batches, make):
    async with AsyncClient(server.url, api_key="sk") as client:
        answered = await client.send(make({"text": ["Peru"]}), on_change=quiet)
    assert answered["answer"].to_list() == ["PERU"]


def test_the_index_of_a_dataframe_stays(server, batches):
    frame = pandas.DataFrame({"text": ["Peru", "Laos"]}, index=[7, 3])
    with Client(server.url, api_key="sk") as client:
        answered = client.send(frame, on_change=quiet)
    assert answered.index.to_list() == [7, 3]
    assert answered.loc[3, "answer"] == "LAOS"


@pytest.mark.parametrize("make", FRAMES)
def test_vectors_are_the_answers_of_embeddings(server, batches, make):
    with Client(server.url, api_key="sk") as client:
        answered = client.send(make({"text": ["a", "bcd"]}), endpoint="/v1/embeddings", on_change=quiet)
    assert [list(vector) for vector in answered["answer"]] == [[1.0, 1.0], [1.0, 3.0]]
    assert batches.created["endpoint"] == "/v1/embeddings"


@pytest.mark.parametrize("make", FRAMES)
def test_a_missing_value_is_not_sent(server, batches, make):
    with (
        Client(server.url, api_key="sk") as client,
        pytest.raises(RequestError, match="row 2 has no value for 'text'"),
    ):
        client.send(make({"text": ["Peru", None]}), on_change=quiet)


@pytest.mark.parametrize("make", FRAMES)
def test_rows_have_values_that_json_can_have(make):
    frame = make({"n": [1, 2], "share": [0.5, None], "flag": [True, False], "messages": [[{"a": 1}], []]})
    bodies = list(rows_of(frame, prompt=None))
    assert json.loads(json.dumps(bodies)) == [
        {"n": 1, "share": 0.5, "flag": True, "messages": [{"a": 1}]},
        {"n": 2, "flag": False, "messages": []},
    ]
    fields = list(rows_of(frame, prompt="{n}"))
    assert fields[1]["share"] is None


def test_missing_values_of_pandas_are_missing():
    frame = pandas.DataFrame({"a": [pandas.NA], "b": [pandas.NaT], "c": [float("nan")], "d": ["x"]})
    assert list(rows_of(frame, prompt=None)) == [{"d": "x"}]


def test_a_column_of_texts_is_a_prompt_unless_there_are_bodies():
    assert prompt_for(polars.DataFrame({"text": ["a"]}), None) == "{text}"
    assert prompt_for(polars.DataFrame({"text": ["a"], "n": [1]}), "{n}") == "{n}"
    assert prompt_for(polars.DataFrame({"text": ["a"], "messages": [[]]}), None) is None


@pytest.mark.parametrize("make", [pandas.Series, polars.Series])
def test_a_series_is_a_list_of_texts(server, batches, make):
    with Client(server.url, api_key="sk") as client:
        answers = client.send(make(["Peru", "Laos"]), on_change=quiet)
        assert [answer.text for answer in answers] == ["PERU", "LAOS"]


def test_a_lazy_frame_is_refused(server):
    with Client(server.url, api_key="sk") as client, pytest.raises(RequestError, match="collect"):
        client.send(polars.DataFrame({"text": ["a"]}).lazy())


def made(custom_id: str, **changes) -> Answer:
    fields = {"custom_id": custom_id, "request": {}, "status_code": 200, "body": chat("yes"), "error": None}
    return Answer(**fields | changes)


@pytest.mark.parametrize(("library", "make"), [("pandas", FRAMES[0]), ("polars", FRAMES[1])])
def test_answers_become_a_dataframe(library, make):
    late = {"code": "batch_expired", "message": "late"}
    answers = [
        made("a"),
        made("b", status_code=None, body=None, error=late),
        made("c", status_code=500, body="oops"),
        made("d", status_code=None, body=None),
    ]
    frame = to_frame(answers, library=library)
    assert type(frame) is make
    assert list(frame.columns) == ["custom_id", "answer", "error", "status_code"]
    assert frame["custom_id"].to_list() == ["a", "b", "c", "d"]
    assert frame["answer"].to_list()[0] == "yes"
    assert frame["error"].to_list()[1:] == ["late", "HTTP 500", "not answered"]


def test_instances_are_in_a_dataframe_as_json_has_them():
    frame = to_frame([made("a", parsed=River(name="Amu", length_km=9))], library="polars")
    assert frame["answer"].to_list() == [{"name": "Amu", "length_km": 9}]


def test_the_imported_library_is_taken(monkeypatch):
    monkeypatch.delitem(sys.modules, "pandas")
    assert frames._installed() == "polars"
    monkeypatch.delitem(sys.modules, "polars")
    monkeypatch.setattr(frames, "find_spec", lambda name: name == "polars" or None)
    assert frames._installed() == "polars"
    monkeypatch.setattr(frames, "find_spec", lambda _: None)
    with pytest.raises(SetupError, match="pandas or polars"):
        to_frame([])


def test_the_client_imports_neither_library():
    program = (
        "import sys; from nightmill.client import Client; Client(); "
        "print({'pandas', 'polars', 'IPython'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
