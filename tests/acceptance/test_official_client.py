"""Every operation through the official `openai` package, against a real server process."""

import asyncio
import hashlib
import json
from typing import Any

import openai
import pytest
from openai.types import CreateEmbeddingResponse, FileObject, ImagesResponse, ModerationCreateResponse, Video
from openai.types.chat import ChatCompletion
from openai.types.completion import Completion
from openai.types.responses import Response
from pydantic import BaseModel

from tests.acceptance.conftest import CHAT, Server, ended, until

BATCH_KEYS = [
    "id",
    "object",
    "endpoint",
    "model",
    "errors",
    "input_file_id",
    "completion_window",
    "status",
    "output_file_id",
    "error_file_id",
    "created_at",
    "in_progress_at",
    "expires_at",
    "finalizing_at",
    "completed_at",
    "failed_at",
    "expired_at",
    "cancelling_at",
    "cancelled_at",
    "request_counts",
    "usage",
    "metadata",
]
NO_USAGE = {
    "input_tokens": 0,
    "output_tokens": 0,
    "total_tokens": 0,
    "input_tokens_details": {"cached_tokens": 0},
    "output_tokens_details": {"reasoning_tokens": 0},
}
FOR_EACH_ENDPOINT: dict[str, tuple[dict[str, Any], type[BaseModel]]] = {
    "/v1/responses": ({"model": "m", "input": "Hi"}, Response),
    CHAT: ({"model": "m", "messages": [{"role": "user", "content": "Hi"}]}, ChatCompletion),
    "/v1/embeddings": ({"model": "m", "input": ["a", "b"]}, CreateEmbeddingResponse),
    "/v1/completions": ({"model": "m", "prompt": "Hi"}, Completion),
    "/v1/moderations": ({"model": "m", "input": "Hi"}, ModerationCreateResponse),
    "/v1/images/generations": ({"model": "m", "prompt": "a mill"}, ImagesResponse),
    "/v1/images/edits": (
        {"model": "m", "prompt": "at night", "images": [{"image_url": "https://a.test/a.png"}]},
        ImagesResponse,
    ),
    "/v1/videos": ({"model": "m", "prompt": "a mill turns"}, Video),
}


# --- a whole batch -----------------------------------------------------------------------------------


def test_a_batch_from_upload_to_answers(client, server, jsonl):
    uploaded = client.files.create(file=("in.jsonl", jsonl(5)), purpose="batch")
    batch = client.batches.create(
        input_file_id=uploaded.id,
        endpoint=CHAT,
        completion_window="24h",
        metadata={"team": "support", "nächste": "Ω"},
    )
    raw = json.loads(client.batches.with_raw_response.retrieve(batch.id).text)
    assert list(raw) == BATCH_KEYS
    assert batch.status == "validating"
    assert batch.expires_at == batch.created_at + 86_400
    assert batch.to_dict()["request_counts"] == {"total": 0, "completed": 0, "failed": 0}
    assert batch.to_dict()["usage"] == NO_USAGE

    batch = ended(client, batch.id)
    assert batch.status == "completed"
    assert batch.model == "m"
    assert batch.metadata == {"team": "support", "nächste": "Ω"}
    assert (batch.errors, batch.error_file_id) == (None, None)
    assert batch.request_counts.to_dict() == {"total": 5, "completed": 5, "failed": 0}
    stamps = [batch.created_at, batch.in_progress_at, batch.finalizing_at, batch.completed_at]
    assert stamps == sorted(stamps)
    assert (batch.failed_at, batch.expired_at, batch.cancelling_at, batch.cancelled_at) == (None,) * 4

    rows = server.rows(batch.output_file_id)
    assert [list(row) for row in rows] == [["id", "custom_id", "response", "error"]] * 5
    assert [row["custom_id"] for row in rows] == [f"line-{number}" for number in range(5)]
    assert {tuple(row["response"]) for row in rows} == {("status_code", "request_id", "body")}
    assert {(row["response"]["status_code"], row["error"]) for row in rows} == {(200, None)}
    assert all(row["id"].startswith("batch_req_") for row in rows)
    assert len({row["id"] for row in rows}) == 5
    usage = [row["response"]["body"]["usage"] for row in rows]
    assert batch.usage.input_tokens == sum(one["prompt_tokens"] for one in usage)
    assert batch.usage.output_tokens == sum(one["completion_tokens"] for one in usage)
    assert batch.usage.total_tokens == sum(one["total_tokens"] for one in usage)

    output = client.files.retrieve(batch.output_file_id)
    assert (output.purpose, output.filename) == ("batch_output", f"{batch.id}_output.jsonl")
    assert output.expires_at == output.created_at + 30 * 86_400


