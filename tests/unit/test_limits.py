"""Quotas of a project: what may be created, accepted and stored."""

import pytest

from nightmill.core.limits import (
    NO_LIMITS,
    Limits,
    OpenWork,
    ProjectRules,
    estimated_tokens,
    refusal_to_accept,
    refusal_to_create,
    refusal_to_store,
)


def test_a_rule_of_the_project_replaces_the_settings_even_with_zero():
    rules = ProjectRules(open_batches=5, open_lines=0)
    limits = rules.limits(Limits(open_batches=1, open_lines=2, stored_bytes=3))
    assert limits == Limits(open_batches=5, open_lines=0, stored_bytes=3)


def test_four_bytes_are_a_token_and_a_rest_is_another():
    assert [estimated_tokens(size_bytes) for size_bytes in (0, 1, 4, 5)] == [0, 1, 1, 2]


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (NO_LIMITS, None),
        (Limits(open_batches=3, open_lines=11, open_bytes=150), None),
        (Limits(open_batches=2), "Enqueued batches limit reached in project p. Limit: 2 enqueued batches."),
        (Limits(open_lines=10), "Enqueued requests limit reached in project p. Limit: 10 enqueued requests."),
        (Limits(open_bytes=149), "Enqueued bytes limit reached in project p. Limit: 149 enqueued bytes."),
    ],
)
def test_a_batch_is_created_if_it_stays_within_every_limit(limits: Limits, message: str | None):
    refusal = refusal_to_create(
        limits, OpenWork(batches=2, lines=10, bytes=100), project_id="p", size_bytes=50
    )
    assert (refusal is None) == (message is None)
    assert message is None or message in str(refusal)


@pytest.mark.parametrize(
    ("limits", "model", "code", "words"),
    [
        (NO_LIMITS, "m", None, ""),
        (Limits(open_lines=15, enqueued_tokens=30), "m", None, ""),
        (Limits(enqueued_tokens=29), "m", "token_limit_exceeded", "for m in project p"),
        (Limits(enqueued_tokens=29), None, "token_limit_exceeded", "for several models in project p"),
        (Limits(open_lines=14), "m", "request_limit_exceeded", "Limit: 14 enqueued requests"),
    ],
)
def test_a_batch_is_accepted_if_its_lines_and_tokens_stay_within_the_limits(
    limits: Limits, model: str | None, code: str | None, words: str
):
    refusal = refusal_to_accept(
        limits, OpenWork(lines=10), project_id="p", total=5, model=model, tokens=10, enqueued=20
    )
    assert (refusal and refusal.code) == code
    assert refusal is None or words in refusal.message


@pytest.mark.parametrize(("stored_bytes", "is_refused"), [(0, False), (150, False), (149, True)])
def test_a_file_is_stored_if_it_stays_within_the_limit(stored_bytes: int, is_refused: bool):
    refusal = refusal_to_store(
        Limits(stored_bytes=stored_bytes), project_id="p", stored_bytes=100, size_bytes=50
    )
    assert (refusal is not None) is is_refused


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        (
            Limits(enqueued_tokens=9),
            "This batch has 10 tokens for m, and all unfinished batches of project p",
        ),
        (Limits(open_lines=4), "This batch has 5 requests"),
    ],
)
def test_a_batch_larger_than_the_whole_limit_is_not_told_to_wait(limits: Limits, words: str):
    refusal = refusal_to_accept(limits, OpenWork(), project_id="p", total=5, model="m", tokens=10, enqueued=0)
    assert refusal is not None
    assert refusal.code == "batch_too_large"
    assert words in refusal.message
    assert "Split the file" in refusal.message
    assert "again" not in refusal.message


def test_an_input_file_larger_than_the_whole_limit_is_a_lasting_error():
    refusal = refusal_to_create(Limits(open_bytes=49), OpenWork(), project_id="p", size_bytes=50)
    assert refusal is not None
    assert (refusal.status, refusal.code, refusal.param) == (400, "batch_too_large", "input_file_id")


def test_a_file_larger_than_the_whole_storage_is_to_be_split():
    refusal = refusal_to_store(Limits(stored_bytes=9), project_id="p", stored_bytes=0, size_bytes=10)
    assert "Split the file" in str(refusal)
