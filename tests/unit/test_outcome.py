"""The outcomes of an attempt as values."""

from nightmill.core.outcome import Broken, TimedOut, TooLong


def test_broken_and_timed_out_have_the_code_and_message_of_the_error_file():
    assert (Broken.code, TimedOut.code) == ("upstream_broken", "request_timeout")
    assert TimedOut(600.0).message == "The model server gave no whole answer within 600 seconds."
    assert Broken("reset").message == "The model server gave no usable answer: reset."


def test_a_too_long_answer_names_the_setting_and_the_limit():
    assert TooLong(10).message == (
        "The model server's answer is longer than upstream.max_answer_bytes, 10 bytes."
    )
