"""Text from a client or an upstream cannot imitate a log line."""

import logging

import pytest

from nightmill.runtime.process_setup import start_logs


@pytest.fixture
def logged(capsys):
    """Logs as a server does, and returns the lines on standard error."""
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


def test_foreign_text_cannot_start_a_log_line_or_move_the_cursor(logged):
    words = "no\r\n2026-01-01T00:00:00 ERROR forged\x1b[2J\x9b\u2028x"
    first, *others = logged(lambda logger: logger.warning("the upstream said: %s", words))
    assert first.endswith(r"WARNING the upstream said: no\r")
    assert others == [r"    2026-01-01T00:00:00 ERROR forged\x1b[2J\x9b\u2028x"]


def test_foreign_text_in_a_traceback_is_cleaned_too(logged):
    def fail(logger):
        try:
            raise ValueError("no\n2026-01-01T00:00:00 ERROR forged")
        except ValueError:
            logger.exception("the worker failed")

    first, *others = logged(fail)
    assert first.endswith("ERROR the worker failed")
    assert all(line.startswith("    ") for line in others)
    assert "    2026-01-01T00:00:00 ERROR forged" in others
