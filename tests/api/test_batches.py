"""The four published operations, by the official client (docs/openai-behaviour.md 1.1, 2)."""

import asyncio
import itertools
import time
from dataclasses import replace

import openai
import pytest

from nightmill.core.batch import Batch, Event, LineError, Status, Tally, Usage
from nightmill.core.segment import Segment
from nightmill.ids import BatchId, ProjectId, WorkerId
from tests.store_doubles import with_verb

KEYS = [
    "id", "object", "endpoint", "model", "errors", "input_file_id", "completion_window", "status",
    "output_file_id", "error_file_id", "created_at", "in_progress_at", "expires_at", "finalizing_at",
    "completed_at", "failed_at", "expired_at", "cancelling_at", "cancelled_at", "request_counts", "usage",
    "metadata",
]  # fmt: skip
ENDPOINT = "/v1/chat/completions"
ROUTES_TO = {
    Status.VALIDATING: [],
    Status.FAILED: [Event.REJECTED],
    Status.IN_PROGRESS: [Event.ACCEPTED],
    Status.FINALIZING: [Event.ACCEPTED, Event.SETTLED],
    Status.COMPLETED: [Event.ACCEPTED, Event.SETTLED, Event.COMPLETED],
    Status.EXPIRED: [Event.ACCEPTED, Event.LAPSED, Event.EXPIRED],
    Status.CANCELLING: [Event.CANCEL_REQUESTED],
    Status.CANCELLED: [Event.CANCEL_REQUESTED, Event.CANCELLED],
}


def create(client, input_file_id, **options):
    options = {"endpoint": ENDPOINT, "completion_window": "24h"} | options
    return client.batches.create(input_file_id=input_file_id, **options)


async def duty_for(store, batch_id, status):
    """What a role does: takes duties until it has the one of this batch."""
    for worker in itertools.count():
        duty = await store.batch_leases.lease([status], WorkerId(f"worker_{worker}"), ttl_s=600)
        assert duty is not None
        if duty.batch.id == batch_id:
            return duty
    return None


async def accept(store, batch_id):
    duty = await duty_for(store, batch_id, Status.VALIDATING)
    after = replace(duty.batch.after(Event.ACCEPTED, now=time.time()), model="m", total=1)
    segments = [Segment(duty.batch.id, 0, 0, 1)]
    return await store.batch_leases.accept(duty, after, index_blob_key="index/1", segments=segments)


async def complete(store, batch_id):
    duty = await duty_for(store, batch_id, Status.FINALIZING)
    after = replace(duty.batch.after(Event.COMPLETED, now=time.time()), tally=Tally(completed=1))
    return await store.batch_leases.publish(duty, after, files=[])


def move(server, project, batch_id, *events):
    store = server.context.store
    for event in events:
        if event is Event.ACCEPTED:
            assert server.do(accept(store, batch_id))
        elif event is Event.COMPLETED:
            assert server.do(complete(store, batch_id))
        else:
            batch = server.do(store.batches.get(ProjectId(project), BatchId(batch_id)))
            after = batch.after(event, now=time.time())
            assert server.do(store.batches.move(after, expected=batch.status))


def test_a_new_batch_has_every_published_key_in_order(server, key, input_file_id):
    before = int(time.time())
    answer = server.send_json(
        "/v1/batches",
        {"input_file_id": input_file_id, "endpoint": ENDPOINT, "completion_window": "24h"},
        key=key,
    )
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    batch = answer.json()
    assert list(batch) == KEYS
    assert batch["id"].startswith("batch_")
    assert len(batch["id"]) == len("batch_") + 32
    assert before <= batch["created_at"] <= time.time()
    assert batch["expires_at"] == batch["created_at"] + 86_400
    assert batch["request_counts"] == {"total": 0, "completed": 0, "failed": 0}
    assert batch["usage"] == {
        "input_tokens": 0,
        "output_tokens": 0,
        "total_tokens": 0,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens_details": {"reasoning_tokens": 0},
    }
    assert (batch["object"], batch["status"], batch["endpoint"]) == ("batch", "validating", ENDPOINT)
    assert (batch["input_file_id"], batch["completion_window"]) == (input_file_id, "24h")
    stamps = [name for name in KEYS if name.endswith("_at") and name not in {"created_at", "expires_at"}]
    nulls = {"model", "errors", "output_file_id", "error_file_id", "metadata", *stamps}
    assert {name for name, value in batch.items() if value is None} == nulls


