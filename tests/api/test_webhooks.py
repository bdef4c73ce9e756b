"""Webhook endpoints over HTTP: the official package, our own routes, and what is refused."""

import asyncio
import json

import openai
import pytest

from nightmill.core.batch import Event
from nightmill.core.webhook import EVENT_TYPES, SENT_EVENT_TYPES, DeliveryAttempt, DeliveryState
from nightmill.ids import ProjectId, WorkerId
from tests.webhook_receiver import CLOSE, receiving

URL = "https://hook.example/T0KEN"
LOCAL = {"webhooks": {"allow_private": ["127.0.0.1"], "allow_http": True}}
NAMES = {"hook.example": ["1.1.1.1"], "inside.example": ["10.0.0.1"]}


def resolve(host, _port):
    if host not in NAMES:
        raise OSError("unknown")
    return NAMES[host]


def with_names(context):
    from dataclasses import replace

    return replace(context, resolve=resolve)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    from tests.api.conftest import serving

    with serving(tmp_path_factory.mktemp("server"), change=with_names) as running:
        running.new_key("other")
        yield running


def body(**fields):
    return {"name": "n", "url": URL, "event_types": ["batch.completed"], **fields}


def ended_batch(server, client, project):
    """A batch that fails, as intake would fail it."""
    batch = client.batches.create(
        input_file_id="file-none", endpoint="/v1/chat/completions", completion_window="24h"
    )
    store = server.context.store

    async def fail():
        found = await store.batches.get(ProjectId(project), batch.id)
        assert await store.batches.move(found.after(Event.REJECTED, now=1e10), expected=found.status)

    server.do(fail())
    return batch.id


# --- the official package --------------------------------------------------------------------------------


def test_the_official_package_manages_endpoints(client):
    made = client.webhooks.create(name="night", url=URL, event_types=["batch.completed", "batch.failed"])
    assert made.id.startswith("whe_")
    assert made.signing_secret.startswith("whsec_")
    assert made.signing_secret_hint == f"whsec_...{made.signing_secret[-4:]}"
    assert (made.object, made.name, made.url) == ("webhook_endpoint", "night", URL)
    assert made.updated_at == made.created_at

    found = client.webhooks.retrieve(made.id)
    assert found.event_types == ["batch.completed", "batch.failed"]
    assert not hasattr(found, "signing_secret")

    changed = client.webhooks.update(made.id, name="day", event_types=["response.failed"])
    assert (changed.name, changed.url, changed.event_types) == ("day", URL, ["response.failed"])

    rotated = client.webhooks.rotate_secret(made.id, keep_old_secret_active_for_24_hours=True)
    assert rotated.signing_secret != made.signing_secret

    deleted = client.webhooks.delete(made.id)
    assert (deleted.id, deleted.object, deleted.deleted) == (made.id, "webhook_endpoint.deleted", True)
    with pytest.raises(openai.NotFoundError):
        client.webhooks.retrieve(made.id)


def test_the_official_package_walks_the_list_page_by_page(client):
    made = [client.webhooks.create(**body(name=str(number))).id for number in range(3)]
    page = client.webhooks.list(limit=2)
    assert [one.id for one in page.data] == [made[2], made[1]]
    assert (page.first_id, page.last_id, page.has_more) == (made[2], made[1], True)
    rest = client.webhooks.list(after=made[1])
    assert [one.id for one in rest.data] == [made[0]]
    assert not rest.has_more


def test_the_event_types_are_those_that_this_server_sends(client):
    assert client.webhooks.event_types.list().data == list(SENT_EVENT_TYPES)


def test_every_published_event_type_is_accepted(client):
    made = client.webhooks.create(**body(event_types=list(EVENT_TYPES)))
    assert made.event_types == list(EVENT_TYPES)


@pytest.mark.parametrize("event_type", ["batch.cancelled", "response.completed"])
def test_a_test_is_sent_at_once_and_reports_the_status(serve, event_type):
    with receiving() as receiver:
        client = serve(settings=LOCAL).client()
        made = client.webhooks.create(**body(url=f"{receiver.url}/hook"))
        result = client.webhooks.test(made.id, event_type=event_type)
        assert (result.status_code, result.success, result.event_type) == (200, True, event_type)
        receiver.orders = [503]
        assert client.webhooks.test(made.id, event_type=event_type).status_code == 503
        event = receiver.received[0].unwrapped(made.signing_secret)
        assert event.type == event_type
        assert client.webhooks.retrieve(made.id).updated_at == made.updated_at
        receiver.orders = [CLOSE]
        with pytest.raises(openai.BadRequestError, match="got no answer: the connection was closed"):
            client.webhooks.test(made.id, event_type=event_type)


