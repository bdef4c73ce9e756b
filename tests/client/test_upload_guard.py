"""A batch that is refused leaves no upload behind; what the server takes is known before an upload."""

import json
from collections.abc import Callable
from pathlib import Path

import openai
import pytest

from nightmill.client import Client
from nightmill.client.async_session import AsyncClient
from nightmill.client.upload_guard import AcceptedValues, accepted_values
from nightmill.errors import RequestError
from tests.client.conftest import Server

FILE = {"id": "file-1", "object": "file", "bytes": 2, "created_at": 1, "filename": "x", "purpose": "batch"}


def document(**enums: list[str]) -> bytes:
    properties = {name: {"type": "string", "enum": values} for name, values in enums.items()}
    return json.dumps(
        {"components": {"schemas": {"CreateBatchRequest": {"properties": properties}}}}
    ).encode()


@pytest.fixture
def path(tmp_path) -> Path:
    path = tmp_path / "in.jsonl"
    path.write_text("{}")
    return path


def test_a_nightmill_server_says_what_it_takes(server: Server, client: Client):
    answer = document(endpoint=["/v1/embeddings"], completion_window=["24h", "2h"])
    server.answer = lambda _: (200, answer, {})
    accepted = accepted_values(client.openai)
    assert accepted == AcceptedValues(("/v1/embeddings",), ("24h", "2h"))
    assert [asked.path for asked in server.asked] == ["/openapi.json"]
    accepted.refuse_others(endpoint="/v1/embeddings", window="2h")
    with pytest.raises(RequestError, match="no completion window '1h'; it has 24h, 2h"):
        accepted.refuse_others(endpoint="/v1/embeddings", window="1h")
    with pytest.raises(RequestError, match="no endpoint '/v1/x' for batches; it has /v1/embeddings"):
        accepted.refuse_others(endpoint="/v1/x", window="2h")


@pytest.mark.parametrize(
    "answer",
    [
        (404, b"{}", {}),
        (200, b"<html>", {"content-type": "text/html"}),
        (200, b"[]", {}),
        (200, b'{"components": {"schemas": {"CreateBatchRequest": null}}}', {}),
        (200, document(), {}),
    ],
)
def test_another_server_takes_anything_before_the_upload(server: Server, client: Client, answer):
    server.answer = lambda _: answer
    accepted = accepted_values(client.openai)
    assert accepted == AcceptedValues()
    accepted.refuse_others(endpoint="/v1/x", window="1h")


def refusing(server: Server, status: int) -> None:
    def answer(asked) -> tuple[int, bytes, dict[str, str]]:
        if asked.path == "/v1/batches":
            return status, b'{"error": {"message": "no"}}', {"x-should-retry": "false"}
        return 200, json.dumps(FILE).encode(), {}

    server.answer = answer


@pytest.mark.parametrize("status", [400, 403, 429])
def test_the_upload_of_a_refused_batch_is_deleted(server: Server, client: Client, path: Path, status: int):
    refusing(server, status)
    with pytest.raises(openai.APIStatusError):
        client.submit_file(path, endpoint="/v1/embeddings")
    assert [f"{asked.method} {asked.path}" for asked in server.asked] == [
        "POST /v1/files",
        "POST /v1/batches",
        "DELETE /v1/files/file-1",
    ]


async def test_the_async_client_leaves_no_upload_either(server: Server, path: Path):
    refusing(server, 400)
    async with AsyncClient(server.url, api_key="x") as client:
        with pytest.raises(openai.BadRequestError):
            await client.submit_file(path, endpoint="/v1/embeddings")
        assert server.asked[-1].method == "DELETE"
        refusing(server, 500)
        with pytest.raises(openai.InternalServerError) as failed:
            await client.submit([{"messages": []}], model="m")
    assert "nightmill files delete file-1" in failed.value.__notes__[0]


def test_a_refusal_is_reported_even_if_the_upload_cannot_be_deleted(
    server: Server, client: Client, path: Path
):
    refusing(server, 400)
    answers = server.answer
    server.answer = lambda asked: (409, b"{}", {}) if asked.method == "DELETE" else answers(asked)
    with pytest.raises(openai.BadRequestError):
        client.submit_file(path, endpoint="/v1/embeddings")


def test_the_upload_stays_while_the_batch_may_exist(server: Server, client: Client, path: Path):
    refusing(server, 500)
    with pytest.raises(openai.InternalServerError) as failed:
        client.submit_file(path, endpoint="/v1/embeddings")
    assert server.asked[-1].path == "/v1/batches"
    assert "nightmill files delete file-1" in failed.value.__notes__[0]


def test_rows_of_a_refused_batch_leave_no_upload(
    server: Server, client: Client, batch_json: Callable[..., bytes]
):
    refusing(server, 400)
    with pytest.raises(openai.BadRequestError):
        client.submit([{"messages": []}], model="m")
    assert server.asked[-1].method == "DELETE"
