"""A short run of `python bench/memory.py`: memory of the server does not grow with batches and uploads.

`make test-slow` sends twice as many lines as `make test`.
"""

from pathlib import Path

import pytest

from bench import memory
from tests.slow import IS_SLOW

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peaks are read from Linux's /proc"),
]


LINES = 100_000 if IS_SLOW else 50_000


@pytest.mark.timeout(300)  # that many lines through four processes on a loaded machine
def test_a_batch_of_many_lines_needs_no_more_memory_than_the_settings_allow(tmp_path):
    _judge(memory.measured(tmp_path, "lines", LINES))


def test_an_upload_in_parts_needs_no_more_memory_than_a_few_chunks(tmp_path):
    _judge(memory.measured(tmp_path, "upload", 300 * memory.BLOCK_BYTES))


def _judge(peaks_mb: dict[str, float]) -> None:
    assert {"api", "worker 0", "keeper"} <= set(peaks_mb)
    assert {name: peak for name, peak in peaks_mb.items() if peak > memory.MOST_MB} == {}