async def test_the_async_client_behaves_the_same(server, jsonl):
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="sk-none", max_retries=0) as client:
        uploaded = await client.files.create(file=("in.jsonl", jsonl(3)), purpose="batch")
        assert (await client.files.wait_for_processing(uploaded.id)).status == "processed"
        batch = await client.batches.create(input_file_id=uploaded.id, endpoint=CHAT, completion_window="24h")
        async with asyncio.timeout(60):
            # Clients poll.
            while (batch := await client.batches.retrieve(batch.id)).status != "completed":  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        content = await client.files.content(batch.output_file_id)
        assert len(content.text.splitlines()) == 3
        assert batch.id in {listed.id async for listed in client.batches.list(limit=1)}
        with pytest.raises(openai.ConflictError):
            await client.batches.cancel(batch.id)
        assert (await client.files.delete(uploaded.id)).deleted


@pytest.mark.parametrize("endpoint", FOR_EACH_ENDPOINT)
def test_each_endpoint_is_answered_in_its_own_format(server, jsonl, endpoint):
    body, shape = FOR_EACH_ENDPOINT[endpoint]
    batch = server.run(jsonl(2, url=endpoint, body=body), endpoint=endpoint)
    assert batch.status == "completed", batch
    assert (batch.endpoint, batch.request_counts.completed) == (endpoint, 2)
    for row in server.rows(batch.output_file_id):
        shape.model_validate(row["response"]["body"])


def test_lines_that_the_model_server_refuses_are_in_the_error_file(client, server, jsonl):
    refused = jsonl(1, body={"model": "m", "messages": []}).replace(b"line-0", b"refused")
    batch = server.run(jsonl(2) + refused)
    assert batch.status == "completed"
    assert batch.request_counts.to_dict() == {"total": 3, "completed": 2, "failed": 1}
    assert len(server.rows(batch.output_file_id)) == 2
    (row,) = server.rows(batch.error_file_id)
    assert (row["custom_id"], row["error"]) == ("refused", None)
    assert row["response"]["status_code"] == 400
    assert set(row["response"]["body"]["error"]) == {"message", "type", "param", "code"}
    assert client.files.retrieve(batch.error_file_id).filename == f"{batch.id}_error.jsonl"


def test_a_batch_without_a_successful_line_is_completed_without_an_output_file(server, jsonl):
    batch = server.run(jsonl(2, body={"model": "m", "messages": []}))
    assert (batch.status, batch.output_file_id) == ("completed", None)
    assert batch.request_counts.to_dict() == {"total": 2, "completed": 0, "failed": 2}
    assert len(server.rows(batch.error_file_id)) == 2


def test_the_input_file_may_be_deleted_after_the_batch_and_the_results_stay(client, server, jsonl):
    batch = server.run(jsonl(2))
    client.files.delete(batch.input_file_id)
    assert len(server.rows(batch.output_file_id)) == 2


def test_an_input_file_deleted_right_after_the_create_fails_the_batch_or_is_still_read(client, jsonl):
    uploaded = client.files.create(file=jsonl(1), purpose="batch")
    batch = client.batches.create(input_file_id=uploaded.id, endpoint=CHAT, completion_window="24h")
    client.files.delete(uploaded.id)
    batch = ended(client, batch.id)
    if batch.status == "failed":
        assert batch.errors.data[0].message.startswith(f"Cannot find file {uploaded.id}, or ")
    else:
        assert batch.status == "completed"


def test_output_files_expire_as_the_batch_requests(client, server, jsonl):
    batch = server.run(jsonl(1), output_expires_after={"anchor": "created_at", "seconds": 3_600})
    output = client.files.retrieve(batch.output_file_id)
    assert output.expires_at == output.created_at + 3_600
    assert "output_expires_after" not in batch.to_dict()


