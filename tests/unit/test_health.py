"""Whether a failure is the line's or the model server's: each rule alone, on a clock that is a number."""

import math

import pytest

from nightmill.core.failure import Failure, FailureKind
from nightmill.core.health import Health, Held, LineRecord, Resumed

FAULT, LOAD, LATE = FailureKind.FAULT, FailureKind.LOAD, FailureKind.LATE
HOLDING_FAILURES = 5


class Model:
    """A `Health` with short calls and a clock."""

    def __init__(self) -> None:
        self.health = Health()
        self.now = 100.0

    def fails(
        self,
        record: LineRecord | None = None,
        kind: FailureKind = FAULT,
        *,
        retry_after_s: float | None = None,
        took_s: float = 1.0,
        is_overtaken: bool = False,
        in_flight: int = 0,
        random: float = 0.0,
    ) -> Held | None:
        return self.health.failed(
            Failure(kind, "why", retry_after_s),
            LineRecord() if record is None else record,
            started_at=self.now - took_s,
            is_overtaken=is_overtaken,
            in_flight=in_flight,
            now=self.now,
            random=random,
        )

    def answers(
        self, record: LineRecord | None = None, *, limit: int = 64, took_s: float = 0.0
    ) -> Resumed | None:
        return self.health.answered(record, started_at=self.now - took_s, limit=limit, now=self.now)

    def is_held_by(self, kind: FailureKind = FAULT) -> None:
        for _ in range(HOLDING_FAILURES):
            self.fails(kind=kind)
        assert self.health.held is not None

    def wait_s(self, in_flight: int = 0) -> float:
        return self.health.wait_s(self.now, in_flight=in_flight)

    def probe(self) -> None:
        self.now += self.wait_s()
        self.health.started(self.now)


@pytest.fixture
def model() -> Model:
    return Model()


# --- what counts against a line ----------------------------------------------------------------------


def test_the_first_failure_of_a_line_never_counts(model: Model):
    record = LineRecord()
    model.answers()
    model.fails(record)
    assert (record.failures, record.counted, record.is_explained) == (1, 0.0, False)


def test_a_failure_counts_in_full_while_all_other_lines_are_answered(model: Model):
    record = LineRecord()
    model.fails(record)
    model.answers()
    model.fails(record)
    assert (record.counted, record.is_explained) == (1.0, True)


def test_a_failure_counts_for_nothing_while_no_other_line_is_answered(model: Model):
    record = LineRecord()
    model.answers()
    for _ in range(100):
        model.fails(record)
    assert (record.counted, record.is_explained) == (0.0, False)


def test_a_failure_counts_in_the_proportion_of_answered_lines(model: Model):
    record = LineRecord()
    model.fails(record)
    model.answers()
    for _ in range(3):
        model.fails()
    model.fails(record)
    assert record.counted == 0.25


def test_a_failure_counts_as_what_its_outcome_says(model: Model):
    record = LineRecord(failures=1)
    model.answers()
    model.health.failed(
        Failure(FAULT, "reset", counts_as=0.5),
        record,
        started_at=99.0,
        is_overtaken=False,
        in_flight=0,
        now=100.0,
        random=0.0,
    )
    assert record.counted == 0.5


def test_an_attempt_without_a_connection_leaves_the_record_of_the_line_as_it_is(model: Model):
    record = LineRecord(failures=2, counted=1.0, is_explained=True, is_late=True)
    model.answers()
    model.fails(record, FailureKind.UNREACHABLE)
    assert record == LineRecord(failures=2, counted=1.0)


def test_a_time_out_counts_only_if_the_line_was_overtaken_or_alone(model: Model):
    queued, overtaken, alone = (LineRecord(failures=1) for _ in range(3))
    model.answers()
    model.fails(queued, LATE, in_flight=3)
    model.fails(overtaken, LATE, in_flight=3, is_overtaken=True)
    model.fails(alone, LATE)
    assert [record.counted for record in (queued, overtaken, alone)] == [0.0, 1.0, 1.0]


