"""What limits a batch: a sentence for each situation, and which limit is named if there are several."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from nightmill.core.batch import Batch, Status, Tally
from nightmill.core.batch_options import BatchOptions
from nightmill.core.schedule import OpenBatch
from nightmill.core.upstream_report import BatchLines, ModelHold, ModelReport, UpstreamReport
from nightmill.core.upstream_setting import UpstreamState
from nightmill.core.why import RecordedWhy, ServingUpstream, Situation, Why, WhyCode, to_record, why
from nightmill.ids import BatchId, FileId, ProjectId

NOW = datetime(2026, 3, 2, 14, 0, 0, tzinfo=UTC).timestamp()
ME = "batch_me"


def batch(**fields) -> Batch:
    plain = Batch(
        id=BatchId(ME),
        project_id=ProjectId("p"),
        endpoint="/v1/chat/completions",
        input_file_id=FileId("file"),
        input_blob_key="blob",
        completion_window="24h",
        created_at=int(NOW) - 100,
        expires_at=int(NOW) + 86_000,
        status=Status.IN_PROGRESS,
        model="m",
        total=1_000,
    )
    return replace(plain, **fields)


def upstream(
    name="a", *, mine=0, waiting=0, next_at=None, reason=None, others=0, state=UpstreamState.ACTIVE, **fields
) -> ServingUpstream:
    """An upstream with lines of the batch and of one other batch in flight."""
    entry = ModelReport(
        "m",
        limit=fields.pop("limit", 64),
        rule=fields.pop("rule", "grow"),
        advice=fields.pop("advice", None),
        in_flight=mine + others,
        held=fields.pop("held", None),
    )
    lines = [BatchLines(ME, mine, waiting, next_at, reason)] if mine or waiting else []
    lines += [BatchLines("batch_other", others)] if others else []
    report = UpstreamReport(
        name,
        NOW,
        in_flight=mine + others,
        per_model=(entry,),
        batches=tuple(lines),
        rate_limit=fields.pop("rate_limit", None),
    )
    return ServingUpstream(name, frozenset({"m"}), report, state, **fields)


def other(**fields) -> OpenBatch:
    plain = OpenBatch(BatchId("batch_other"), ProjectId("q"), 1, NOW + 90_000, 100)
    return replace(plain, **fields)


def said(*upstreams: ServingUpstream, of: Batch | None = None, **around) -> Why:
    found = why(Situation(of or batch(), NOW, upstreams=upstreams, **around))
    assert found is not None
    return found


@pytest.mark.parametrize("status", [Status.COMPLETED, Status.FAILED, Status.EXPIRED, Status.CANCELLED])
def test_nothing_limits_a_batch_that_has_ended(status):
    assert why(Situation(batch(status=status), NOW)) is None


@pytest.mark.parametrize(
    ("situation", "code", "sentence"),
    [
        (
            Situation(batch(status=Status.VALIDATING), NOW),
            "waits_for_intake",
            "The input file waits to be validated.",
        ),
        (
            Situation(batch(status=Status.VALIDATING), NOW, is_leased=True),
            "validating",
            "The input file is being validated; no line is sent before.",
        ),
        (
            Situation(batch(status=Status.FINALIZING), NOW),
            "finalizing",
            "No more lines are sent; the output files are being written.",
        ),
        (
            Situation(batch(status=Status.CANCELLING), NOW),
            "cancelling",
            "It is being cancelled; the files of its answers are being written.",
        ),
        (
            Situation(batch(status=Status.CANCELLING), NOW, upstreams=(upstream(mine=1),)),
            "cancelling",
            "It is being cancelled; 1 attempt in flight may still finish.",
        ),
        (
            Situation(batch(tally=Tally(completed=990, failed=10)), NOW, upstreams=(upstream(),)),
            "finalizing",
            "All lines are done; the output files are written next.",
        ),
        (
            Situation(batch(paused_at=int(NOW) - 60), NOW, paused_by="key_1", upstreams=(upstream(),)),
            "paused",
            "It is paused by key_1 since 13:59:00 UTC; resume it to go on.",
        ),
        (
            Situation(batch(paused_at=int(NOW) - 60), NOW, paused_by="keyless"),
            "paused",
            "It is paused since 13:59:00 UTC; resume it to go on.",
        ),
        (
            Situation(batch(paused_at=int(NOW) - 86_400), NOW),
            "paused",
            "It is paused since 2026-03-01 14:00:00 UTC; resume it to go on.",
        ),
        (
            Situation(batch(), NOW, has_upstreams=False, has_workers=False),
            "no_upstream",
            "There is no upstream; add one with: nightmill upstreams add NAME URL",
        ),
        (
            Situation(batch(), NOW, upstreams=(upstream(),), has_workers=False),
            "no_worker",
            (
                "No worker has reported in the last 15 s. One may be starting; else start nightmill serve "
                "with workers, or nightmill work."
            ),
        ),
        (
            Situation(batch(), NOW, upstreams=(upstream(mine=3),), stalled="no space left on the device"),
            "answers_not_written",
            "Answers can't be written, so no line is sent: no space left on the device.",
        ),
        (
            Situation(batch(), NOW),
            "model_not_served",
            "No upstream serves model m at /v1/chat/completions.",
        ),
        (
            Situation(batch(model=None), NOW),
            "model_not_served",
            "No upstream serves its models at /v1/chat/completions.",
        ),
    ],
)
def test_what_limits_the_whole_batch(situation, code, sentence):
    found = why(situation)
    assert found is not None
    assert (found.code.value, found.sentence) == (code, sentence)


HELD = ModelHold("429: too many requests", NOW - 5, NOW + 180)
WRONG_KEY = ModelHold("it refuses our key (401)", NOW - 5, None, needs_operator=True)


@pytest.mark.parametrize(
    ("blocked", "code", "sentence"),
    [
        (
            upstream(state=UpstreamState.PAUSED),
            "upstream_paused",
            "Waits for upstream a: paused by an operator; resume it with: nightmill upstreams resume a",
        ),
        (
            upstream(state=UpstreamState.DRAINING, mine=3),
            "upstream_paused",
            "Waits for upstream a: draining by an operator; resume it with: nightmill upstreams resume a",
        ),
        (
            upstream(held=HELD),
            "upstream_held",
            "Waits for upstream a: held until 14:03:00 UTC (429: too many requests).",
        ),
        (
            upstream(held=WRONG_KEY),
            "upstream_held",
            "Waits for upstream a: held (it refuses our key (401)); a setting has to change.",
        ),
        (
            upstream(rate_limit="requests_per_minute", mine=2),
            "rate_limit",
            "Waits for upstream a: requests_per_minute allows no more; 2 in flight.",
        ),
        (
            upstream(rate_limit="tokens_per_minute"),
            "rate_limit",
            "Waits for upstream a: tokens_per_minute allows no more; 0 in flight.",
        ),
    ],
)
def test_an_upstream_that_is_sent_no_lines(blocked, code, sentence):
    found = said(blocked)
    assert (found.code.value, found.sentence, found.upstream) == (code, sentence, "a")


def test_of_several_blocked_upstreams_the_one_that_is_free_first_is_named():
    found = said(upstream("a", held=WRONG_KEY), upstream("b", held=HELD))
    assert found.upstream == "b"
    assert found.until == NOW + 180
    assert found.sentence == (
        "Waits for upstream b: held until 14:03:00 UTC (429: too many requests);"
        " a can't be sent lines either."
    )


def test_one_upstream_that_takes_lines_is_enough():
    assert said(upstream("a", held=HELD), upstream("b", mine=3)).upstream == "b"


def test_the_hold_of_another_model_does_not_matter():
    entry = ModelReport("n", held=HELD)
    report = UpstreamReport("a", NOW, per_model=(entry,))
    assert said(ServingUpstream("a", frozenset({"m"}), report)).code is WhyCode.STARTING
    assert said(ServingUpstream("a", frozenset({"n"}), report)).code is WhyCode.UPSTREAM_HELD


@pytest.mark.parametrize(
    ("around", "of", "code", "sentence"),
    [
        ({}, batch(), "starting", "A worker leases its first lines, or the next ones."),
        (
            {"others": (other(deadline=NOW + 60), other(deadline=NOW + 90_000))},
            batch(),
            "behind_earlier_deadline",
            "Behind 1 other batch with an earlier deadline, which is near.",
        ),
        (
            {"others": (other(project_id="p", priority=3), other(project_id="q", priority=5))},
            batch(),
            "behind_higher_priority",
            "Behind 1 other batch of its project with a higher priority.",
        ),
        (
            {"others": (other(), other(priority=9))},
            batch(),
            "behind_other_batches",
            "Behind 2 other batches; its turn comes by the share of its project and its own.",
        ),
    ],
)
def test_a_batch_with_nothing_in_flight(around, of, code, sentence):
    found = said(upstream(others=64), of=of, **around)
    assert (found.code.value, found.sentence) == (code, sentence)


@pytest.mark.parametrize(
    ("at", "of", "code", "sentence"),
    [
        (
            upstream(mine=4),
            batch(concurrency=4),
            "own_concurrency",
            "4 in flight; its own limit is 4 (concurrency).",
        ),
        (
            upstream(mine=4),
            batch(canary_segments=1, options=BatchOptions(canary=20), tally=Tally(completed=3)),
            "canary",
            "The canary runs: 3 of its first 20 lines are done; the others follow if few of them fail.",
        ),
        (
            upstream(waiting=3, next_at=NOW + 300, reason="429"),
            batch(),
            "lines_sent_again",
            "3 lines are to be sent again at 14:05:00 UTC because of: 429.",
        ),
        (
            upstream(mine=2, waiting=1, next_at=NOW + 300, reason="500"),
            batch(tally=Tally(completed=997)),
            "lines_sent_again",
            "1 line is to be sent again at 14:05:00 UTC because of: 500.",
        ),
        (
            upstream(mine=2),
            batch(tally=Tally(completed=998)),
            "last_lines",
            "Only its last 2 lines in flight are left.",
        ),
        (
            upstream(mine=1),
            batch(tally=Tally(completed=999)),
            "last_lines",
            "Only its last 1 line in flight is left.",
        ),
        (
            upstream(mine=12),
            batch(),
            "lines_are_leased",
            "12 of 64 in flight on a; further lines are being leased.",
        ),
        (
            upstream(mine=64, advice="the queue stays empty at 64 running: raise --max-num-seqs"),
            batch(),
            "concurrency_limit",
            (
                '64 of 64 in flight on a; the limit was found by the rule "grow"; the queue stays empty at 64'
                " running: raise --max-num-seqs."
            ),
        ),
        (
            upstream(mine=4, limit=4, rule=""),
            batch(),
            "concurrency_limit",
            "4 of 4 in flight on a; the settings fix this limit.",
        ),
        (
            upstream(mine=4, limit=4, rule="hold: share", share=0.5, quiet_at=NOW + 28_800),
            batch(),
            "upstream_share",
            "4 of 4 in flight on a; share 0.5 applies until 22:00:00 UTC, when quiet hours begin.",
        ),
        (
            upstream(mine=60, rate_limit="requests_per_minute"),
            batch(),
            "concurrency_limit",
            '60 of 64 in flight on a; the limit was found by the rule "grow".',
        ),
    ],
)
def test_a_batch_with_lines_in_flight(at, of, code, sentence):
    found = said(at, of=of)
    assert (found.code.value, found.sentence) == (code, sentence)


def test_a_batch_is_not_behind_others_while_there_are_free_slots():
    assert said(upstream(others=5), others=(other(priority=9),)).code is WhyCode.STARTING


def test_slots_that_other_batches_have():
    found = said(upstream(mine=12, others=52), others=(other(project_id="p", priority=1),))
    assert found.code is WhyCode.HIGHER_PRIORITY
    assert found.sentence == "12 of 64 in flight on a; 1 other batch has the other 52."


def test_a_sentence_holds_no_control_character_and_no_endless_name_of_a_client():
    found = said(of=batch(model="m\n" * 100))
    assert found.sentence.isprintable()
    assert len(found.sentence) < 200


# --- what is recorded ---------------------------------------------------------------------------------------


def limit(code=WhyCode.SHARE, sentence="s", upstream="a") -> Why:
    return Why(code, sentence, upstream)


def test_a_limit_is_recorded_when_its_code_or_upstream_changes_and_not_when_its_numbers_do():
    first = to_record(limit(), None, now=0.0)
    assert first == RecordedWhy("upstream_share", 0.0, 1, "a")
    assert to_record(limit(sentence="other numbers"), first, now=100.0) is None
    assert to_record(limit(WhyCode.SUPPLY), first, now=100.0) == RecordedWhy(
        "lines_are_leased", 100.0, 2, "a"
    )
    assert to_record(limit(upstream="b"), first, now=100.0) == RecordedWhy("upstream_share", 100.0, 2, "b")


def test_limits_that_alternate_every_second_are_recorded_a_bounded_number_of_times():
    recorded: RecordedWhy | None = None
    count = 0
    for second in range(86_400):
        new = to_record(limit((WhyCode.SHARE, WhyCode.SUPPLY)[second % 2]), recorded, now=float(second))
        count += new is not None
        recorded = new or recorded
    assert 50 < count < 150


@pytest.mark.parametrize(
    ("found", "goes_on_at"),
    [
        (limit(), None),
        (Why(WhyCode.UPSTREAM_HELD, "", "a", 50.0), 50.0),
        (Why(WhyCode.UPSTREAM_HELD, "", "a"), float("inf")),
        (Why(WhyCode.PAUSED, ""), float("inf")),
        (Why(WhyCode.RATE_LIMIT, "", "a"), None),
    ],
)
def test_when_lines_are_sent_again(found, goes_on_at):
    assert found.goes_on_at == goes_on_at
