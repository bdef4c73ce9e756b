"""Texts and typed answers through a whole batch, by both clients, against a server with chosen answers."""

import asyncio
import inspect
import json

import pytest
from pydantic import BaseModel

from nightmill.client import Client, session
from nightmill.client.async_session import AsyncClient
from nightmill.errors import NotFoundError, RequestError, UnavailableError
from tests.client.batch_server import BatchServer, chat


class River(BaseModel):
    name: str
    length_km: int


def reply(line: dict) -> tuple[int, object]:
    text = line["body"]["messages"][0]["content"]
    if "nowhere" in text:
        return 400, {"error": {"message": "no such place", "code": "bad"}}
    if "response_format" in line["body"]:
        return 200, chat(json.dumps({"name": text[-4:], "length_km": 7 if "Peru" in text else "long"}))
    return 200, chat(text.upper())


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(session, "FIRST_POLL_S", 0.001)
    monkeypatch.setattr(session, "LONGEST_POLL_S", 0.002)


@pytest.fixture
def batches(server) -> BatchServer:
    server.answer = BatchServer(reply)
    return server.answer


def quiet(_batch: object) -> None: ...


def by_client(url: str, rows, **options) -> list:
    with Client(url, api_key="sk") as client:
        return list(client.send(rows, **{"on_change": quiet} | options))


def by_async_client(url: str, rows, **options) -> list:
    async def main() -> list:
        async with AsyncClient(url, api_key="sk") as client:
            return [answer async for answer in client.send(rows, **{"on_change": quiet} | options)]

    return asyncio.run(main())


@pytest.fixture(params=[by_client, by_async_client])
def send(request, server, batches):
    return lambda rows, **options: request.param(server.url, rows, **options)


def test_texts_are_answered_in_their_order(send, batches):
    answers = send(["Peru", "nowhere", "Laos"], prompt="A river in {text}", parameters={"temperature": 0})
    assert [answer.text for answer in answers] == ["A RIVER IN PERU", None, "A RIVER IN LAOS"]
    assert [answer.error_message for answer in answers] == [None, "no such place", None]
    assert [line["body"]["temperature"] for line in batches.lines] == [0, 0, 0]
    assert [line["body"]["model"] for line in batches.lines] == ["m", "m", "m"]
    assert batches.created["endpoint"] == "/v1/chat/completions"


def test_a_server_with_several_models_is_not_guessed(send, batches):
    batches.models = ["a", "b"]
    with pytest.raises(RequestError, match="pass model=, one of: a, b"):
        send(["Peru"])
    assert [answer.text for answer in send(["Peru"], model="b")] == ["PERU"]


def test_typed_answers_are_instances_and_failures_are_kept(send, batches):
    rivers = send(["Peru", "Laos", "nowhere"], prompt="A river in {text}", answer_type=River)
    assert [answer.parsed for answer in rivers] == [River(name="Peru", length_km=7), None, None]
    assert [answer.is_ok for answer in rivers] == [True, False, False]
    assert "length_km" in rivers[1].error_message
    assert rivers[2].error_message == "no such place"
    assert batches.lines[0]["body"]["response_format"]["json_schema"]["name"] == "River"


def test_one_row_instead_of_a_list_is_refused(send):
    for row in ("Peru", {"messages": []}):
        with pytest.raises(RequestError, match="not one row"):
            send(row)


def test_a_path_instead_of_rows_is_refused(send, tmp_path):
    with pytest.raises(RequestError, match="submit_file"):
        send(tmp_path / "in.jsonl")


def test_an_unknown_argument_is_refused(send):
    with pytest.raises(TypeError, match="no argument 'modle'; did you mean 'model'"):
        send(["Peru"], modle="m")
    with pytest.raises(TypeError, match=r"parameters=\{'temperature': ...\}"):
        send(["Peru"], temperature=0)


def test_what_belongs_to_the_batch_is_sent(send, batches):
    send(["Peru"], completion_window="2h", metadata={"a": "b"}, priority=3)
    created = {name: batches.created[name] for name in ("completion_window", "metadata", "nightmill")}
    assert created == {"completion_window": "2h", "metadata": {"a": "b"}, "nightmill": {"priority": 3}}


