"""Text from a client or an upstream cannot imitate a log line, in either format."""

import json
import logging

import pytest

from nightmill.runtime.logs import start_logs
from nightmill.telemetry import UpstreamHeld, log

FORGED = "no\r\n2026-01-01T00:00:00 ERROR forged\x1b[2J\x9b\u2028x"


@pytest.fixture
def logged(capsys):
    """Logs as a server does, and returns the lines on standard error."""
    root, ours = logging.getLogger(), logging.getLogger("nightmill")
    before, level = root.handlers[:], ours.level

    def log_lines(say, *, log_format="text", **bound):
        root.handlers = []
        start_logs("debug", log_format, **bound)
        say(ours)
        return capsys.readouterr().err.removesuffix("\n").split("\n")

    yield log_lines
    root.handlers = before
    ours.setLevel(level)


def fail(logger):
    try:
        raise ValueError("no\n2026-01-01T00:00:00 ERROR forged")
    except ValueError:
        logger.exception("the worker failed")


def test_foreign_text_cannot_start_a_log_line_or_move_the_cursor(logged):
    first, *others = logged(lambda logger: logger.warning("the upstream said: %s", FORGED))
    assert first.endswith(r"WARNING the upstream said: no\r")
    assert others == [r"    2026-01-01T00:00:00 ERROR forged\x1b[2J\x9b\u2028x"]


def test_foreign_text_in_a_traceback_is_cleaned_too(logged):
    first, *others = logged(fail)
    assert first.endswith("ERROR the worker failed")
    assert all(line.startswith("    ") for line in others)
    assert "    2026-01-01T00:00:00 ERROR forged" in others


def test_in_json_foreign_text_stays_in_its_field(logged):
    say = lambda logger: logger.warning("the upstream said: %s", FORGED)  # noqa: E731 - two lines less
    (line,) = logged(say, log_format="json", role="worker:0")
    assert line.isascii()
    assert line.isprintable()
    found = json.loads(line)
    assert found.pop("time").endswith("Z")
    assert found == {"level": "WARNING", "message": f"the upstream said: {FORGED}", "role": "worker:0"}


def test_in_json_a_traceback_is_one_field_of_one_line(logged):
    (line,) = logged(fail, log_format="json")
    found = json.loads(line)
    assert found["message"] == "the worker failed"
    assert "forged" in found["traceback"]


def test_a_model_in_a_field_is_cleaned_and_of_bounded_length(logged):
    held = UpstreamHeld("default", FORGED + "m" * 1_000, "it answers 503", 0.0, 1.0)
    (line,) = logged(lambda _: log(held), log_format="json")
    model = json.loads(line)["model"]
    assert model.isprintable()
    assert len(model) < 100