def test_a_batch_is_read_back_as_it_was_created_and_the_roles_are_woken(server, client, input_file_id):
    count_before = len(server.notifications)
    metadata = {"näme": "日本 \u2028", "": "", "k" * 64: "v" * 512}
    batch = create(
        client,
        input_file_id,
        metadata=metadata,
        output_expires_after={"anchor": "created_at", "seconds": 3_600},
    )
    assert batch.metadata == metadata
    assert len(server.notifications) > count_before
    assert client.batches.retrieve(batch.id) == batch


def test_the_options_of_a_batch_are_stored(server, client, project, input_file_id):
    batch = create(client, input_file_id, output_expires_after={"anchor": "created_at", "seconds": 7_200})
    stored = server.do(server.context.store.batches.get(ProjectId(project), BatchId(batch.id)))
    assert stored.output_expires_after_s == 7_200
    assert stored.input_blob_key
    assert stored.metadata is None


async def test_the_async_client_can_call_all_four_operations(server, key, input_file_id):
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0) as client:
        batch = await create(client, input_file_id)
        assert (await client.batches.retrieve(batch.id)).id == batch.id
        assert [one.id async for one in client.batches.list()] == [batch.id]
        assert (await client.batches.cancel(batch.id)).status == "cancelling"


@pytest.mark.parametrize("case", ["unknown", "foreign", "deleted", "other purpose"])
def test_a_missing_or_unsuitable_input_file_is_accepted_and_left_to_intake(server, client, project, case):
    if case == "unknown":
        file_id = "file-" + "1" * 22
    else:
        owner = server.client(server.new_key("somebody else")) if case == "foreign" else client
        purpose = "user_data" if case == "other purpose" else "batch"
        file_id = owner.files.create(file=("a.jsonl", b'{"custom_id": "a"}\n'), purpose=purpose).id
    if case == "deleted":
        client.files.delete(file_id)
    batch = create(client, file_id)
    assert batch.status == "validating"
    assert batch.input_file_id == file_id
    stored = server.do(server.context.store.batches.get(ProjectId(project), BatchId(batch.id)))
    assert stored.input_blob_key == ""


def test_null_for_an_optional_parameter_counts_as_omitted(server, key, input_file_id):
    document = {"input_file_id": input_file_id, "endpoint": ENDPOINT, "completion_window": "24h"}
    answer = server.send_json(
        "/v1/batches", document | {"metadata": None, "output_expires_after": None}, key=key
    )
    assert answer.status == 200
    assert answer.json()["metadata"] is None


def test_unknown_keys_are_ignored(client, input_file_id):
    assert create(client, input_file_id, extra_body={"priority": 3, "model": None}).status == "validating"


def test_empty_metadata_stays_an_empty_object(client, input_file_id):
    assert create(client, input_file_id, metadata={}).metadata == {}


def test_other_windows_and_fewer_endpoints_come_from_settings(serve):
    settings = {"limits": {"completion_windows": ["24h", "90m", "7d"], "endpoints": ["/v1/embeddings"]}}
    client = serve(settings=settings).client()
    batch = create(client, "file-x", endpoint="/v1/embeddings", completion_window="90m")
    assert batch.expires_at == batch.created_at + 5_400
    batch = create(client, "file-x", endpoint="/v1/embeddings", completion_window="7d")
    assert batch.expires_at == batch.created_at + 7 * 86_400
    with pytest.raises(openai.BadRequestError, match="Supported values are: '24h', '90m', and '7d'"):
        create(client, "file-x", endpoint="/v1/embeddings", completion_window="48h")
    with pytest.raises(openai.BadRequestError, match="Supported values are: '/v1/embeddings'"):
        create(client, "file-x")


# --- list --------------------------------------------------------------------------------------------


def test_an_empty_list_has_null_as_first_and_last_id(server, key):
    answer = server.send("GET", "/v1/batches", key=key)
    assert answer.body == (b'{"object":"list","data":[],"first_id":null,"last_id":null,"has_more":false}')


def test_a_list_is_newest_first_and_pages_meet_without_gap_or_overlap(client, input_file_id):
    ids = [create(client, input_file_id).id for _ in range(7)]
    assert [batch.id for batch in client.batches.list()] == ids[::-1]
    assert [batch.id for batch in client.batches.list(limit=2)] == ids[::-1]
    page = client.batches.list(limit=3)
    assert [batch.id for batch in page.data] == ids[:3:-1]
    assert page.has_more
    assert page.first_id == ids[6]
    assert page.last_id == ids[4]
    page = client.batches.list(limit=3, after=page.last_id)
    page = client.batches.list(limit=1, after=page.last_id)
    assert [batch.id for batch in page.data] == [ids[0]]
    assert not page.has_more


