"""The level of the log over HTTP, the command line and Python."""

import asyncio
from dataclasses import replace

import openai
import pytest

from nightmill import cli
from nightmill.client.logs import AsyncLogApi, LogApi
from tests.api.conftest import serving


class Switch:
    """Stands for the processes of a server."""

    def __init__(self):
        self.level = "info"

    def change(self, context):
        return replace(
            context, log_level=lambda: self.level, set_log_level=lambda level: setattr(self, "level", level)
        )


@pytest.fixture
def switch():
    return Switch()


@pytest.fixture
def server(tmp_path, monkeypatch, switch):
    with serving(tmp_path, change=switch.change) as running:
        monkeypatch.setenv("OPENAI_BASE_URL", f"{running.url}/v1")
        monkeypatch.setenv("OPENAI_API_KEY", "sk-none")
        yield running


def test_the_level_is_shown_and_changed_over_http(server, switch):
    assert server.send("GET", "/nightmill/v1/log_level").json() == {"level": "info"}
    assert server.send_json("/nightmill/v1/log_level", {"level": "debug"}).json() == {"level": "debug"}
    assert switch.level == "debug"


@pytest.mark.parametrize("document", [{"level": "loud"}, {}, {"level": "debug", "role": "worker"}])
def test_a_level_that_does_not_exist_is_refused(server, switch, document):
    answer = server.send_json("/nightmill/v1/log_level", document)
    assert answer.status == 400
    assert switch.level == "info"


def test_a_key_of_a_project_may_not_change_the_level(server, switch):
    key = server.new_key("p")
    assert server.send_json("/nightmill/v1/log_level", {"level": "debug"}, key=key).status == 401
    assert server.send("GET", "/nightmill/v1/log_level", key=key).status == 401
    assert switch.level == "info"


def test_the_level_is_shown_and_changed_on_the_command_line(server, switch, capsys):
    assert cli.invoke(["log-level"]) == 0
    assert cli.invoke(["log-level", "warning", "--json"]) == 0
    assert capsys.readouterr().out.splitlines() == ["info", '{"level": "warning"}']
    assert switch.level == "warning"
    assert cli.invoke(["log-level", "loud"]) != 0


def test_the_level_is_shown_and_changed_from_python(server, switch):
    api = LogApi(server.client())
    assert api.level() == "info"
    assert api.set_level("error") == "error"

    async def of_async() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="sk-none") as client:
            asynchronous = AsyncLogApi(client)
            return [await asynchronous.level(), await asynchronous.set_level("debug")]

    assert asyncio.run(of_async()) == ["error", "debug"]
    assert switch.level == "debug"
