"""`--upstream`, once or several times, with names or without."""

import pytest

from nightmill.cli.flags import settings_of, upstream_tree
from nightmill.errors import SetupError


def settings(*upstreams: str, concurrency: int | None = None):
    tree = upstream_tree(
        upstream=list(upstreams) or None,
        upstream_key=None,
        model=None,
        emulate=False,
        concurrency=concurrency,
    )
    return settings_of(tree, None)


def urls(*upstreams: str) -> dict[str, str | None]:
    return {upstream.name: upstream.url for upstream in settings(*upstreams).upstreams}


@pytest.mark.parametrize("url", ["http://gpu:8000/v1", "auto", "http://gpu/v1?api-version=2024-10-21"])
def test_one_plain_url_is_the_single_upstream(url):
    assert settings(url).upstream.url == url
    assert settings(url).upstreams == ()


def test_without_the_flag_no_upstream_is_set():
    assert settings().all_upstreams == ()


def test_a_name_makes_one_of_several_even_alone():
    assert urls("gpu-a=http://gpu:8000/v1") == {"gpu-a": "http://gpu:8000/v1"}


def test_several_urls_get_the_names_given_or_those_of_their_hosts():
    given = (
        "box=http://box:11434/v1",
        "http://gpu_1.example:8000/v1",
        "https://api.host/v1",
        "http://[::1]:9",
    )
    assert urls(*given) == {
        "box": "http://box:11434/v1",
        "gpu_1.example-8000": "http://gpu_1.example:8000/v1",
        "api.host": "https://api.host/v1",
        "1-9": "http://[::1]:9",
    }


def test_other_flags_are_the_defaults_of_each():
    made = settings("a=http://a/v1", "b=http://b/v1", concurrency=7)
    assert [upstream.concurrency for upstream in made.upstreams] == [7, 7]


def test_two_upstreams_with_one_name_are_refused():
    with pytest.raises(SetupError, match="two upstreams are named 'gpu-8000'; use --upstream NAME=URL"):
        settings("http://gpu:8000/v1", "http://gpu:8000/other")


def test_auto_stands_alone():
    with pytest.raises(SetupError, match="each --upstream needs a URL"):
        settings("auto", "http://gpu/v1")


def test_a_wrong_port_of_one_of_several_is_named():
    with pytest.raises(SetupError, match=r"each --upstream needs a URL .* 1 to 65535, not '99999'"):
        settings("http://gpu:8000/v1", "localhost:99999")


def test_a_key_for_several_is_refused_since_it_belongs_to_one():
    tree = upstream_tree(
        upstream=["http://a/v1", "http://b/v1"],
        upstream_key="sk-secret",
        model=None,
        emulate=False,
        concurrency=None,
    )
    with pytest.raises(SetupError, match="belongs to one upstream") as refused:
        settings_of(tree, None)
    assert "sk-secret" not in str(refused.value)