# --- holding and probing -----------------------------------------------------------------------------


def test_failures_in_a_row_of_several_lines_hold_the_model(model: Model):
    for _ in range(HOLDING_FAILURES - 1):
        model.fails(in_flight=2)
        assert model.health.held is None
    model.fails(in_flight=2)
    assert model.health.held == Held("why", 100.0, 100.1, needs_operator=False)
    assert not model.health.is_calm(model.now)


def test_an_answer_ends_a_row_of_failures(model: Model):
    for _ in range(3 * HOLDING_FAILURES):
        model.fails(in_flight=2)
        model.fails(in_flight=2)
        model.answers()
    assert model.health.held is None


def test_as_many_failures_in_a_row_as_attempts_in_flight_hold_the_model(model: Model):
    for _ in range(19):
        model.fails(in_flight=20)
    assert model.health.held is None
    model.fails(in_flight=20)
    assert model.health.held is not None


def test_one_line_that_fails_again_and_again_beside_slow_ones_does_not_hold_the_model(model: Model):
    record = LineRecord()
    for _ in range(3 * HOLDING_FAILURES):
        model.fails(record, in_flight=2)
    assert model.health.held is None


def test_refusals_for_load_hold_the_model_only_when_nothing_else_is_in_flight(model: Model):
    for _ in range(3 * HOLDING_FAILURES):
        model.fails(kind=LOAD, in_flight=1)
    assert model.health.held is None
    model.fails(kind=LOAD)
    assert model.health.held is not None


def test_the_first_failure_without_a_connection_holds_the_upstream(model: Model):
    model.fails(kind=FailureKind.UNREACHABLE)
    assert model.health.held is not None


def test_one_probe_at_a_time_is_sent_after_a_pause(model: Model):
    model.is_held_by()
    assert model.wait_s() == pytest.approx(0.1)
    model.probe()
    assert model.wait_s() == 5.0  # then another probe may join it
    model.now += 5.0
    model.health.started(model.now)
    assert model.wait_s() == 10.0


@pytest.mark.parametrize(
    ("kind", "longest_s"),
    [(LOAD, 5.0), (FAULT, 10.0), (FailureKind.ACCESS, 30.0), (FailureKind.ACCOUNT, 30.0)],
)
def test_pauses_between_probes_grow_to_a_limit(model: Model, kind: FailureKind, longest_s: float):
    model.is_held_by(kind)
    pauses_s: list[float] = []
    for _ in range(20):
        model.probe()
        model.fails(kind=kind, random=0.999_999)
        pauses_s.append(model.wait_s())
    assert pauses_s == pytest.approx(sorted(pauses_s))
    assert pauses_s[-1] == pytest.approx(longest_s, abs=0.01)


def test_attempts_that_were_in_flight_when_the_hold_began_do_not_lengthen_its_pause(model: Model):
    model.is_held_by()
    for _ in range(50):
        model.fails(random=0.9)
    assert model.wait_s() == pytest.approx(0.1)


def test_probes_alternate_between_the_cheap_request_and_a_line(model: Model):
    model.is_held_by()
    kinds: list[bool] = []
    for _ in range(4):
        kinds.append(model.health.is_cheap_probe_next)
        model.probe()
        model.fails()
    assert kinds == [True, False, True, False]


def test_after_time_outs_every_probe_is_the_cheap_request(model: Model):
    model.is_held_by()
    for _ in range(4):
        model.probe()
        model.fails(kind=LATE)
        assert model.health.is_cheap_probe_next


def test_a_new_batch_shortens_the_pause_but_none_that_the_server_named(model: Model):
    model.is_held_by()
    model.probe()
    model.fails(random=0.9)
    model.health.hurry(model.now)
    assert model.wait_s() == pytest.approx(0.1)
    model.now += model.wait_s()
    model.probe()
    model.fails(retry_after_s=45.0)
    model.health.hurry(model.now)
    assert model.wait_s() == 45.0