def test_a_wait_that_ends_early_says_how_to_go_on(send, batches):
    batches.status = "in_progress"
    with pytest.raises(UnavailableError, match="still in_progress") as raised:
        send(["Peru"], timeout_s=0.01)
    assert raised.value.__notes__ == [
        "batch_1 continues on the server; read it later with client.answers('batch_1')"
    ]


def test_progress_is_shown_on_stderr(send, capsys):
    send(["Peru"], on_change=None)
    assert "completed: 1 of 1 done" in capsys.readouterr().err


def test_a_short_outage_of_the_server_is_shown_and_survived(send, server, batches, capsys):
    batches.status = "in_progress"
    polls = 0

    def answer(asked):
        nonlocal polls
        if asked.path != "/v1/batches/batch_1":
            return batches(asked)
        polls += 1
        if polls == 2:
            return 503, b"{}", {"x-should-retry": "false"}
        if polls > 2:
            batches.status = "completed"
        return batches(asked)

    server.answer = answer
    assert [answer.text for answer in send(["Peru"], on_change=None)] == ["PERU"]
    assert "no answer from the server" in capsys.readouterr().err


async def test_rows_may_come_one_by_one(server, batches):
    async def rows():
        for text in ("Peru", "Laos"):
            await asyncio.sleep(0)
            yield text

    async with AsyncClient(server.url, api_key="sk") as client:
        answers = [answer async for answer in client.send(rows(), on_change=quiet)]
    assert [answer.text for answer in answers] == ["PERU", "LAOS"]


async def test_other_tasks_run_while_rows_are_written(server, batches):
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    def rows():
        seen = turns
        for number in range(400):
            yield str(number)
        assert turns > seen

    async with AsyncClient(server.url, api_key="sk") as client:
        counting = asyncio.create_task(count())
        await client.submit(rows(), model="m")
        counting.cancel()


async def test_the_async_client_reads_what_the_client_reads(server, batches, tmp_path):
    seen: list[str] = []
    async with AsyncClient(server.url, api_key="sk") as client:
        batch = await client.submit(["Peru"])
        ended = await client.wait(batch.id, on_change=lambda batch: seen.append(batch.status))
        assert (ended.status, seen) == ("completed", ["completed"])
        [answer] = [answer async for answer in client.answers(batch.id, answer_type=River)]
        assert answer.error["code"] == "invalid_answer"
        [line] = [line async for line in client.lines("file-out")]
        assert json.loads(line)["custom_id"] == "request-1"
        assert await client.save("file-out", str(tmp_path / "out.jsonl")) == len(line) + 1
        assert (tmp_path / "out.jsonl").read_bytes() == line + b"\n"
        with pytest.raises(NotFoundError):
            await client.wait("batch_2", on_change=quiet)


async def test_answers_of_an_unfinished_batch_are_refused_by_the_async_client(server, batches):
    async with AsyncClient(server.url, api_key="sk") as client:
        batch = await client.submit(["Peru"])
        batches.status = "in_progress"
        with pytest.raises(UnavailableError, match="batch_1 is in_progress"):
            await anext(client.answers(batch.id))


async def test_an_async_download_that_ends_early_is_an_error(server, tmp_path):
    server.answer = lambda _: (200, b"abc", {"content-length": "5"})
    async with AsyncClient(server.url, api_key="sk") as client:
        with pytest.raises(UnavailableError, match="the download of file-1 broke"):
            await client.save("file-1", tmp_path / "out.jsonl")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", [name for name in vars(Client) if not name.startswith("_")])
def test_the_async_client_has_every_method_with_the_same_parameters(name):
    ours, theirs = inspect.signature(getattr(Client, name)), inspect.signature(getattr(AsyncClient, name))
    assert list(ours.parameters) == list(theirs.parameters)
    defaults = {parameter.name: parameter.default for parameter in ours.parameters.values()}
    assert defaults == {parameter.name: parameter.default for parameter in theirs.parameters.values()}


def test_the_async_client_has_every_attribute_and_its_operations():
    with Client() as client:
        both = AsyncClient()
        for name, part in vars(client).items():
            if name == "openai":
                continue
            twin = getattr(both, name)
            public = {method for method in dir(part) if not method.startswith("_")}
            assert public <= {*dir(twin), *SYNC_ONLY}, name


# They write to files, or serve one command.
SYNC_ONLY = {"copy_validation", "save_validation", "document_if_known", "sentences"}