def test_an_invalid_file_fails_with_all_its_invalid_lines(client, server, jsonl):
    good = jsonl(1)
    lines = [
        good,
        b"{\n",
        b'{"custom_id": "b", "method": "POST", "url": "/v1/chat/completions"}\n',
        good.replace(b"line-0", b"c").replace(b"POST", b"GET"),
        good.replace(b"line-0", b"d").replace(b"/v1/chat/completions", b"/v1/embeddings"),
        good,
        good.replace(b"line-0", b"e").replace(b'"m"', b'"other"'),
        good.replace(b"line-0", b"f").replace(b'"model"', b'"stream": true, "model"'),
    ]
    batch = server.run(b"".join(lines))
    assert batch.status == "failed"
    assert batch.request_counts.to_dict() == {"total": 0, "completed": 0, "failed": 0}
    assert (batch.in_progress_at, batch.output_file_id, batch.error_file_id) == (None, None, None)
    assert batch.failed_at is not None
    assert batch.errors.object == "list"
    assert [(error.line, error.code, error.param) for error in batch.errors.data] == [
        (2, "invalid_json_line", None),
        (3, "missing_required_parameter", "body"),
        (4, "invalid_value", "method"),
        (5, "invalid_url", "url"),
        (6, "duplicate_custom_id", "custom_id"),
        (7, "mismatched_model", "body.model"),
        (8, "streaming_unsupported", "body.stream"),
    ]


def test_a_create_repeated_with_its_idempotency_key_returns_the_first_batch(client, jsonl):
    uploaded = client.files.create(file=jsonl(1), purpose="batch")
    asked = {"input_file_id": uploaded.id, "endpoint": CHAT, "completion_window": "24h"}
    headers = {"Idempotency-Key": "once and for all"}
    first = client.batches.create(**asked, extra_headers=headers)
    assert client.batches.create(**asked, extra_headers=headers).id == first.id
    ended(client, first.id)
    assert client.batches.create(**asked, extra_headers=headers).id == first.id
    assert client.batches.create(**asked).id != first.id
    with pytest.raises(openai.ConflictError) as caught:
        client.batches.create(**asked, metadata={"a": "b"}, extra_headers=headers)
    assert caught.value.code == "idempotency_key_reuse"


# --- lists --------------------------------------------------------------------------------------------


def test_pages_of_batches_have_no_gap_and_no_overlap(project, jsonl):
    client = project
    assert json.loads(client.batches.with_raw_response.list().text) == {
        "object": "list",
        "data": [],
        "first_id": None,
        "last_id": None,
        "has_more": False,
    }
    uploaded = client.files.create(file=jsonl(1), purpose="batch")
    made = [
        client.batches.create(input_file_id=uploaded.id, endpoint=CHAT, completion_window="24h").id
        for _ in range(23)
    ]
    first = client.batches.list()
    assert (len(first.data), first.has_more) == (20, True)
    stamps = [batch.created_at for batch in first.data]
    assert stamps == sorted(stamps, reverse=True)
    for limit in (1, 4, 22, 23, 100):
        seen = [batch.id for batch in client.batches.list(limit=limit)]
        assert (len(seen), set(seen)) == (23, set(made))
    assert not client.batches.list(limit=23).has_more
    assert client.batches.list(limit=22).has_more


def test_a_new_batch_does_not_change_later_pages(client, server, jsonl):
    for _ in range(3):
        server.run(jsonl(1))
    page = client.batches.list(limit=2)
    behind = [batch.id for batch in client.batches.list(after=page.data[-1].id, limit=2).data]
    server.run(jsonl(1))
    assert [batch.id for batch in client.batches.list(after=page.data[-1].id, limit=2).data] == behind


# --- cancel -------------------------------------------------------------------------------------------


def test_a_cancel_stops_sending_and_keeps_the_answers(stubbed, jsonl):
    server, upstream = stubbed
    upstream.delay_s = 0.05
    client = server.client()
    uploaded = client.files.create(file=jsonl(2_000), purpose="batch")
    batch = client.batches.create(input_file_id=uploaded.id, endpoint=CHAT, completion_window="24h")
    until(lambda: client.batches.retrieve(batch.id).request_counts.completed > 0)

    batch = client.batches.cancel(batch.id)
    sent = len(upstream.requests)
    assert batch.status in {"cancelling", "cancelled"}
    assert batch.cancelling_at is not None
    batch = ended(client, batch.id)
    assert batch.status == "cancelled"
    # Two lines were in flight, and the worker learns of the cancel a moment later. All others were not sent.
    assert len(upstream.requests) - sent < 200
    assert batch.finalizing_at is None
    counts = batch.request_counts
    output, error = server.rows(batch.output_file_id), server.rows(batch.error_file_id)
    assert (counts.total, counts.completed, counts.failed) == (2_000, len(output), 0)
    assert len(output) + len(error) == 2_000
    assert {row["custom_id"] for row in output + error} == {f"line-{number}" for number in range(2_000)}
    assert {(row["response"], row["error"]["code"]) for row in error} == {(None, "batch_cancelled")}

    again = client.batches.cancel(batch.id)
    assert (again.status, again.output_file_id) == ("cancelled", batch.output_file_id)


