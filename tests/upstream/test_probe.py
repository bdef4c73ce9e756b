"""Looking for the usual local servers."""

import asyncio

import pytest

from nightmill.upstream import FoundServer, find_local_servers


@pytest.fixture
async def several(words):
    servers = [words.Rogue() for _ in range(5)]
    for server in servers:
        await server.start()
    yield servers
    for server in servers:
        await server.stop()


async def test_servers_that_answer_are_found_in_the_usual_order(several, words):
    slow, quick, html, missing, hanging = several
    slow.always = (words.Pause(0.1), words.answer(b'{"object":"list","data":[{"id":"a"},{"id":"b"}]}'))
    quick.always = (words.answer(b'{"data":[]}'),)
    html.always = (words.answer(b"<html>"),)
    missing.always = (words.answer(b'{"data":[]}', status=b"404 Not Found"),)
    hanging.always = (words.HANG,)
    ports = [("closed", 1), *((f"server {n}", server.port) for n, server in enumerate(several))]
    began = asyncio.get_running_loop().time()
    found = await find_local_servers(0.5, servers=tuple(ports))
    assert asyncio.get_running_loop().time() - began < 2
    assert found == [
        FoundServer("server 0", f"http://127.0.0.1:{slow.port}/v1", ("a", "b")),
        FoundServer("server 1", f"http://127.0.0.1:{quick.port}/v1", ()),
    ]
    assert slow.requests[0].line == "GET /v1/models HTTP/1.1"
    assert "authorization" not in slow.requests[0].headers


async def test_without_an_answer_no_server_is_found():
    assert await find_local_servers(0.2, servers=(("closed", 1),)) == []
