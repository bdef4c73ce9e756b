"""What a process with roles reports to its parent."""

from nightmill.runtime.role_process import log_and_report
from nightmill.telemetry import UpstreamHeld, UpstreamResumed, WritingPaused, WritingResumed


def held(upstream: str, model: str | None, reason: str, *, until: float = 60.0) -> UpstreamHeld:
    return UpstreamHeld(upstream, model, reason, since=0.0, until=until)


def test_the_end_of_one_problem_does_not_hide_another() -> None:
    reports: list[str | None] = []
    emit = log_and_report(reports.append)
    emit(held("a", None, "connection refused"))
    emit(held("b", "m", "it answers 401"))
    emit(held("b", "n", "it answers 503"))
    emit(WritingPaused("the disk is full"))
    emit(UpstreamResumed("a", None, 5.0))
    emit(WritingResumed())
    emit(UpstreamResumed("b", "m", 5.0))
    emit(UpstreamResumed("b", "n", 5.0))
    a = "upstream 'a' is HELD since 00:00:00: connection refused; next attempt at 00:01:00 UTC"
    m = "model 'm' of upstream 'b' is HELD since 00:00:00: it answers 401; next attempt at 00:01:00 UTC"
    n = "model 'n' of upstream 'b' is HELD since 00:00:00: it answers 503; next attempt at 00:01:00 UTC"
    writing = "answers can't be written: the disk is full"
    assert reports == [
        a,
        f"{a}; {m}",
        f"{a}; {m}; {n}",
        f"{a}; {m}; {n}; {writing}",
        f"{m}; {n}; {writing}",
        f"{m}; {n}",
        n,
        None,
    ]


def test_a_repeated_hold_replaces_the_earlier_reason() -> None:
    reports: list[str | None] = []
    emit = log_and_report(reports.append)
    emit(held("default", None, "connection refused"))
    emit(held("default", None, "timed out", until=90.0))
    assert reports == [
        "upstream 'default' is HELD since 00:00:00: connection refused; next attempt at 00:01:00 UTC",
        "upstream 'default' is HELD since 00:00:00: timed out; next attempt at 00:01:30 UTC",
    ]
