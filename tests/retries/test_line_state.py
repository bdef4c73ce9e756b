"""Where one line of a batch is, over HTTP, the command line and Python, from its start to its end."""

import asyncio
import time

import pytest
from openai import AsyncOpenAI

from nightmill.client import AsyncRetryApi
from tests.acceptance.conftest import until

BAD = (400, "too_odd")


def state_of(mill, batch_id, name):
    return mill.client.retries.line(batch_id, custom_id=name)


def test_a_line_in_flight_names_its_upstream_and_since_when(mill):
    mill.upstream.held = {"slow"}
    batch = mill.submit("quick", "slow", "last", blank="\n")
    until(lambda: "slow" in mill.upstream.asked)
    found = state_of(mill, batch.id, "slow")
    assert (found["state"], found["line"]) == ("in_flight", 4)
    assert found["upstream"] == "default"
    assert batch.created_at - 1 <= found["since"] <= time.time()
    until(lambda: state_of(mill, batch.id, "quick")["state"] == "answered")
    assert mill.get(f"{batch.id}/lines?line=4").json()["state"] == "in_flight"
    mill.upstream.may_answer.set()
    mill.ended(batch.id)
    found = state_of(mill, batch.id, "slow")
    assert found["state"] == "answered"
    assert found["file_id"] == mill.client.openai.batches.retrieve(batch.id).output_file_id


def test_a_failed_line_has_its_code_before_and_after_the_end(mill):
    mill.upstream.held, mill.upstream.failing = {"slow"}, {"bad": BAD}
    batch = mill.submit("bad", "slow")
    found = until(lambda: (it := state_of(mill, batch.id, "bad"))["state"] == "failed" and it)
    assert (found["code"], found["file_id"]) == ("too_odd", None)
    mill.upstream.may_answer.set()
    ended = mill.ended(batch.id)
    found = state_of(mill, batch.id, "bad")
    assert (found["state"], found["code"], found["file_id"]) == ("failed", "too_odd", ended.error_file_id)


def test_a_line_that_is_not_there_is_not_found_and_one_name_is_needed(mill):
    batch = mill.run("a")
    assert mill.get(f"{batch.id}/lines?custom_id=b").status == 404
    assert mill.get(f"{batch.id}/lines?line=2").status == 404
    assert mill.get(f"{batch.id}/lines").status == 400
    assert mill.get(f"{batch.id}/lines?line=1&custom_id=a").status == 400
    assert mill.get(f"{batch.id}/lines?line=0").status == 400
    mill.client.openai.files.delete(batch.output_file_id)
    assert mill.get(f"{batch.id}/lines?line=1").status == 409


@pytest.mark.parametrize("name", ['quo"te', "ünicode", "back\\slash", "a&b=c d"])
def test_any_custom_id_is_found(mill, name):
    batch = mill.run("first", name)
    found = state_of(mill, batch.id, name)
    assert (found["custom_id"], found["line"], found["state"]) == (name, 2, "answered")


def test_the_command_shows_a_line(mill, nightmill):
    batch = mill.run("a", "b")
    ran = nightmill("line", batch.id, "--custom-id", "b")
    assert ran.code == 0
    assert "line       2\ncustom_id  b\nstate      answered\nfile       file-" in ran.out
    assert nightmill("line", batch.id).code == 2


def test_the_asynchronous_client_asks_for_a_line(mill):
    batch = mill.run("a")

    async def read():
        async with AsyncOpenAI(base_url=f"{mill.server.url}/v1", api_key="none") as client:
            return await AsyncRetryApi(client).line(batch.id, number=1)

    assert asyncio.run(read())["custom_id"] == "a"
