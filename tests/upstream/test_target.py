"""The operator's URL, key and headers: what is taken and what is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from nightmill.errors import SetupError
from nightmill.settings import UpstreamSettings
from nightmill.upstream import open_upstream
from nightmill.upstream.target import target_of


def target(url, *, api_key=None, **headers):
    headers = {name.replace("_", "-"): v for name, v in headers.items()}
    return target_of(url, UpstreamSettings(api_key=api_key, headers=headers))


@pytest.mark.parametrize(
    ("url", "authority", "path"),
    [
        ("http://localhost:8000/v1", "localhost:8000", "/v1/embeddings"),
        ("http://localhost:8000/v1/", "localhost:8000", "/v1/embeddings"),
        ("localhost:8000", "localhost:8000", "/v1/embeddings"),
        ("models.example/team/v1", "models.example", "/team/v1/embeddings"),
        ("http://localhost:8000", "localhost:8000", "/v1/embeddings"),
        ("HTTPS://Models.Example/team/v1", "models.example", "/team/v1/embeddings"),
        ("https://models.example:443/v1beta/openai", "models.example", "/v1beta/openai/embeddings"),
        ("http://models.example:443/v1", "models.example:443", "/v1/embeddings"),
        ("http://[::1]:8000/v1", "[::1]:8000", "/v1/embeddings"),
        ("http://[fe80::1%25eth0]/v1", "[fe80::1]", "/v1/embeddings"),
        ("http://bücher.example/v1", "xn--bcher-kva.example", "/v1/embeddings"),
        ("https://a.example/v1?api-version=2", "a.example", "/v1/embeddings?api-version=2"),
    ],
)
def test_where_requests_go(url, authority, path):
    assert target(url).authority == authority
    assert target(url).path_of("/v1/embeddings") == path


@pytest.mark.parametrize(
    "url",
    [
        "",
        "vllm",
        "http:/localhost:8000",
        "ftp://localhost/v1",
        "unix:///run/model.sock",
        "http://",
        "http:///v1",
        "http://host:port/v1",
        "http://host:99999/v1",
        "http://[::1/v1",
        "http://me:secret@host/v1",
        "http://host/v1#part",
        "http://host/v1\r\nX: y",
        "http://host/v 1",
        "http://host/v1?a=b c",
        "http://" + "a" * 64 + "é.example/v1",
    ],
)
def test_what_is_no_base_url_is_refused_with_the_settings_name(url):
    with pytest.raises(SetupError, match=r"upstream\.url") as refused:
        target(url)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    "endpoint",
    [
        "",
        "/v1",
        "/v1/",
        "/v2/embeddings",
        "//evil.example/v1/embeddings",
        "http://evil.example/v1/embeddings",
        "/v1/../admin",
        "/v1/a b",
        "/v1/a\r\nX: y",
        "/v1/a?b",
        "/v1/%2e%2e/admin",
    ],
)
def test_an_endpoint_can_not_leave_the_base_path(endpoint):
    with pytest.raises(ValueError, match="not an endpoint"):
        target("http://host/v1").path_of(endpoint)


@pytest.mark.parametrize("key", ["", "two words\n", "a\r\nX-Evil: 1", "ключ", "\x00", " padded"])
def test_a_key_that_a_header_can_not_carry_is_refused_and_not_repeated(key):
    with pytest.raises(SetupError, match=r"upstream\.api_key") as refused:
        target("http://host/v1", api_key=key)
    assert not key or key not in str(refused.value)


@pytest.mark.parametrize("name", ["", "a b", "a:", "a\r\n", "é"])
def test_a_header_name_that_is_none_is_refused(name):
    with pytest.raises(SetupError, match=r"upstream\.headers"):
        target_of("http://host/v1", UpstreamSettings(headers={name: "x"}))


@pytest.mark.parametrize(
    "name", ["Host", "content-length", "Transfer-Encoding", "Connection", "accept-encoding"]
)
def test_headers_that_frame_a_request_are_ours(name):
    with pytest.raises(SetupError, match="nightmill itself"):
        target_of("http://host/v1", UpstreamSettings(headers={name: "x"}))


@given(st.text(max_size=30))
def test_no_header_value_can_end_its_line(value):
    try:
        made = target("http://host/v1", x_any=value)
    except SetupError:
        return
    assert all("\r" not in text and "\n" not in text for _, text in made.headers)
    assert all(text.isascii() for _, text in made.headers)


def test_an_extra_header_may_replace_the_key_and_our_defaults():
    headers = dict(target("http://host/v1", api_key="sk", Authorization="Basic abc", user_agent="x").headers)
    assert headers == {"user-agent": "x", "accept": "application/json", "authorization": "Basic abc"}


def test_the_key_is_not_shown():
    assert "sk-secret" not in repr(target("http://host/v1", api_key="sk-secret"))


@pytest.mark.parametrize("transport", ["lean", "aiohttp"])
def test_opening_says_at_once_what_is_wrong(transport):
    with pytest.raises(SetupError, match="http://host:port/v1"):
        open_upstream(UpstreamSettings(transport=transport), url="ftp://host:8000")
    with pytest.raises(SetupError, match="api_key"):
        open_upstream(UpstreamSettings(transport=transport, api_key=SecretStr("a\nb")), url="http://host/v1")
