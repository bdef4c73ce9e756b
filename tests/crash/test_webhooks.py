"""A real server delivers webhooks, is killed between and during attempts, and delivers after the restart."""

import os
import re
import subprocess
import sys
from contextlib import contextmanager

import openai
import pytest

from tests.fleet.conftest import Process, until
from tests.slow import only_slow
from tests.webhook_receiver import HANG, receiving

_LISTENS = re.compile(r"listens on http://127\.0\.0\.1:(\d+)/v1")
_ALLOWED = {"NIGHTMILL_WEBHOOKS__ALLOW_PRIVATE": "127.0.0.1", "NIGHTMILL_WEBHOOKS__ALLOW_HTTP": "true"}
LINE = (
    '{"custom_id": "a", "method": "POST", "url": "/v1/chat/completions",'
    ' "body": {"model": "m", "messages": [{"role": "user", "content": "PROMPT"}]}}\n'
)


@contextmanager
def serving(folder, **environment):
    """A server that a test may kill."""
    log = folder / f"{len(list(folder.iterdir()))}.log"
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "nightmill", "serve"),
                *("--emulate", "--port", "0", "--folder", str(folder / "data")),
            ],
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
            env=os.environ | _ALLOWED | environment,
        )
    running = Process(process, log)
    try:
        found = until(lambda: _LISTENS.search(running.said))
        running.port = int(found[1])
        with running.clients:
            yield running
    finally:
        if process.poll() is None:
            running.kill()


def submitted(client: openai.OpenAI) -> str:
    uploaded = client.files.create(file=("in.jsonl", LINE.encode()), purpose="batch")
    batch = client.batches.create(
        input_file_id=uploaded.id, endpoint="/v1/chat/completions", completion_window="24h"
    )
    return batch.id


def deliveries(client: openai.OpenAI, endpoint_id: str):
    url = str(client.base_url).replace("/v1/", f"/nightmill/v1/webhook_endpoints/{endpoint_id}/deliveries")
    return client.get(url, cast_to=object)["data"]


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "served"
    made.mkdir()
    return made


@only_slow
def test_a_delivery_survives_kills_between_and_during_attempts(folder):
    with receiving() as receiver:
        receiver.orders = [500, HANG]
        with serving(folder) as server:
            client = server.client()
            endpoint = client.webhooks.create(
                name="n", url=f"{receiver.url}/T0KEN", event_types=["batch.completed"]
            )
            batch_id = submitted(client)
            receiver.until_count(1)
            until(lambda: deliveries(client, endpoint.id)[0]["attempts"])
            server.kill()
        with serving(folder) as server:
            receiver.until_count(2)
            server.kill()
        with serving(folder) as server:
            client = server.client()
            first, second, third = receiver.until_count(3)
            delivery = until(
                lambda: next(
                    (one for one in deliveries(client, endpoint.id) if one["state"] == "delivered"), None
                )
            )
            said = server.said
            assert server.end() == 0
        receiver.let_go.set()
    ids = {one.headers["webhook-id"] for one in (first, second, third)}
    assert ids == {delivery["id"]}
    event = third.unwrapped(endpoint.signing_secret)
    assert (event.type, event.data.id) == ("batch.completed", batch_id)
    statuses = [attempt["status_code"] for attempt in delivery["attempts"]]
    assert statuses == [500, 200], "the attempt that the kill cut off is not known"
    assert "T0KEN" not in said
    assert "whsec_" not in said


def test_the_log_names_no_path_no_secret_and_no_prompt(folder):
    with receiving() as receiver, serving(folder, NIGHTMILL_LOG_LEVEL="debug") as server:
        receiver.orders = [503]
        client = server.client()
        endpoint = client.webhooks.create(
            name="n", url=f"{receiver.url}/T0KEN?key=T0KEN", event_types=["batch.completed"]
        )
        submitted(client)
        receiver.until_count(2)
        until(lambda: "is delivered" in server.said)
        assert f"to {receiver.url} is sent again later: it answers 503" in server.said
        for secret in ("T0KEN", "PROMPT", endpoint.signing_secret):
            assert secret not in server.said
        assert server.end() == 0