def test_a_full_last_page_has_no_more(client, input_file_id):
    for _ in range(3):
        create(client, input_file_id)
    assert client.batches.list(limit=3).has_more is False
    assert client.batches.list(limit=2).has_more is True


def test_a_page_has_twenty_batches_by_default(client):
    for _ in range(21):
        create(client, "file-none")
    page = client.batches.list()
    assert len(page.data) == 20
    assert page.has_more
    assert len(client.batches.list(limit=100).data) == 21


def test_an_empty_after_counts_as_no_cursor(server, key, client):
    create(client, "file-none")
    assert len(server.send("GET", "/v1/batches?after=", key=key).json()["data"]) == 1


@pytest.mark.parametrize(
    ("limit", "message", "code"),
    [
        (
            "0",
            "Invalid 'limit': integer below minimum value. Expected a value >= 1, but got 0 instead.",
            "integer_below_min_value",
        ),
        (
            "-5",
            "Invalid 'limit': integer below minimum value. Expected a value >= 1, but got -5 instead.",
            "integer_below_min_value",
        ),
        (
            "101",
            "Invalid 'limit': integer above maximum value. Expected a value <= 100, but got 101 instead.",
            "integer_above_max_value",
        ),
        (
            "99999999999999999999999",
            (
                "Invalid 'limit': integer above maximum value. "
                "Expected a value <= 100, but got 99999999999999999999999 instead."
            ),
            "integer_above_max_value",
        ),
        ("9" * 5_000, None, "integer_above_max_value"),
        ("-" + "9" * 5_000, None, "integer_below_min_value"),
        (
            "ten",
            "Invalid type for 'limit': expected an integer, but got a string instead.",
            "invalid_type",
        ),
        ("", None, "invalid_type"),
        ("1.5", None, "invalid_type"),
        ("%00", None, "invalid_type"),
        ("%ff", None, "invalid_type"),
        ("null", None, "invalid_type"),
    ],
)
def test_an_invalid_limit_is_named_in_the_error(server, key, limit, message, code):
    answer = server.send("GET", f"/v1/batches?limit={limit}", key=key)
    assert answer.status == 400
    assert (answer.error["param"], answer.error["code"]) == ("limit", code)
    assert answer.error["type"] == "invalid_request_error"
    assert message is None or answer.error["message"] == message
    assert len(answer.body) < 1_000


@pytest.mark.parametrize(
    "after", ["batch_" + "0" * 32, "nonsense", "%00", "%ff", "a" * 500, "'%3B--", "%E6%97%A5"]
)
def test_an_unknown_cursor_is_named_in_the_error(server, key, client, after):
    create(client, "file-none")
    answer = server.send("GET", f"/v1/batches?after={after}", key=key)
    assert answer.status == 404
    assert answer.error["param"] == "after"
    if after.isalnum() and after.isascii():
        assert after[:50] in answer.error["message"]


# --- cancel ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (None, {}),
        (b"", {"Content-Type": "application/json"}),
        (b"{}", {"Content-Type": "application/json"}),
        (b"{}", {}),
        (b"null", {"Content-Type": "text/plain"}),
        (b"{", {"Content-Type": "application/json"}),
    ],
)
def test_cancel_ignores_its_body(server, key, client, body, headers):
    count_before = len(server.notifications)
    batch = create(client, "file-none")
    answer = server.send("POST", f"/v1/batches/{batch.id}/cancel", body, headers, key=key)
    assert answer.status == 200
    assert list(answer.json()) == KEYS
    assert answer.json()["status"] == "cancelling"
    assert answer.json()["cancelling_at"] >= batch.created_at
    assert client.batches.retrieve(batch.id).status == "cancelling"
    assert len(server.notifications) >= count_before + 2


@pytest.mark.parametrize("status", [Status.VALIDATING, Status.IN_PROGRESS])
def test_cancel_sets_a_running_batch_to_cancelling(server, client, project, status):
    batch = create(client, "file-none")
    move(server, project, batch.id, *ROUTES_TO[status])
    cancelled = client.batches.cancel(batch.id)
    assert cancelled.status == "cancelling"
    assert cancelled.cancelling_at is not None
    assert (cancelled.in_progress_at is None) == (status is Status.VALIDATING)