# --- what is refused -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"url": "http://hook.example/"}, "url", "must begin with https"),
        ({"url": "https://user:pw@hook.example/"}, "url", "user name or a password"),
        (
            {"url": "https://inside.example/T0KEN"},
            "url",
            "inside.example resolves to 10.0.0.1, which is a private",
        ),
        ({"url": "https://unknown.example/"}, "url", "can't be resolved"),
        ({"url": 1}, "url", "expected a string"),
        ({"name": ""}, "name", "name"),
        ({"name": "x" * 257}, "name", "maximum length 256"),
        ({"event_types": []}, "event_types", "event_types"),
        ({"event_types": ["batch.done"]}, "event_types[0]", "Supported values are: 'batch.completed'"),
        ({"event_types": "batch.completed"}, "event_types", "expected an array"),
    ],
)
def test_a_bad_endpoint_is_refused_with_the_reason(server, key, fields, param, words):
    for path in ("/v1/webhook_endpoints",):
        answer = server.send_json(path, body(**fields), key=key)
        assert answer.status == 400
        assert answer.error["param"] == param
        assert words in answer.error["message"]
        assert "T0KEN" not in answer.error["message"]


def test_a_bad_url_is_refused_in_an_update_too(client):
    made = client.webhooks.create(**body())
    with pytest.raises(openai.BadRequestError, match=r"10\.0\.0\.1"):
        client.webhooks.update(made.id, url="https://inside.example/")
    assert client.webhooks.retrieve(made.id).url == URL


@pytest.mark.parametrize("missing", ["name", "url", "event_types"])
def test_each_field_of_a_new_endpoint_is_required(server, key, missing):
    document = body()
    del document[missing]
    answer = server.send_json("/v1/webhook_endpoints", document, key=key)
    assert (answer.status, answer.error["code"]) == (400, "missing_required_parameter")


def test_an_endpoint_of_another_project_is_unknown(server, client):
    made = client.webhooks.create(**body())
    stranger = server.client(server.new_key("a stranger"))
    asked = [
        lambda: stranger.webhooks.retrieve(made.id),
        lambda: stranger.webhooks.update(made.id, name="x"),
        lambda: stranger.webhooks.delete(made.id),
        lambda: stranger.webhooks.rotate_secret(made.id),
        lambda: stranger.webhooks.test(made.id, event_type="batch.failed"),
        lambda: stranger.webhooks.list(after=made.id),
    ]
    for ask in asked:
        with pytest.raises(openai.NotFoundError):
            ask()
    assert client.webhooks.retrieve(made.id).name == "n"


def test_a_project_has_a_bounded_number_of_endpoints(serve):
    server = serve(settings={"webhooks": {"endpoints_per_project": 1}}, change=with_names)
    client = server.client()
    client.webhooks.create(**body())
    with pytest.raises(openai.BadRequestError, match="1 is the most"):
        client.webhooks.create(**body())


# --- the log ---------------------------------------------------------------------------------------------


def test_the_log_lists_deliveries_by_state_and_sends_one_again(server, client, key, project):
    made = client.webhooks.create(**body(event_types=["batch.failed"]))
    first, second = (ended_batch(server, client, project) for _ in range(2))
    path = f"/nightmill/v1/webhook_endpoints/{made.id}/deliveries"
    listed = server.send("GET", path, key=key).json()
    assert [one["batch_id"] for one in listed["data"]] == [second, first]
    assert {one["state"] for one in listed["data"]} == {"pending"}
    page = server.send("GET", f"{path}?limit=1", key=key).json()
    assert (page["has_more"], page["last_id"]) == (True, page["data"][0]["id"])
    rest = server.send("GET", f"{path}?after={page['last_id']}", key=key).json()
    assert [one["batch_id"] for one in rest["data"]] == [first]

    store = server.context.store.webhook_deliveries

    async def fail():
        for leased in await store.lease(WorkerId("w"), most=100, per_endpoint=100, ttl_s=60):
            attempt = DeliveryAttempt(at=12, duration_s=0.5, status_code=500)
            await store.finish(leased, state=DeliveryState.FAILED, next_at=0, attempt=attempt)

    server.do(fail())
    failed = server.send("GET", f"{path}?state=failed", key=key).json()["data"]
    assert [one["attempts"] for one in failed] == [
        [{"at": 12, "duration_s": 0.5, "status_code": 500, "error": None}]
    ] * 2
    before = len(server.notifications)
    again = server.send("POST", f"/nightmill/v1/webhook_deliveries/{failed[0]['id']}/resend", key=key)
    assert (again.status, again.json()["state"]) == (200, "pending")
    assert len(server.notifications) == before + 1
    assert len(server.send("GET", f"{path}?state=pending", key=key).json()["data"]) == 1


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nightmill/v1/webhook_endpoints/whe_none/deliveries", 404),
        ("GET", "/nightmill/v1/webhook_endpoints/{id}/deliveries?after=wh_none", 404),
        ("GET", "/nightmill/v1/webhook_endpoints/{id}/deliveries?state=lost", 400),
        ("GET", "/nightmill/v1/webhook_endpoints/{id}/deliveries?limit=0", 400),
        ("POST", "/nightmill/v1/webhook_deliveries/wh_none/resend", 404),
        ("POST", "/nightmill/v1/webhook_deliveries/batch_1/resend", 400),
        ("GET", "/v1/webhook_endpoints/whe_none", 404),
        ("GET", "/v1/webhook_endpoints?after=whe_none", 404),
    ],
)
def test_what_is_unknown_or_out_of_range_is_refused(server, client, key, method, path, status):
    made = client.webhooks.create(**body())
    answer = server.send(method, path.replace("{id}", made.id), key=key)
    assert answer.status == status
    assert answer.error