def test_an_answer_to_an_attempt_from_before_the_outage_does_not_end_the_hold(model: Model):
    model.is_held_by()
    record = LineRecord(failures=1)
    model.answers(took_s=30.0)
    assert model.health.held is not None
    model.fails(record)
    assert record.counted == 0.0
    model.answers(took_s=0.0)
    assert model.health.held is None


def test_after_a_hold_the_number_in_flight_grows_from_one(model: Model):
    model.is_held_by()
    model.now += 10.0
    model.answers(limit=4)
    assert model.health.cap == 2
    assert model.wait_s(in_flight=1) == 0.0
    assert model.wait_s(in_flight=2) == math.inf
    model.answers(limit=4)
    model.answers(limit=4)
    assert model.health.cap is None
    assert model.health.is_calm(model.now)


def test_after_a_short_hold_lines_are_sent_as_before(model: Model):
    model.is_held_by()
    model.now += 0.5
    model.answers()
    assert model.health.is_calm(model.now)


# --- what is announced -------------------------------------------------------------------------------


def test_a_hold_is_announced_once_when_it_has_lasted_and_its_end_once(model: Model):
    model.is_held_by()
    announced: list[Held | None] = []
    for _ in range(10):
        model.now += 1.0
        model.probe()
        announced.append(model.fails())
    found = [held for held in announced if held is not None]
    assert [held.since for held in found] == [100.0]
    assert isinstance(model.answers(), Resumed)
    assert model.answers() is None


def test_a_short_hold_is_not_announced(model: Model):
    model.is_held_by()
    assert model.fails() is None
    assert model.answers() is None
    assert model.health.forgotten(model.now) is None


@pytest.mark.parametrize("kind", [FailureKind.ACCESS, FailureKind.ACCOUNT])
def test_a_hold_that_needs_an_operator_is_announced_after_the_first_probe(model: Model, kind: FailureKind):
    model.is_held_by(kind)
    model.probe()
    held = model.fails(kind=kind)
    assert held is not None
    assert held.needs_operator


def test_an_outage_that_comes_to_need_an_operator_is_announced_again(model: Model):
    model.is_held_by()
    model.now += 3.0
    model.probe()
    assert model.fails() is not None
    model.probe()
    held = model.fails(kind=FailureKind.ACCESS)
    assert held is not None
    assert held.needs_operator


def test_what_was_announced_ends_when_the_model_is_forgotten(model: Model):
    model.fails(kind=LOAD, retry_after_s=60.0)
    assert model.health.forgotten(model.now + 7.0) == Resumed(7.0)


# --- Retry-After -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [FAULT, LOAD, FailureKind.ACCESS])
def test_retry_after_pauses_the_model_at_any_status(model: Model, kind: FailureKind):
    held = model.fails(kind=kind, retry_after_s=20.0)
    assert held is not None
    assert model.wait_s() == 20.0
    assert model.health.held is None
    assert model.answers() is None  # the pause is kept although an earlier attempt is answered
    model.now += 20.0
    assert model.answers() == Resumed(20.0)


def test_retry_after_has_a_floor_and_a_cap(model: Model):
    model.fails(kind=LOAD, retry_after_s=0.0)
    assert model.wait_s() == pytest.approx(0.1)
    model.fails(kind=LOAD, retry_after_s=1e6)
    assert model.wait_s() == 600.0


def test_retry_after_of_a_line_that_is_refused_beside_answered_ones_does_not_pause_the_model(model: Model):
    record = LineRecord()
    model.fails(record, LOAD)
    model.answers()
    model.fails(record, LOAD, retry_after_s=60.0)
    assert record.counted == 1.0
    assert model.wait_s() == 0.0
    model.fails(LineRecord(), LOAD, retry_after_s=60.0)  # the refusals concern the lines, as was seen
    assert model.wait_s() == 0.0


