"""What a process with roles reports to its parent."""

from nightmill.runtime.role_process import log_and_report
from nightmill.telemetry import UpstreamPaused, UpstreamResumed, WritingPaused, WritingResumed


def test_the_end_of_one_problem_does_not_hide_another() -> None:
    reports: list[str | None] = []
    emit = log_and_report(reports.append)
    emit(UpstreamPaused("a", "connection refused", 1.0))
    emit(UpstreamPaused("b", "it refuses our key (401)", 60.0, is_held=True))
    emit(WritingPaused("the disk is full"))
    emit(UpstreamResumed("a"))
    emit(WritingResumed())
    emit(UpstreamResumed("b"))
    a = "the upstream 'a' is paused: connection refused"
    b = "the upstream 'b' answers no line: it refuses our key (401)"
    writing = "answers can't be written: the disk is full"
    assert reports == [a, f"{a}; {b}", f"{a}; {b}; {writing}", f"{b}; {writing}", b, None]


def test_a_repeated_pause_replaces_the_earlier_reason() -> None:
    reports: list[str | None] = []
    emit = log_and_report(reports.append)
    emit(UpstreamPaused("default", "connection refused", 1.0))
    emit(UpstreamPaused("default", "timed out", 2.0))
    assert reports == ["the upstream is paused: connection refused", "the upstream is paused: timed out"]
