"""Actions on batches in a browser: review, confirmation, countdown, undo, and what a crash leaves."""

import time
from typing import Any
from urllib.parse import urlencode

import pytest
from playwright.sync_api import BrowserContext, Page, expect

from tests.dashboard.conftest import RunningServer, chat_line
from tests.dashboard.screens import violations

ACTIONS = "/nightmill/v1/batches/actions"


def waiting(server: RunningServer, count: int, **metadata: str) -> list[str]:
    """Paused batches, which stay as they are."""
    made = [server.submit([chat_line("a")], metadata=metadata or None) for _ in range(count)]
    return made


def failed(server: RunningServer) -> str:
    """An ended batch with two failed lines."""
    made = server.submit([chat_line("a", "fail:400"), chat_line("b"), chat_line("c", "fail:400")])
    assert server.wait_until(made).request_counts.failed == 2
    return made


def state(server: RunningServer, batch_id: str) -> Any:
    return server.get(f"/nightmill/v1/batches/{batch_id}")


def test_words(server: RunningServer) -> None:
    print(server.url)
