"""What a start says: where the server is, what answers, what to try next."""

import io
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from nightmill.runtime import banner
from nightmill.runtime.banner import (
    Listening,
    data_text,
    first_commands,
    say_fields,
    say_listening,
    say_upstreams,
    server_fields,
)
from nightmill.settings import load
from nightmill.upstream.diagnosis import Diagnosis, Step


def fields(
    host: str = "127.0.0.1", *, needs_keys: bool = False, has_dashboard: bool = True
) -> dict[str, str]:
    listening = Listening(host, 8080)
    return dict(server_fields(listening, needs_keys=needs_keys, has_dashboard=has_dashboard, data="here"))


def test_what_to_try_next_can_be_pasted_as_it_is():
    lines = [text for _, text in first_commands(Listening("::1", 8080), needs_keys=False)]
    assert lines == [
        "export OPENAI_BASE_URL=http://[::1]:8080/v1",
        "export OPENAI_API_KEY=unused",
        "nightmill submit FILE.jsonl --watch",
    ]


def test_an_address_of_all_interfaces_is_shown_as_one_that_clients_here_can_use():
    assert fields("0.0.0.0", needs_keys=True)["docs"] == "http://127.0.0.1:8080/docs"


def test_the_dashboard_is_named_where_there_is_one():
    assert fields("0.0.0.0", needs_keys=True)["dashboard"] == "http://127.0.0.1:8080/"
    assert "dashboard" not in fields(has_dashboard=False)


def test_it_says_whether_keys_are_needed():
    assert fields()["keys"].startswith("none needed from this machine")
    assert fields(needs_keys=True)["keys"] == "needed; make another with: nightmill keys create NAME"


@pytest.mark.parametrize(
    ("unfinished", "is_new", "said"),
    [
        (0, True, "(new; name another with --folder)"),
        (0, False, "(no batch is unfinished)"),
        (1, False, "(1 unfinished batch goes on now)"),
        (1_200, False, "(1,200 unfinished batches go on now)"),
    ],
)
def test_the_data_folder_is_absolute_and_says_what_is_there(tmp_path, monkeypatch, unfinished, is_new, said):
    monkeypatch.chdir(tmp_path)
    settings = load(environment={})
    text = data_text(settings, unfinished=unfinished, is_new=is_new)
    assert text == f"{tmp_path / 'nightmill-data'} {said}"


def test_a_database_and_a_bucket_are_named_without_their_passwords():
    settings = load(
        flags={
            "store": "postgresql://me:secret@db/night?sslmode=require",
            "blobs": {"url": "s3://bucket/night"},
        },
        environment={},
    )
    assert data_text(settings, unfinished=None, is_new=False) == (
        "postgresql://me:***@db/night and s3://bucket/night"
    )


class Store:
    """A store without upstreams of its own."""

    def __init__(self) -> None:
        async def settings() -> list[object]:
            return []

        async def any_exist() -> bool:
            return False

        self.upstreams = SimpleNamespace(settings=settings)
        self.api_keys = SimpleNamespace(any_exist=any_exist)


async def said_of(**tree: object) -> list[str]:
    said: list[str] = []
    await say_upstreams(load(flags=tree, environment={}), Store(), say=said.append)
    return said


@pytest.mark.parametrize("is_terminal", [True, False])
async def test_commands_to_try_are_said_in_a_terminal_only(monkeypatch, is_terminal):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal)
    url = "http://127.0.0.1:1/v1"
    settings = load(flags={"upstream": {"url": url}, "emulator": {"enabled": True}}, environment={})
    said: list[str] = []
    await say_listening(settings, Listening("127.0.0.1", 1), Store(), data="here", say=said.append)
    text = "\n".join(said)
    assert ("OPENAI_API_KEY=unused" in text) is is_terminal
    assert "EMULATED" in text


async def test_an_upstream_that_is_away_is_said_with_the_reason_in_words():
    (said,) = await said_of(upstream={"url": "127.0.0.1:1", "concurrency": 8})
    assert said == (
        "upstream: http://127.0.0.1:1, 8 lines at once. AWAY: 127.0.0.1 refuses the connection at port 1:"
        " start the server, or correct the port in url. Batches wait for it."
    )


async def test_an_upstream_that_answers_but_cannot_be_used_is_not_said_to_be_away(monkeypatch):
    steps = (Step("connection", is_ok=True, text="Ok."), Step("models", is_ok=False, text="It has none."))

    async def seen(*_: object, **__: object) -> Diagnosis:
        return Diagnosis(is_usable=False, steps=steps)

    monkeypatch.setattr(banner, "look_at", seen)
    (said,) = await said_of(upstream={"url": "127.0.0.1:1"})
    assert said.endswith(". NOT USABLE: It has none. Batches wait for it.")


async def test_several_upstreams_are_said_by_name():
    said = await said_of(upstreams={"a": {"url": "127.0.0.1:1"}, "b": {"url": "127.0.0.1:1"}})
    assert [text.split(",")[0] for text in said] == [
        "upstream: a: http://127.0.0.1:1",
        "upstream: b: http://127.0.0.1:1",
    ]


async def test_made_up_answers_are_said_in_capitals():
    url = "http://127.0.0.1:1/v1"
    assert await said_of(upstream={"url": url}, emulator={"enabled": True}) == [
        "upstream: EMULATED: every answer is made up; no model is asked"
    ]


async def test_many_upstreams_are_not_all_asked(monkeypatch):
    monkeypatch.setattr(banner, "_MOST_UPSTREAMS", 1)
    said = await said_of(upstreams={"a": {"url": "127.0.0.1:1"}, "b": {"url": "127.0.0.1:1"}})
    assert said[1:] == ["upstream: 1 more; list them with: nightmill upstreams"]


def test_in_a_terminal_a_long_text_is_wrapped_below_its_beginning(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

        def fileno(self) -> int:
            return 2

    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr(os, "get_terminal_size", lambda _: os.terminal_size((80, 24)))
    said: list[str] = []
    say_fields([("upstream", "word " * 30), ("", str(Path("/a") / ("b" * 90)))], say=said.append)
    assert max(map(len, said[:-1])) <= 80
    assert [line[:13] for line in said[:2]] == ["  upstream   ", " " * 13]
    assert said[-1] == " " * 13 + "/a/" + "b" * 90, "a path is not cut"
