"""Counters of a real server never fall: not when a worker or the whole server is killed."""

import os
import signal
import time
from contextlib import ExitStack
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from tests.faults.served import Served, request_lines, serving
from tests.slow import only_slow


def counters(served: Served) -> dict[tuple[str, ...], float]:
    """Every counter and every count of a histogram, by name and labels."""
    text = served.send("GET", "/metrics")[2].decode()
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        if family.type in {"counter", "histogram"} and family.name.startswith("nightmill_")
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


def until_answered(served: Served, count: int) -> dict[tuple[str, ...], float]:
    deadline = time.monotonic() + 60
    while (found := counters(served)).get(("nightmill_attempts_total", "answered", "default"), 0) < count:
        assert time.monotonic() < deadline, found
        time.sleep(0.1)
    return found


def worker_pid(served: Served) -> int:
    """The process id of the only worker."""
    children = Path(f"/proc/{served.process.pid}/task/{served.process.pid}/children").read_text().split()
    (pid,) = [
        int(child) for child in children if Path(f"/proc/{child}/comm").read_text().startswith("worker:")
    ]
    return pid


@only_slow
def test_counters_do_not_fall_when_a_worker_or_the_server_is_killed(tmp_path: Path):
    with ExitStack() as stack:
        served = stack.enter_context(serving(tmp_path, worker__processes=1))
        served.until_ended(served.batch(request_lines(30)))
        first = until_answered(served, 30)
        os.kill(worker_pid(served), signal.SIGKILL)
        served.until_logged("is started again")
        served.until_ended(served.batch(request_lines(30)))
        second = until_answered(served, 60)
        assert all(second[name] >= value for name, value in first.items())
        served.kill()
        again = stack.enter_context(serving(tmp_path, worker__processes=1))
        third = counters(again)
        assert all(third[name] >= value for name, value in second.items())
        assert third["nightmill_attempts_total", "answered", "default"] == 60