@pytest.mark.parametrize("status", [Status.FINALIZING, Status.CANCELLING, Status.CANCELLED])
def test_cancel_returns_an_ending_batch_unchanged(server, client, project, status):
    batch = create(client, "file-none")
    move(server, project, batch.id, *ROUTES_TO[status])
    before = client.batches.retrieve(batch.id)
    count_before = len(server.notifications)
    assert client.batches.cancel(batch.id) == before
    assert before.status == status
    assert len(server.notifications) == count_before


@pytest.mark.parametrize("status", [Status.COMPLETED, Status.FAILED, Status.EXPIRED])
def test_cancel_of_an_ended_batch_is_a_conflict_without_retry(server, key, project, status):
    client = server.client(key, max_retries=2)
    batch = create(client, "file-none")
    move(server, project, batch.id, *ROUTES_TO[status])
    with pytest.raises(openai.ConflictError) as caught:
        client.batches.cancel(batch.id)
    assert caught.value.message == f"Error code: 409 - Cannot cancel a batch with status '{status}'."
    assert (caught.value.type, caught.value.param, caught.value.code) == ("invalid_request_error", None, None)
    assert caught.value.response.headers["x-should-retry"] == "false"
    assert caught.value.response.request.headers["x-stainless-retry-count"] == "0"


def test_a_cancel_that_loses_a_race_reads_the_batch_again(serve):
    """The store moves the batch between the route's look and its write."""

    lost = 0

    def racing(context):
        store = context.store

        async def move(after, *, expected, **_):
            nonlocal lost
            if not lost:
                lost += 1
                assert await accept(store, after.id)
            return await store.batches.move(after, expected=expected)

        return replace(context, store=with_verb(store, "batches", "move", move))

    server = serve(change=racing)
    client = server.client()
    cancelled = client.batches.cancel(create(client, "file-none").id)
    assert lost == 1
    assert cancelled.status == "cancelling"
    assert cancelled.in_progress_at is not None


def test_concurrent_cancels_return_the_same_batch(server, key):
    async def race():
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0) as client:
            batch = await create(client, "file-none")
            return await asyncio.gather(*(client.batches.cancel(batch.id) for _ in range(20)))

    answers = asyncio.run(race())
    assert len({(batch.status, batch.cancelling_at) for batch in answers}) == 1


# --- unknown and odd ids -----------------------------------------------------------------------------


@pytest.mark.parametrize("action", ["GET {}", "POST {}/cancel"])
@pytest.mark.parametrize("batch_id", ["invalid", "file-abc", "BATCH_1", "%00", "%ff", "b", ".", "%C3%A9"])
def test_an_id_with_another_prefix_is_refused(server, key, action, batch_id):
    method, _, path = action.format(f"/v1/batches/{batch_id}").partition(" ")
    answer = server.send(method, path, key=key)
    assert answer.status == 400
    assert answer.error["message"].startswith("Invalid 'batch_id': '")
    assert answer.error["message"].endswith("'. Expected an ID that begins with 'batch'.")
    assert (answer.error["param"], answer.error["code"]) == ("batch_id", "invalid_value")


@pytest.mark.parametrize("action", ["GET {}", "POST {}/cancel"])
@pytest.mark.parametrize(
    "batch_id",
    [
        "batch_" + "0" * 32,
        "batch-nonexistent-xyz",
        "batch",
        "batch_%00",
        "batch_%ff",
        "batch_%0d%0aX-Evil:1",
        "batch_" + "a" * 5_000,
        "batch_' OR 1=1 --".replace(" ", "%20"),
        "batch_%F0%9F%8C%99",
    ],
)
def test_an_unknown_id_is_not_found(server, key, action, batch_id):
    method, _, path = action.format(f"/v1/batches/{batch_id}").partition(" ")
    answer = server.send(method, path, key=key)
    assert answer.status == 404
    assert answer.error["message"].startswith("No batch found with id 'batch")
    assert (answer.error["type"], answer.error["param"], answer.error["code"]) == (
        "invalid_request_error",
        None,
        None,
    )
    assert "x-evil" not in answer.headers


