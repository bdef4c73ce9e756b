"""The files of a run show whether its input is answered, and a retry is merged into them."""

import json
import os
from pathlib import Path

import pytest

from nightmill.errors import RequestError
from nightmill.runtime.run_files import (
    LineCounts,
    RunFiles,
    counts_if_finished,
    merge_retry,
    write_failed,
)


@pytest.fixture
def files(tmp_path) -> RunFiles:
    files = RunFiles(tmp_path / "in.jsonl", tmp_path / "out.jsonl", tmp_path / "err.jsonl")
    write(files.input, "a", "b", "ü", "d", body={"text": "x"})
    return files


def write(path: Path, *custom_ids: str, **more: object) -> None:
    path.parent.mkdir(exist_ok=True)
    lines = [json.dumps({"custom_id": custom_id, **more}) + "\n" for custom_id in custom_ids]
    path.write_text("".join(lines))


def touch_after(path: Path, other: Path) -> None:
    stat = other.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))


def ids(path: Path) -> list[str]:
    return [json.loads(line)["custom_id"] for line in path.read_text().splitlines()]


def test_without_output_and_error_file_nothing_is_finished(files):
    assert counts_if_finished(files) is None


def test_a_run_is_finished_if_each_line_is_in_one_of_the_files(files):
    write(files.output, "a", "ü")
    write(files.errors, "b", "d")
    assert counts_if_finished(files) == LineCounts(2, 2)
    files.output.unlink()
    write(files.errors, "a", "b", "ü", "d")
    assert counts_if_finished(files) == LineCounts(0, 4)


@pytest.mark.parametrize(
    ("output", "errors"),
    [
        (["a", "b", "ü"], []),
        (["a", "b", "ü", "d", "e"], []),
        (["a", "b", "d", "ü"], []),
        (["a", "b", "ü", "d"], ["a"]),
        (["a", "b", "ü", "e"], []),
        ([], []),
    ],
)
def test_files_with_other_lines_are_not_replaced_silently(files, output, errors):
    write(files.output, *output)
    write(files.errors, *errors)
    with pytest.raises(RequestError, match=r"out\.jsonl exists, but not with the answers of .*--again"):
        counts_if_finished(files)


def test_an_input_that_was_changed_afterwards_is_not_finished(files):
    write(files.output, "a", "b", "ü", "d")
    touch_after(files.input, files.output)
    with pytest.raises(RequestError, match="as it is now"):
        counts_if_finished(files)


def test_blank_lines_a_byte_order_mark_and_lone_surrogates_are_compared(files):
    lines = ['{"custom_id": "a"}', "", '{"custom_id": "\\ud800"}', '{"custom_id": "b"}']
    files.input.write_bytes(b"\xef\xbb\xbf" + "\n".join(lines).encode())
    files.output.write_text('{"custom_id": "a"}\n{"custom_id": "\\ud800"}\n{"custom_id": "b"}\n')
    assert counts_if_finished(files) == LineCounts(3, 0)


def test_the_failed_request_lines_are_written_as_they_are(files):
    write(files.output, "a", "ü")
    write(files.errors, "b", "d")
    write_failed(files, files.input.with_name("failed.jsonl"))
    lines = files.input.read_bytes().splitlines(keepends=True)
    assert files.input.with_name("failed.jsonl").read_bytes() == lines[1] + lines[3]


def test_a_retry_puts_its_lines_in_place_of_the_failed_ones(files):
    write(files.output, "a", "ü", at="first")
    write(files.errors, "b", "d", at="first")
    write(files.retry.output, "b", at="retry")
    write(files.retry.errors, "d", at="retry")
    assert merge_retry(files) == LineCounts(3, 1)
    assert ids(files.output) == ["a", "b", "ü"]
    assert [json.loads(line)["at"] for line in files.output.read_text().splitlines()] == [
        "first",
        "retry",
        "first",
    ]
    assert [json.loads(line)["at"] for line in files.errors.read_text().splitlines()] == ["retry"]
    assert counts_if_finished(files) == LineCounts(3, 1)


def test_a_merge_that_a_crash_interrupted_between_its_files_is_finished_by_the_next(files):
    write(files.output, "a", "b", "ü", "d")  # replaced already
    write(files.errors, "b", "d")  # not yet
    write(files.retry.output, "b", "d")
    assert merge_retry(files) == LineCounts(4, 0)
    assert ids(files.output) == ["a", "b", "ü", "d"]
    assert not files.errors.exists()


def test_no_output_file_is_left_if_every_line_failed(files):
    write(files.errors, "a", "b", "ü", "d")
    write(files.retry.errors, "a", "b", "ü", "d")
    assert merge_retry(files) == LineCounts(0, 4)
    assert not files.output.exists()
