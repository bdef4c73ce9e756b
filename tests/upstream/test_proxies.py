"""Proxies named by the environment: through aiohttp, and only there."""

import pytest

from nightmill.core.outcome import Answered, Unreachable

OK = Answered(200, b'{"ok":true}', None)


@pytest.fixture
def proxied(connect, rogue, monkeypatch):
    monkeypatch.setenv("http_proxy", f"http://me:word@127.0.0.1:{rogue.port}")
    monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{rogue.port}")
    return connect


async def test_aiohttp_goes_through_the_proxy_and_lean_does_not(rogue, proxied, ask, transport):
    outcome = await ask(proxied("http://127.0.0.1:1/v1", api_key="sk"))
    if transport == "lean":
        assert outcome == Unreachable("connection refused")
        return
    assert outcome == OK
    [seen] = rogue.requests
    assert seen.line == "POST http://127.0.0.1:1/v1/chat/completions HTTP/1.1"
    assert seen.headers["proxy-authorization"].startswith("Basic ")


async def test_hosts_the_environment_excludes_are_reached_directly(rogue, proxied, ask, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert await ask(proxied("http://127.0.0.1:1/v1")) == Unreachable("connection refused")
    assert not rogue.requests


async def test_a_proxy_that_refuses_makes_the_upstream_unreachable(rogue, proxied, ask, words, transport):
    if transport == "lean":
        pytest.skip("lean knows no proxies")
    rogue.plays(words.answer(b"", status=b"403 Forbidden"), words.CLOSE)
    assert await ask(proxied("https://127.0.0.1:1/v1", api_key="sk")) == Unreachable("the proxy answers 403")
    assert "authorization" not in rogue.requests[0].headers