def test_a_refused_line_that_is_answered_later_shows_that_the_server_has_too_much_to_do(model: Model):
    record = LineRecord()
    model.fails(record, LOAD)
    model.answers()
    model.fails(record, LOAD)
    model.answers(record)
    model.fails(LineRecord(), LOAD, retry_after_s=60.0)
    assert model.wait_s() == 60.0


# --- too much in flight ------------------------------------------------------------------------------


def test_two_refusals_in_a_row_limit_what_is_in_flight(model: Model):
    model.fails(kind=LOAD, in_flight=8)
    assert model.health.cap is None
    model.fails(kind=LOAD, in_flight=8)
    assert model.health.cap == 8
    model.fails(kind=LOAD, in_flight=20)
    assert model.health.cap == 8


def test_one_refusal_with_retry_after_limits_what_is_in_flight(model: Model):
    model.fails(kind=LOAD, in_flight=8, retry_after_s=1.0)
    assert model.health.cap == 8


def test_after_refusals_the_number_in_flight_grows_slowly(model: Model):
    for _ in range(2):
        model.fails(kind=LOAD, in_flight=2)
    for _ in range(7):
        model.answers()
    assert model.health.cap == 2
    model.answers()
    assert model.health.cap == 3


def test_time_outs_in_a_queue_halve_what_is_in_flight_once_for_all_that_started_before(model: Model):
    model.fails(kind=LATE, in_flight=15, took_s=10.0)
    assert model.health.cap == 8
    model.fails(kind=LATE, in_flight=14, took_s=10.0)
    assert model.health.cap == 8
    model.now += 10.0
    model.fails(kind=LATE, in_flight=7, took_s=10.0)
    assert model.health.cap == 4


def test_time_outs_of_one_attempt_at_a_time_hold_the_model(model: Model):
    for _ in range(2):
        model.fails(kind=LATE, took_s=10.0)
        model.now += 10.0
    assert model.health.cap == 1
    assert model.health.held is not None


def test_a_504_that_comes_at_once_is_no_sign_of_a_queue(model: Model):
    for _ in range(HOLDING_FAILURES):
        model.fails(kind=LATE, in_flight=3, took_s=0.01)
    assert model.health.cap is None
    assert model.health.held is not None


def test_after_a_line_is_found_to_be_slow_by_itself_the_number_in_flight_grows_fast(model: Model):
    model.fails(kind=LATE, in_flight=7, took_s=10.0)
    assert model.health.cap == 4
    model.answers()
    model.fails(LineRecord(failures=1), LATE, took_s=10.0, is_overtaken=True)
    model.answers()
    model.answers()
    assert model.health.cap == 6


# --- the cheap request beside the lines --------------------------------------------------------------


def test_a_line_that_fails_again_with_nothing_answered_since_needs_evidence(model: Model):
    record = LineRecord()
    model.fails(record)
    assert not model.health.is_evidence_due(model.now)
    assert model.health.evidence_at is None
    model.fails(record)
    assert model.health.is_evidence_due(model.now)
    model.answers()
    assert not model.health.is_evidence_due(model.now)


def test_evidence_is_requested_after_growing_pauses(model: Model):
    pauses_s: list[float] = []
    for _ in range(6):
        model.health.needs_evidence = True
        model.health.evidence_requested(model.now)
        model.health.needs_evidence = True
        evidence_at = model.health.evidence_at
        assert evidence_at is not None
        pauses_s.append(evidence_at - model.now)
    assert pauses_s == [1.0, 2.0, 4.0, 8.0, 10.0, 10.0]


def test_a_line_that_timed_out_is_sent_with_a_cheap_request_halfway(model: Model):
    model.health.started(model.now, record=LineRecord(failures=1, is_late=True), timeout_s=10.0)
    assert model.health.evidence_at == model.now + 5.0
    model.health.started(model.now, record=LineRecord(failures=1), timeout_s=100.0)
    assert model.health.evidence_at == model.now + 5.0
