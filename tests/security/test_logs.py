"""What a client or an upstream said can't pass for a line of our own."""

import logging

import pytest

from nightmill.runtime.process_setup import start_logs


@pytest.fixture
def logged(capsys):
    """Logs as a server does, and gives the lines on standard error."""
    root, ours = logging.getLogger(), logging.getLogger("nightmill")
    before, level = root.handlers[:], ours.level

    def log(say):
        root.handlers = []
        start_logs("debug")
        say(ours)
        return capsys.readouterr().err.removesuffix("\n").split("\n")

    yield log
    root.handlers = before
    ours.setLevel(level)


def test_words_of_others_begin_no_line_and_move_no_cursor(logged):
    words = "no\r\n2026-01-01T00:00:00 ERROR forged\x1b[2J\x9b\u2028x"
    first, *others = logged(lambda logger: logger.warning("the upstream said: %s", words))
    assert first.endswith(r"WARNING the upstream said: no\r")
    assert others == [r"    2026-01-01T00:00:00 ERROR forged\x1b[2J\x9b\u2028x"]


def test_a_traceback_is_as_harmless(logged):
    def fail(logger):
        try:
            raise ValueError("no\n2026-01-01T00:00:00 ERROR forged")
        except ValueError:
            logger.exception("the worker failed")

    first, *others = logged(fail)
    assert first.endswith("ERROR the worker failed")
    assert all(line.startswith("    ") for line in others)
    assert "    2026-01-01T00:00:00 ERROR forged" in others