def test_an_ended_batch_cannot_be_cancelled_and_the_client_does_not_retry(client, server, jsonl):
    for content, status in [(jsonl(1), "completed"), (jsonl(1) + b"{\n", "failed")]:
        batch = server.run(content)
        assert batch.status == status
        with pytest.raises(openai.ConflictError) as caught:
            server.client(max_retries=2).batches.cancel(batch.id)
        assert caught.value.body["message"] == f"Cannot cancel a batch with status '{status}'."
        assert caught.value.response.headers["x-should-retry"] == "false"


# --- completion windows -------------------------------------------------------------------------------


def test_a_batch_that_exceeds_its_completion_window_keeps_its_answers(serve, jsonl):
    slow = {"NIGHTMILL_EMULATOR__DELAY_S": "0.2"}
    server = serve("--emulate", "--window", "24h", "--window", "8s", "--concurrency", "2", environment=slow)
    server.run(jsonl(1))  # the worker is up
    batch = server.run(jsonl(200), completion_window="8s")  # a busy machine needs seconds for the first line
    assert batch.status == "expired"
    assert batch.expires_at == batch.created_at + 8
    assert (batch.expired_at >= batch.finalizing_at >= batch.expires_at, batch.completed_at) == (True, None)
    output, error = server.rows(batch.output_file_id), server.rows(batch.error_file_id)
    assert 0 < len(output) < 200
    assert len(output) + len(error) == 200
    assert batch.request_counts.to_dict() == {"total": 200, "completed": len(output), "failed": 0}
    assert {(row["response"], row["error"]["code"]) for row in error} == {(None, "batch_expired")}
    with pytest.raises(openai.BadRequestError) as caught:
        server.run(jsonl(1), completion_window="48h")
    assert (caught.value.param, caught.value.code) == ("completion_window", "invalid_value")


# --- files --------------------------------------------------------------------------------------------


def test_a_file_is_created_read_listed_downloaded_and_deleted(client, jsonl):
    content = jsonl(3)
    made = client.files.create(file=("Grüße \u2028 ../x.jsonl", content), purpose="batch")
    assert isinstance(made, FileObject)
    assert (made.bytes, made.status, made.purpose) == (len(content), "processed", "batch")
    assert made.filename == "Grüße \u2028 ../x.jsonl"
    assert made.expires_at == made.created_at + 30 * 86_400
    assert client.files.wait_for_processing(made.id, poll_interval=0.01).id == made.id
    assert client.files.retrieve(made.id) == made
    assert client.files.content(made.id).content == content
    assert client.files.list(purpose="batch", limit=1).data[0].id == made.id
    deleted = client.files.delete(made.id)
    assert (deleted.id, deleted.deleted) == (made.id, True)
    for gone in (client.files.retrieve, client.files.content, client.files.delete):
        with pytest.raises(openai.NotFoundError) as caught:
            gone(made.id)
        assert caught.value.body == {
            "message": f"No such File object: {made.id}",
            "type": "invalid_request_error",
            "param": "id",
            "code": None,
        }


def test_files_are_listed_in_pages_in_both_orders(project, jsonl):
    client = project
    made = [client.files.create(file=jsonl(1), purpose="batch").id for _ in range(5)]
    made.append(client.files.create(file=b"x", purpose="user_data").id)
    assert len(client.files.list().data) == 6
    newest_first = [file.id for file in client.files.list(limit=2)]
    assert set(newest_first) == set(made)
    assert [file.id for file in client.files.list(limit=4, order="asc")] == newest_first[::-1]
    assert {file.id for file in client.files.list(purpose="batch")} == set(made[:5])


@pytest.mark.parametrize("purpose", ["assistants", "batch", "fine-tune", "vision", "user_data", "evals"])
def test_each_purpose_is_accepted_and_expires_as_requested(client, jsonl, purpose):
    expiry = {"anchor": "created_at", "seconds": 3_600}
    made = client.files.create(file=jsonl(1), purpose=purpose, expires_after=expiry)
    assert (made.purpose, made.expires_at) == (purpose, made.created_at + 3_600)
    if purpose in {"assistants", "user_data"}:
        with pytest.raises(openai.BadRequestError, match=f"files of purpose: {purpose}"):
            client.files.content(made.id)
    else:
        assert client.files.content(made.id).content == jsonl(1)


def test_a_download_is_streamed(client, server, jsonl, tmp_path):
    content = jsonl(20_000)
    file_id = client.files.create(file=content, purpose="batch").id
    with client.files.with_streaming_response.content(file_id) as response:
        assert int(response.headers["content-length"]) == len(content)
        response.stream_to_file(tmp_path / "copy.jsonl")
    assert (tmp_path / "copy.jsonl").read_bytes() == content


