"""TLS with verification and SNI, and addresses of every kind."""

import socket

import pytest

from nightmill.core.outcome import Answered, Unreachable

OK = Answered(200, b'{"ok":true}', None)


@pytest.fixture
async def serve(words):
    started = []

    async def start(**arguments):
        server = words.Rogue(host=arguments.pop("host", "127.0.0.1"))
        await server.start(**arguments)
        started.append(server)
        return server

    yield start
    for server in started:
        await server.stop()


async def test_a_trusted_certificate_is_accepted(serve, connect, ask, server_tls, trusted):
    server = await serve(tls=server_tls("localhost"), name="localhost")
    upstream = connect(server.url)
    for _ in range(3):
        assert await ask(upstream, b'{"x":"' + b"y" * 200_000 + b'"}') == OK
    assert server.connections == 1


async def test_an_address_can_be_certified_too(serve, connect, ask, server_tls, trusted):
    server = await serve(tls=server_tls("localhost"))
    assert await ask(connect(server.url)) == OK


async def test_an_unknown_authority_is_not_trusted_and_sees_no_key(serve, connect, ask, server_tls):
    server = await serve(tls=server_tls("localhost"), name="localhost")
    outcome = await ask(connect(server.url, api_key="sk-secret"))
    assert isinstance(outcome, Unreachable)
    assert "not trusted" in outcome.reason
    assert not server.requests


async def test_a_certificate_for_another_name_is_not_trusted(serve, connect, ask, server_tls, trusted):
    server = await serve(tls=server_tls("elsewhere"), name="localhost")
    outcome = await ask(connect(server.url))
    assert isinstance(outcome, Unreachable)
    assert not server.requests


async def test_the_operator_can_choose_not_to_verify(serve, connect, ask, server_tls):
    server = await serve(tls=server_tls("elsewhere"), name="localhost")
    assert await ask(connect(server.url, tls_verify=False)) == OK


async def test_the_server_is_told_which_name_we_want(serve, connect, ask, server_tls, trusted):
    asked_for = []
    context = server_tls("localhost")
    context.sni_callback = lambda _tls, name, _context: asked_for.append(name)
    server = await serve(tls=context, name="localhost")
    await ask(connect(server.url))
    assert asked_for == ["localhost"]


async def test_plain_http_behind_https_is_unreachable(serve, connect, ask):
    server = await serve()
    outcome = await ask(connect(server.url.replace("http:", "https:"), connect_timeout_s=0.3))
    assert isinstance(outcome, Unreachable)


def _has_ipv6():
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.skipif(not _has_ipv6(), reason="this machine has no IPv6")
async def test_ipv6_addresses(serve, connect, ask):
    server = await serve(host="::1")
    assert await ask(connect(server.url)) == OK
    assert server.requests[0].headers["host"] == f"[::1]:{server.port}"
