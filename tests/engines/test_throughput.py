"""nightmill keeps an engine as busy as a client that drives the same engine directly.

Both send the same number of lines to the same server, in turns, and the best run of each counts, because
other work on the machine slows single runs down. The figures are printed.
"""

import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.conftest import Server, serving, until
from tests.engines.conftest import LINE_S, chat, created, drive_s, input_file
from tests.engines.servers import SEQUENCES, Vllm

pytestmark = pytest.mark.timeout(7_200)

PAIRS = 3
LINES = 80
LEAST_SHARE = 0.97
SOON = {"NIGHTMILL_WORKER__BEAT_S": "0.1"}
"""Counts are updated as often, and the time of a batch ends when they are complete."""
_numbers = itertools.count()


def bodies() -> list[dict[str, Any]]:
    """Prompts that no earlier run has sent, so that no run finds its prompts in the engine's cache."""
    return [chat(f"{next(_numbers)} is a number. Name another.", tokens=32) for _ in range(LINES)]


def batch_s(server: Server) -> float:
    """Seconds from the upload of a batch until all its lines are answered."""
    client = server.client()
    content = input_file(bodies())
    began = time.monotonic()
    batch_id = created(server, content)

    def is_answered() -> bool:
        counts = client.batches.retrieve(batch_id).request_counts
        assert counts.failed == 0
        return counts.completed == LINES

    until(is_answered, timeout_s=LINE_S)
    return time.monotonic() - began


def compare(server: Server, direct_s: Callable[[], float], *, engine: str) -> None:
    batch_s(server)  # the first run warms both up
    runs = [(direct_s(), batch_s(server)) for _ in range(PAIRS)]
    direct, through = (LINES / min(times) for times in zip(*runs, strict=True))
    print(
        f"\n{engine}: {direct:.2f} lines/s directly, {through:.2f} through nightmill: {through / direct:.3f}"
    )
    print("  seconds:", ", ".join(f"{first:.1f} and {second:.1f}" for first, second in runs))
    assert through >= LEAST_SHARE * direct


def test_vllm_is_as_busy_as_when_driven_directly(vllm: Vllm, tmp_path: Path):
    tried = {in_flight: drive_s(vllm.url, bodies(), in_flight=in_flight) for in_flight in (4, 8, 32)}
    best = min(tried, key=tried.__getitem__)
    with serving(tmp_path, "--upstream", vllm.url, environment=SOON) as server:
        compare(
            server,
            lambda: drive_s(vllm.url, bodies(), in_flight=best),
            engine=f"vLLM ({SEQUENCES} sequences, {best} in flight)",
        )


def test_a_model_file_is_as_busy_as_when_driven_directly(gguf: Path, tmp_path: Path):
    with serving(tmp_path, "--model", str(gguf), environment=SOON) as server:
        [child] = server.children("runtime.child llama")
        words = Path(f"/proc/{child}/cmdline").read_text().split("\0")
        url = f"http://127.0.0.1:{words[words.index('--port') + 1]}/v1"
        compare(server, lambda: drive_s(url, bodies(), in_flight=4), engine="llama.cpp (4 slots)")
