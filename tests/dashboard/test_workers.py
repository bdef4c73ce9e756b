"""The screen of workers: which processes are at work, and on what."""

from collections.abc import Coroutine
from typing import Any

import pytest
from playwright.sync_api import Page, expect
from starlette.requests import Request

from nightmill.api.workers import totals_of, workers_on_wire
from nightmill.core.process_info import ProcessInfo
from nightmill.dashboard.pages import Screen, live_blocks
from nightmill.dashboard.screens.workers import by_machine, show
from nightmill.ids import BatchId, WorkerId
from nightmill.store.workers import HeldLease, KnownProcess, LeaseKind
from tests.dashboard.conftest import RunningServer, chat_line
from tests.slow import only_slow

pytestmark = only_slow


def worker(host: str | None, *, leases: int = 0, in_flight: int = 0) -> dict[str, Any]:
    return {
        "host": host,
        "leases": [{"batch_id": f"batch_{number}"} for number in range(leases)],
        "batches": leases,
        "in_flight": in_flight,
        "answered_per_s": 1.25,
    }


def test_processes_are_grouped_by_machine_and_those_without_one_come_last() -> None:
    machines = by_machine([worker(None), worker("gpu-2", in_flight=4), worker("gpu-1"), worker("gpu-2")])
    assert [machine["host"] for machine in machines] == ["gpu-1", "gpu-2", None]
    assert (len(machines[1]["workers"]), machines[1]["in_flight"]) == (2, 4)
    assert machines[1]["answered_per_s"] == 2.5


def test_a_process_shows_its_first_batches_and_how_many_more_there_are() -> None:
    (machine,) = by_machine([worker("gpu-1", leases=5)])
    (shown,) = machine["workers"]
    assert (len(shown["leases"]), shown["more_batches"]) == (3, 2)


def finished(work: Coroutine[Any, Any, Screen]) -> Screen:
    """What a coroutine returns that waits for nothing. (The browser's own event loop runs in this thread.)"""
    with pytest.raises(StopIteration) as end:
        work.send(None)
    screen: Screen = end.value.value
    return screen


class Visitor:
    """A visit whose one call of the API gets this answer."""

    def __init__(self, answer: dict[str, Any]) -> None:
        self._answer = answer
        self.api = self

    async def get(self, _: str) -> dict[str, Any]:
        return self._answer


def shown(*workers: dict[str, Any]) -> str:
    found = {"data": list(workers), "totals": totals_of(workers)}
    screen = finished(show(Visitor(found)))  # pyright: ignore[reportArgumentType]
    scope: dict[str, Any] = {
        "type": "http",
        "path": "/ui/workers",
        "headers": [],
        "query_string": b"",
        "server": ("host", 1),
    }
    return live_blocks(Request(scope), screen, area="", shows_content=True)["rows"]


def known(name: str, version: str, *leases: HeldLease, silent_s: float = 1.0) -> dict[str, Any]:
    info = ProcessInfo("gpu-1", 7, ("worker",), version, 0.0)
    process = KnownProcess(WorkerId(name), info, silent_s)
    (document,) = workers_on_wire([process], leases, [], now=1_760_000_000.0)
    return document


def test_without_a_process_the_command_that_starts_one_is_named() -> None:
    assert "nightmill work" in shown()


def test_a_lease_says_what_its_process_does_with_the_batch() -> None:
    holder = WorkerId("w")
    leases = (
        HeldLease(holder, LeaseKind.SEGMENTS, BatchId("batch_1"), None, 1, 500, 100, 20.0),
        HeldLease(holder, LeaseKind.BATCH, BatchId("batch_2"), "validating", 1, 0, 0, 20.0),
        HeldLease(holder, LeaseKind.SLICES, BatchId("batch_3"), None, 4, 0, 0, 20.0),
    )
    html = shown(known("w", "1.0", *leases))
    for words in ("0 in flight", "validating", "4 slices of its files", "100 of 500 lines done"):
        assert words in html


def test_a_silent_process_and_one_that_never_reported_are_marked() -> None:
    (unknown,) = workers_on_wire(
        [],
        [HeldLease(WorkerId("x"), LeaseKind.SEGMENTS, BatchId("batch_1"), None, 1, 5, 0, 9.0)],
        [],
        now=0.0,
    )
    html = shown(known("w", "1.0", silent_s=100.0), unknown)
    assert html.count(">silent<") == 2
    assert "Machine not known" in html


def test_processes_of_two_versions_are_pointed_out() -> None:
    words = "Processes of several versions are at work"
    assert words in shown(known("w", "1.0"), known("v", "1.1"))
    assert words not in shown(known("w", "1.0"), known("v", "1.0"))


def test_every_role_is_at_work_and_the_worker_names_its_batch(server: RunningServer, page: Page) -> None:
    lines = [chat_line(f"w-{number}", "wait [emulate: slow, delay 20]") for number in range(3)]
    batch_id = server.submit(lines)
    page.goto(f"{server.url}/ui/workers")
    for role in ("intake", "worker"):
        expect(page.locator("tbody th", has_text=role).first).to_be_visible()
    expect(page.locator("tbody .status").first).to_have_text("at work")
    link = page.locator(f"a[href='ui/batches/{batch_id}']")
    expect(link.first).to_be_visible()
    assert server.get("/ui/workers?format=json")["totals"]["processes"] >= 2
