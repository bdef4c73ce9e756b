"""The short form of `python bench/memory.py`: no process of a server grows with what it carries."""

from pathlib import Path

import pytest

from bench import memory

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peaks are read from Linux's /proc"),
]


@pytest.mark.timeout(300)  # a hundred thousand lines through four processes of a busy machine
def test_a_hundred_thousand_lines_take_no_more_memory_than_the_settings_say(tmp_path):
    _judge(memory.measured(tmp_path, "lines", 100_000))


def test_an_upload_in_parts_takes_no_more_memory_than_a_few_chunks(tmp_path):
    _judge(memory.measured(tmp_path, "upload", 300 * memory.BLOCK_BYTES))


def _judge(peaks_mb: dict[str, float]) -> None:
    assert {"api", "worker 0", "keeper"} <= set(peaks_mb)
    assert {name: peak for name, peak in peaks_mb.items() if peak > memory.MOST_MB} == {}