# --- uploads ------------------------------------------------------------------------------------------


def test_a_file_uploaded_in_parts_can_be_used_by_a_batch(client, server, jsonl):
    content = jsonl(4_000)
    upload = client.uploads.upload_file_chunked(
        file=content,
        filename="parts.jsonl",
        bytes=len(content),
        mime_type="application/jsonl",
        purpose="batch",
        part_size=100_000,
        md5=hashlib.md5(content).hexdigest(),
    )
    assert (upload.status, upload.file.filename) == ("completed", "parts.jsonl")
    assert client.files.content(upload.file.id).content == content
    batch = client.batches.create(input_file_id=upload.file.id, endpoint=CHAT, completion_window="24h")
    assert ended(client, batch.id).request_counts.completed == 4_000


def test_a_path_is_uploaded_in_parts(client, jsonl, tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_bytes(jsonl(10))
    upload = client.uploads.upload_file_chunked(file=path, mime_type="application/jsonl", purpose="batch")
    assert client.files.content(upload.file.id).content == path.read_bytes()


def test_a_wrong_size_or_checksum_leaves_the_upload_pending(client):
    upload = client.uploads.create(bytes=4, filename="x", mime_type="text/plain", purpose="user_data")
    assert "file" not in upload.to_dict()
    short = client.uploads.parts.create(upload.id, data=b"abc")
    rest = client.uploads.parts.create(upload.id, data=b"d")
    with pytest.raises(openai.BadRequestError) as caught:
        client.uploads.complete(upload.id, part_ids=[short.id])
    assert caught.value.param == "bytes"
    with pytest.raises(openai.BadRequestError) as caught:
        client.uploads.complete(upload.id, part_ids=[short.id, rest.id], md5="0" * 32)
    assert caught.value.param == "md5"
    done = client.uploads.complete(
        upload.id, part_ids=[rest.id, short.id], md5=hashlib.md5(b"dabc").hexdigest()
    )
    assert (done.status, done.file.bytes) == ("completed", 4)


def test_a_cancelled_upload_accepts_no_parts_and_leaves_no_files(client, server):
    upload = client.uploads.create(bytes=4, filename="x", mime_type="text/plain", purpose="user_data")
    client.uploads.parts.create(upload.id, data=b"abc")
    assert client.uploads.cancel(upload.id).status == "cancelled"
    with pytest.raises(openai.BadRequestError):
        client.uploads.parts.create(upload.id, data=b"d")
    until(lambda: not server.blobs(f"uploads/{upload.id}"))


# --- models, errors -----------------------------------------------------------------------------------


def test_models_are_those_of_the_upstream(client):
    models = list(client.models.list())
    assert models
    assert client.models.retrieve(models[0].id).id == models[0].id
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("no-such-model")
    assert caught.value.code == "model_not_found"


def test_errors_are_raised_with_message_param_code_and_request_id(client):
    with pytest.raises(openai.NotFoundError) as caught:
        client.batches.retrieve("batch_" + "0" * 32)
    assert caught.value.body["message"] == f"No batch found with id 'batch_{'0' * 32}'."
    assert caught.value.request_id.startswith("req_")
    assert str(caught.value).startswith("Error code: 404 - No batch found")
    with pytest.raises(openai.BadRequestError) as caught:
        client.batches.retrieve("nonsense")
    assert (caught.value.param, caught.value.code) == ("batch_id", "invalid_value")
    with pytest.raises(openai.BadRequestError) as caught:
        client.batches.create(input_file_id="file-a", endpoint="/v1/audio/speech", completion_window="24h")
    assert (caught.value.param, caught.value.code) == ("endpoint", "invalid_value")
    with pytest.raises(openai.BadRequestError, match=r"Must be \.jsonl"):
        client.files.create(file=b"no json", purpose="batch")


@pytest.mark.parametrize("file_id", ["file-unknown", "file-" + "0" * 32])
def test_an_unknown_file_fails_the_batch_later(client, file_id):
    batch = client.batches.create(input_file_id=file_id, endpoint=CHAT, completion_window="24h")
    batch = ended(client, batch.id)
    assert batch.status == "failed"
    (error,) = batch.errors.data
    assert (error.code, error.param, error.line) == ("invalid_request", "file_id", None)


def test_the_base_url_may_end_in_a_slash(server: Server):
    with openai.OpenAI(base_url=f"{server.url}/v1/", api_key="any") as client:
        assert client.batches.list(limit=1).object == "list"
