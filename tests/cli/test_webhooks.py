"""`nightmill webhooks`: the words of the HTTP API, and secrets that are shown once."""

import json

import pytest

from nightmill.core.batch import Event
from nightmill.ids import ProjectId
from tests.api.conftest import serving
from tests.webhook_receiver import receiving

LOCAL = {"webhooks": {"allow_private": ["127.0.0.1"], "allow_http": True}}


@pytest.fixture
def receiver():
    with receiving() as running:
        yield running


@pytest.fixture
def server(tmp_path, monkeypatch):
    with serving(tmp_path, settings=LOCAL) as running:
        monkeypatch.setenv("OPENAI_BASE_URL", f"{running.url}/v1")
        monkeypatch.setenv("OPENAI_API_KEY", "sk-none")
        yield running


@pytest.fixture
def webhooks(nightmill, server):
    def run(*words):
        return nightmill("webhooks", *words)

    return run


@pytest.fixture
def added(webhooks, receiver):
    """The endpoint's id."""
    return webhooks("add", "night", f"{receiver.url}/T0KEN", "--json").json["id"]


def ended_batch(server):
    batch = server.client().batches.create(
        input_file_id="file-none", endpoint="/v1/chat/completions", completion_window="24h"
    )
    store = server.context.store

    async def fail():
        found = await store.batches.get(ProjectId("default"), batch.id)
        assert await store.batches.move(found.after(Event.REJECTED, now=1e10), expected=found.status)

    server.do(fail())
    return batch.id


def test_an_endpoint_is_added_for_all_events_and_its_secret_is_shown_once(webhooks, receiver):
    shown = webhooks("add", "night", f"{receiver.url}/T0KEN")
    assert shown.code == 0
    lines = dict(line.split("  ", 1) for line in shown.out.splitlines())
    assert lines["signing secret"].strip().startswith("whsec_")
    assert shown.err == "keep the secret: it is not shown again\n"
    found = webhooks("show", lines["id            ".strip()].strip())
    assert "whsec_..." in found.out
    assert lines["signing secret"].strip() not in found.out
    assert "batch.completed, batch.failed, batch.expired, batch.cancelled" in found.out


def test_a_url_with_a_token_is_read_from_a_file(webhooks, receiver, tmp_path):
    (tmp_path / "url").write_text(f"{receiver.url}/T0KEN\n")
    made = webhooks("add", "night", f"@{tmp_path / 'url'}", "--event", "batch.failed", "--json").json
    assert (made["url"], made["event_types"]) == (f"{receiver.url}/T0KEN", ["batch.failed"])


def test_the_list_shows_servers_and_no_paths(webhooks, added, receiver):
    for words in ((), ("list",)):
        shown = webhooks(*words)
        assert shown.out.splitlines()[0].split() == ["ID", "NAME", "SERVER", "EVENTS"]
        assert added in shown.out
        assert receiver.url in shown.out
        assert "T0KEN" not in shown.out
    assert json.loads(webhooks("list", "--json").out)["id"] == added


def test_an_endpoint_is_changed_rotated_and_removed(webhooks, added):
    assert "day" in webhooks("update", added, "--name", "day", "--event", "batch.failed").out
    assert webhooks("show", added, "--json").json["event_types"] == ["batch.failed"]
    assert "whsec_" in webhooks("rotate", added, "--keep-old").out
    assert webhooks("remove", added).out == f"{added} is removed\n"
    gone = webhooks("show", added)
    assert gone.code == 2
    assert "No webhook endpoint found" in gone.err
    assert webhooks("update", added).code == 2


def test_a_test_exits_by_what_the_receiver_answers(webhooks, added, receiver):
    assert webhooks("test", added).out == f"{added} answers 200\n"
    receiver.orders = [503]
    refused = webhooks("test", added, "--event", "batch.failed")
    assert refused.code == 78
    assert refused.out == f"{added} answers 503: a delivery would be sent again\n"
    assert [json.loads(one.body)["type"] for one in receiver.received] == ["batch.completed", "batch.failed"]


def test_deliveries_are_listed_and_sent_again(webhooks, added, server):
    batch_id = ended_batch(server)
    shown = webhooks("deliveries", added)
    assert batch_id in shown.out
    assert "pending" in shown.out
    (one,) = [json.loads(line) for line in webhooks("deliveries", added, "--json").out.splitlines()]
    assert webhooks("deliveries", added, "--state", "failed", "--json").out == ""
    assert webhooks("resend", one["id"]).out == f"{one['id']} is sent again\n"
    ended_batch(server)
    assert "--after" in webhooks("deliveries", added, "--limit", "1").err


def test_a_private_address_is_refused_with_the_reason(webhooks):
    refused = webhooks("add", "n", "https://10.0.0.1/hook")
    assert refused.code == 2
    assert "10.0.0.1 is a private or reserved address" in refused.err
    assert "webhooks.allow_private" in refused.err