def test_a_delivery_of_another_project_is_not_sent_again(server, client, key, project):
    made = client.webhooks.create(**body(event_types=["batch.failed"]))
    ended_batch(server, client, project)
    path = f"/nightmill/v1/webhook_endpoints/{made.id}/deliveries"
    (one,) = server.send("GET", path, key=key).json()["data"]
    stranger = server.new_key("another stranger")
    assert (
        server.send("POST", f"/nightmill/v1/webhook_deliveries/{one['id']}/resend", key=stranger).status
        == 404
    )
    assert server.send("GET", path, key=stranger).status == 404


def test_changes_are_in_the_audit_log_without_urls_and_secrets(serve):
    server = serve(change=with_names)
    client = server.client()
    made = client.webhooks.create(**body())
    client.webhooks.update(made.id, name="x")
    client.webhooks.rotate_secret(made.id)
    client.webhooks.delete(made.id)
    entries = server.send("GET", "/nightmill/v1/audit").json()["data"]
    actions = [one["action"] for one in entries]
    assert actions == ["webhook.deleted", "webhook.rotated", "webhook.changed", "webhook.created"]
    text = json.dumps(entries)
    assert "whsec" not in text
    assert "T0KEN" not in text


# --- the Python client -----------------------------------------------------------------------------------


def verbs_of(api, receiver_url):
    """Each verb once; the answers as a list."""
    made = yield api.add("n", receiver_url, ["batch.completed"])
    listed = yield api.list()
    assert [one["id"] for one in listed["data"]] == [made["id"]]
    assert (yield api.show(made["id"]))["url"] == receiver_url
    assert (yield api.update(made["id"], name="m", event_types=["batch.failed"]))["name"] == "m"
    rotated = yield api.rotate(made["id"], keep_old=True)
    assert rotated["signing_secret"] not in (None, made["signing_secret"])
    assert (yield api.test(made["id"]))["status_code"] == 200
    assert (yield api.event_types()) == SENT_EVENT_TYPES
    made_here = yield None
    (delivery,) = (yield api.deliveries(made["id"], state="pending"))["data"]
    assert delivery["batch_id"] == made_here
    assert (yield api.resend(delivery["id"]))["id"] == delivery["id"]
    assert (yield api.remove(made["id"]))["deleted"]


def driven(script, *, wait, end_a_batch):
    answer = None
    while True:
        try:
            asked = script.send(answer)
        except StopIteration:
            return
        answer = end_a_batch() if asked is None else wait(asked)


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_the_python_client_has_each_verb(serve, is_async):
    from nightmill.client import AsyncBatchApi, BatchApi

    server = serve(settings=LOCAL)
    url = f"{server.url}/v1"
    with receiving() as receiver, asyncio.Runner() as runner:
        api = AsyncBatchApi(url) if is_async else BatchApi(url)
        driven(
            verbs_of(api.webhooks, f"{receiver.url}/hook"),
            wait=runner.run if is_async else (lambda answer: answer),
            end_a_batch=lambda: ended_batch(server, server.client(), "default"),
        )
        if is_async:
            runner.run(api.close())
        else:
            api.close()
