"""What a process says of itself is read from JSON, also that of another version."""

import msgspec

from nightmill.core.process_info import REPORTED_EVERY_S, ProcessInfo, is_silent, read_process_info

INFO = ProcessInfo("gpu-3", 4711, ("worker",), "1.0", 1_760_000_000.0)


def test_what_a_process_said_is_read_as_it_was_written():
    assert read_process_info(msgspec.json.encode(INFO).decode()) == INFO


def test_a_process_of_an_older_version_says_nothing():
    assert read_process_info(None) is None


def test_what_another_version_says_in_other_words_is_left_out():
    assert read_process_info('{"machine": "gpu-3"}') is None


def test_a_process_is_silent_some_time_after_a_report_was_due():
    assert not is_silent(REPORTED_EVERY_S)
    assert is_silent(2 * REPORTED_EVERY_S)
