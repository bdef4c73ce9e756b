"""What may be written as the URL of an upstream."""

import pytest

from nightmill.core.upstream_url import base_url, is_own_address
from nightmill.errors import SetupError
from nightmill.settings import UpstreamSettings, load


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("localhost:11434", "http://localhost:11434"),
        ("localhost:11434/v1", "http://localhost:11434/v1"),
        ("localhost", "http://localhost"),
        (" vllm:8000 ", "http://vllm:8000"),
        ("10.0.0.7", "http://10.0.0.7"),
        ("[::1]:8000/v1", "http://[::1]:8000/v1"),
        ("gpu.example:8000/v1", "http://gpu.example:8000/v1"),
        ("api.example.com/v1", "https://api.example.com/v1"),
        ("api.example.com:443/v1", "https://api.example.com:443/v1"),
        ("http://api.example.com/v1?a=b", "http://api.example.com/v1?a=b"),
    ],
)
def test_a_scheme_is_added_where_none_is_written(given, meant):
    assert base_url(given) == meant
    assert base_url(meant) == meant


@pytest.mark.parametrize(
    "given",
    [
        "",
        "/v1",
        "atuo",
        "sk-1234",
        "http:localhost:8000",
        "https:/host/v1",
        "htp://host",
        "http://host:80o0/v1",
    ],
)
def test_what_can_be_no_url_is_refused_and_not_repeated(given):
    with pytest.raises(ValueError, match=r"it must look like|the port of the URL must be") as refused:
        base_url(given)
    assert "sk-1234" not in str(refused.value)


@pytest.mark.parametrize("port", ["99999", "65536", "0", "-1", "abc", "+80", "8 0", "٣"])
@pytest.mark.parametrize("before", ["localhost:", "http://host:", "https://[::1]:"])
def test_a_port_that_is_none_is_named_with_the_numbers_that_are_allowed(before, port):
    with pytest.raises(ValueError, match="the port of the URL must be a number from 1 to 65535") as refused:
        base_url(f"{before}{port}/v1")
    assert str(refused.value).endswith(f", not {port!r}")


def test_a_port_that_may_be_a_key_is_not_repeated():
    with pytest.raises(ValueError, match=r"from 1 to 65535$"):
        base_url("api.example.com:sk-1234567890")


def test_settings_hold_the_whole_url():
    assert load(flags={"upstream": {"url": "localhost:11434"}}, environment={}).upstream.url == (
        "http://localhost:11434"
    )
    assert UpstreamSettings(url="auto").url == "auto"


def test_settings_with_a_malformed_url_are_refused_with_the_name_of_the_setting():
    with pytest.raises(SetupError) as refused:
        load(flags={"upstream": {"url": "http://host:80o0/v1"}}, environment={})
    assert str(refused.value).startswith(
        "setting 'upstream.url' (NIGHTMILL_UPSTREAM__URL): the port of the URL must be "
    )


@pytest.mark.parametrize(
    ("url", "host", "is_own"),
    [
        ("http://127.0.0.1:8080/v1", "127.0.0.1", True),
        ("http://localhost:8080", "127.0.0.1", True),
        ("http://127.0.0.1:8080/v1", "0.0.0.0", True),
        ("http://[::1]:8080/v1", "::", True),
        ("http://gpu:8080/v1", "gpu", True),
        ("http://127.0.0.1:8081/v1", "127.0.0.1", False),
        ("http://127.0.0.2:8080/v1", "127.0.0.1", False),
        ("http://127.0.0.1:8080/v1", "10.0.0.7", False),
        ("http://gpu:8080/v1", "0.0.0.0", False),
        ("http://localhost/v1", "127.0.0.1", False),
    ],
)
def test_the_address_of_the_server_itself_is_recognized(url, host, is_own):
    assert is_own_address(url, host=host, port=8080) is is_own
