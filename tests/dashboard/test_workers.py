"""The screen of workers: which processes are at work, and on what."""

from typing import Any

from playwright.sync_api import Page, expect

from nightmill.dashboard.screens.workers import by_machine
from tests.dashboard.conftest import RunningServer, chat_line


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