def test_a_batch_of_another_project_is_not_found(server, client):
    batch = create(client, "file-none")
    other = server.client(server.new_key("a project that peeks"))
    for call in (other.batches.retrieve, other.batches.cancel):
        with pytest.raises(openai.NotFoundError) as caught:
            call(batch.id)
        assert caught.value.message == f"Error code: 404 - No batch found with id '{batch.id}'."
    with pytest.raises(openai.NotFoundError):
        other.batches.list(after=batch.id)
    assert other.batches.list().data == []
    assert client.batches.retrieve(batch.id).status == "validating"


# --- Idempotency-Key and the rate of creation ----------------------------------------------------------


def test_the_same_idempotency_key_returns_the_first_batch(server, client):
    headers = {"Idempotency-Key": "once"}
    first = create(client, "file-none", metadata={"a": "1"}, extra_headers=headers)
    again = create(client, "file-none", metadata={"a": "1"}, extra_headers=headers)
    assert again.id == first.id
    assert len(client.batches.list().data) == 1
    other = server.client(server.new_key("another that has the same key"))
    assert create(other, "file-none", metadata={"a": "1"}, extra_headers=headers).id != first.id


def test_the_same_idempotency_key_for_another_batch_is_a_conflict(client):
    headers = {"Idempotency-Key": "once"}
    create(client, "file-none", extra_headers=headers)
    with pytest.raises(openai.ConflictError) as caught:
        create(client, "file-other", extra_headers=headers)
    assert caught.value.response.headers["x-should-retry"] == "false"


@pytest.mark.parametrize("value", ["k" * 256, "caf\xe9"])
def test_an_invalid_idempotency_key_is_refused(server, key, value):
    document = '{"input_file_id": "file-x", "endpoint": "/v1/embeddings", "completion_window": "24h"}'
    answer = server.send("POST", "/v1/batches", document, {"Idempotency-Key": value}, key=key)
    assert answer.status == 400
    assert answer.error["param"] == "Idempotency-Key"


def test_creating_too_many_batches_in_an_hour_is_refused_until_the_hour_is_over(serve):
    now = [time.time()]
    server = serve(settings={"limits": {"batches_per_hour": 2}}, clock=lambda: now[0])
    client = server.client()
    create(client, "file-none")
    create(client, "file-none")
    with pytest.raises(openai.RateLimitError) as caught:
        create(client, "file-none")
    assert caught.value.code == "rate_limit_exceeded"
    assert caught.value.type == "requests"
    assert 0 < int(caught.value.response.headers["retry-after"]) <= 120
    now[0] += 3_602
    create(client, "file-none")


# --- what later states look like ---------------------------------------------------------------------


def test_usage_is_zero_until_the_batch_has_ended():
    from nightmill.api.batch_wire import batch_on_wire

    usage = Usage(input_tokens=5, cached_tokens=2, output_tokens=7, reasoning_tokens=3, total_tokens=12)
    batch = Batch(
        id=BatchId("batch_1"),
        project_id=ProjectId("p"),
        endpoint=ENDPOINT,
        input_file_id="file-1",
        input_blob_key="k",
        completion_window="24h",
        created_at=1,
        expires_at=2,
        status=Status.IN_PROGRESS,
        total=4,
        tally=Tally(2, 1, usage),
    )
    shown = batch_on_wire(batch)
    assert shown["usage"]["total_tokens"] == 0
    assert shown["request_counts"] == {"total": 4, "completed": 2, "failed": 1}
    assert batch_on_wire(replace(batch, status=Status.CANCELLED))["usage"] == {
        "input_tokens": 5,
        "output_tokens": 7,
        "total_tokens": 12,
        "input_tokens_details": {"cached_tokens": 2},
        "output_tokens_details": {"reasoning_tokens": 3},
    }


def test_a_failed_batch_lists_its_errors_and_counts_nothing():
    from nightmill.api.batch_wire import batch_on_wire

    batch = Batch(
        id=BatchId("batch_1"),
        project_id=ProjectId("p"),
        endpoint=ENDPOINT,
        input_file_id="file-1",
        input_blob_key="k",
        completion_window="24h",
        created_at=1,
        expires_at=2,
        status=Status.FAILED,
        total=4,
        errors=(LineError("invalid_json_line", "No.", None, 3), LineError("empty_file", "Empty.")),
    )
    shown = batch_on_wire(batch)
    assert shown["errors"] == {
        "object": "list",
        "data": [
            {"code": "invalid_json_line", "message": "No.", "param": None, "line": 3},
            {"code": "empty_file", "message": "Empty.", "param": None, "line": None},
        ],
    }
    assert shown["request_counts"] == {"total": 0, "completed": 0, "failed": 0}
