"""What keeps a process from its work: noted, reported in a bounded line, and merged."""

import logging

import pytest

from nightmill.core.answer_error import failed_answer
from nightmill.core.failure import failure_of
from nightmill.core.outcome import Answered
from nightmill.runtime.problems import MOST_HELD, ProblemLog, Problems, decoded, merged, problem
from nightmill.telemetry import (
    UpstreamHeld,
    UpstreamResumed,
    WritingPaused,
    WritingResumed,
    held_and_next_text,
)

SINCE = 1_764_408_316.0  # 2025-11-29 09:25:16 UTC


def held(
    model: str | None = "m",
    reason: str = "it answers 503",
    *,
    since: float = SINCE,
    until: float = SINCE + 4,
    needs_operator: bool = False,
) -> UpstreamHeld:
    return UpstreamHeld("default", model, reason, since, until, needs_operator)


def test_the_end_of_one_problem_does_not_hide_another():
    reports: list[str | None] = []
    log = ProblemLog(lambda problems: reports.append(problems.text))
    log.emit(held("a"))
    log.emit(held(None, "connection refused", since=SINCE + 1))
    log.emit(WritingPaused("the disk is full"))
    log.emit(UpstreamResumed("default", "a", 1.0))
    log.emit(WritingResumed())
    log.emit(UpstreamResumed("default", None, 1.0))
    a = "model 'a' of upstream 'default' is held since 2025-11-29 09:25:16 UTC: it answers 503"
    whole = "upstream 'default' is held since 2025-11-29 09:25:17 UTC: connection refused"
    writing = "answers can't be written: the disk is full"
    assert reports == [a, f"{a}; {whole}", f"{writing}; {a}; {whole}", f"{writing}; {whole}", whole, None]


def test_a_refresh_brings_the_present_reason_and_next_attempt_without_a_log_line(
    caplog: pytest.LogCaptureFixture,
):
    reports: list[Problems] = []
    log = ProblemLog(reports.append)
    log.refresh([held()])
    assert not reports, "what no event has announced is not reported"
    log.emit(held())
    caplog.clear()
    log.refresh([held(reason="it answers 500", since=SINCE + 9, until=SINCE + 60), held("other")])
    assert reports[-1].held == (held(reason="it answers 500", until=SINCE + 60),)
    assert not caplog.records


def test_a_report_is_read_as_it_was_written():
    problems = merged([Problems((held(), held(None)), ("the disk is full",))])
    assert decoded(problems.encoded()) == problems
    assert b"\n" not in merged([Problems((held("a\nb"),)), problem("two\nlines")]).encoded()
    assert decoded(b'{"held": [') == decoded(b"") == Problems()


def test_a_report_of_many_long_names_is_short_and_counts_what_it_leaves_out():
    problems = merged([Problems(tuple(held(f"{number}" + "\N{SNOWMAN}" * 300) for number in range(200)))])
    assert len(problems.held) == MOST_HELD
    assert problems.left_out == 200 - MOST_HELD
    report = problems.encoded()
    assert len(report) <= 4_000
    seen = decoded(report)
    assert seen.held
    assert len(seen.held) + seen.left_out == 200
    assert seen.text is not None
    assert seen.text.endswith(f"; and {200 - 5} more")


def test_several_workers_that_hold_a_model_are_one_problem():
    first = held(reason="it answers 503", since=SINCE, until=SINCE + 60)
    second = held(reason="it refuses our key (401)", since=SINCE + 5, until=SINCE + 20, needs_operator=True)
    both = merged([Problems((first,)), Problems((second, held("other")))])
    one = held(reason="it refuses our key (401)", since=SINCE, until=SINCE + 20, needs_operator=True)
    assert both.held == (one, held("other"))
    assert merged([Problems((second,)), Problems((first,))]).held == (one,), "in any order"


def test_the_log_says_what_is_held_why_since_when_and_until_when(caplog: pytest.LogCaptureFixture):
    key = "it refuses our key (401); check upstream.api_key"
    log = ProblemLog(lambda _: None)
    with caplog.at_level(logging.INFO, "nightmill"):
        log.emit(held())
        log.emit(held(None, key, needs_operator=True))
        log.emit(UpstreamResumed("default", "m", 12.34))
        log.emit(UpstreamResumed("default", None, 4_000.0))
    since, until = "is held since 2025-11-29 09:25:16 UTC", "next attempt at 09:25:20 UTC"
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", f"model 'm' of upstream 'default' {since}: it answers 503; {until}"),
        ("ERROR", f"upstream 'default' {since}: {key}; {until}"),
        ("INFO", "model 'm' of upstream 'default' is no longer held, after 12.3 s"),
        ("INFO", "upstream 'default' is no longer held, after 1:06:40 hours"),
    ]


def test_a_next_attempt_on_another_day_has_its_date():
    text = held_and_next_text(held(until=SINCE + 86_400))
    assert text.endswith("next attempt at 2025-11-30 09:25:16 UTC")


def test_a_model_name_is_cut_and_begins_no_line():
    text = held_and_next_text(held("x" * 100 + "\nERROR"))
    assert f"model '{'x' * 80}...' of" in text
    assert "model 'a?b?' of" in held_and_next_text(held("a\nb\ud800"))


@pytest.mark.parametrize("status", [200, 401, 404, 429, 500, 503])
@pytest.mark.parametrize(
    "error",
    [
        b'{"error": {"message": "secret words", "code": "secret words"}}',
        b'{"error": {"message": "secret words", "code": "' + b"secret" * 20 + b'"}}',
        b'{"error": "secret words"}',
        b'{"detail": "secret words"}',
        b'{"object": "error", "message": "secret words", "type": "secret\\nwords"}',
    ],
)
def test_nothing_of_an_upstreams_message_is_in_a_reason(status: int, error: bytes):
    reported, *_ = failed_answer(error, status=status, result="choices", is_json=True)
    reason = failure_of(Answered(status, error), reported).reason
    assert "secret" not in reason
    assert reason.isprintable()
