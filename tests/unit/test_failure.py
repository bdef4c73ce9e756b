"""What a failed attempt says, by status, error code and kind of body."""

import pytest

from nightmill.core.failure import (
    ACCOUNT_CODES,
    KEY_CODES,
    STATUSES,
    AnswerError,
    Failure,
    FailureKind,
    failure_of,
    kind_of,
)
from nightmill.core.outcome import Answered, Broken, TimedOut, TooLong, Unreachable


def answered(
    status: int, *, code: str | None = None, is_json: bool = True, retry_after_s: float | None = None
):
    error = AnswerError(status, code, is_json)
    return failure_of(Answered(status, b"", None, retry_after_s), error)


@pytest.mark.parametrize(("status", "kind"), STATUSES.items())
def test_a_status_of_the_table_says_what_the_table_says(status: int, kind: FailureKind):
    assert answered(status).kind is kind


@pytest.mark.parametrize("status", [409, 418, 425, 500, 502, 599])
def test_a_status_outside_the_table_is_a_fault_of_the_server(status: int):
    assert answered(status).kind is FailureKind.FAULT


@pytest.mark.parametrize("status", [301, 302, 308])
def test_a_redirect_concerns_the_operator(status: int):
    failure = answered(status)
    assert failure.kind is FailureKind.ACCESS
    assert "redirects" in failure.reason
    assert "upstream.url" in failure.reason


@pytest.mark.parametrize("status", [404, 405])
def test_a_missing_path_concerns_the_request_only_if_the_body_is_json(status: int):
    assert answered(status).kind is FailureKind.REQUEST
    page = answered(status, is_json=False)
    assert page.kind is FailureKind.ACCESS
    assert "does not know the path" in page.reason


@pytest.mark.parametrize("code", sorted(ACCOUNT_CODES))
def test_an_account_without_credit_is_seen_at_any_status(code: str):
    failure = answered(429, code=code)
    assert failure.kind is FailureKind.ACCOUNT
    assert failure.reason == f"the account has no credit left (429 {code})"


@pytest.mark.parametrize("code", sorted(KEY_CODES))
def test_a_refused_key_is_seen_at_any_status(code: str):
    failure = answered(400, code=code)
    assert failure.kind is FailureKind.ACCESS
    assert failure.reason == f"it refuses our key (400 {code}); check upstream.api_key"


@pytest.mark.parametrize("status", [200, 400, 401, 429, 503])
def test_retry_after_is_kept_at_any_status(status: int):
    assert answered(status, retry_after_s=7.0).retry_after_s == 7.0


def test_the_reason_names_the_status_and_the_code():
    assert answered(503).reason == "it answers 503"
    assert answered(503, code="overloaded").reason == "it answers 503 overloaded"


def test_an_outcome_without_an_answer_says_what_happened():
    assert failure_of(TimedOut(5.0, 1.5), None) == Failure(
        FailureKind.LATE, "it gives no answer within 5 s", counts_as=1.5
    )
    assert failure_of(Broken("reset", 0.5), None) == Failure(FailureKind.FAULT, "reset", counts_as=0.5)
    assert failure_of(TooLong(10), None) == Failure(FailureKind.REQUEST, "answer_too_long")
    assert failure_of(Unreachable("no DNS"), None) == Failure(FailureKind.UNREACHABLE, "no DNS")


def test_an_error_inside_a_2xx_counts_as_the_status_it_names():
    assert kind_of(AnswerError(429, "rate_limit", is_json=True)) is FailureKind.LOAD
