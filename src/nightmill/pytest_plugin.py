"""Fixtures for tests of code that uses the Batch API; pytest finds them where nightmill is installed.

    def test_my_code(nightmill_env):
        batch_id = my_code.submit_all(tickets)    # makes OpenAI() itself
        assert my_code.answers(batch_id)

One server serves the whole session. It starts with the first test that asks for it.
"""

from collections.abc import Generator, Mapping
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from nightmill.testing import RunningServer


@pytest.fixture(scope="session")
def nightmill_settings() -> Mapping[str, Any]:
    """Settings of the server by section; define a fixture with this name to change them."""
    return {}


@pytest.fixture(scope="session")
def nightmill_server(nightmill_settings: Mapping[str, Any]) -> "Generator[RunningServer]":
    """A running server with made-up answers: `base_url` and `api_key` are for clients."""
    # Imported here: pytest loads this module in every project of the environment.
    from nightmill.testing import server  # noqa: PLC0415 - see above

    with server(nightmill_settings) as running:
        yield running


@pytest.fixture
def nightmill_env(nightmill_server: "RunningServer", monkeypatch: pytest.MonkeyPatch) -> "RunningServer":
    """The server, with `OPENAI_BASE_URL` and `OPENAI_API_KEY` set, so that `OpenAI()` talks to it."""
    for name, value in nightmill_server.environment.items():
        monkeypatch.setenv(name, value)
    return nightmill_server
