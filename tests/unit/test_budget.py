"""When a batch has spent a budget."""

import pytest

from nightmill.core.batch import Batch, Tally, Usage
from nightmill.core.batch_options import BatchOptions
from nightmill.core.prices import spent_budget
from nightmill.ids import BatchId, FileId, ProjectId


def batch(*, failed: int = 0, output_tokens: int = 0, total: int = 100, **options: float) -> Batch:
    return Batch(
        id=BatchId("batch_1"),
        project_id=ProjectId("p"),
        endpoint="/v1/chat/completions",
        input_file_id=FileId("file-1"),
        input_blob_key="files/1",
        completion_window="24h",
        created_at=0,
        expires_at=86_400,
        total=total,
        tally=Tally(1, failed, Usage(output_tokens=output_tokens)),
        options=BatchOptions(**options),  # pyright: ignore[reportArgumentType]
    )


def code(it: Batch, *, cost: float | None = None) -> str | None:
    reason = spent_budget(it, cost=cost)
    return None if reason is None else reason.code


@pytest.mark.parametrize(
    ("limit", "failed", "is_spent"),
    [
        (3, 3, False),
        (3, 4, True),
        (0.1, 10, False),
        (0.1, 11, True),
        (0, 0, False),
        (0, 1, True),
        (1, 1, False),
    ],
)
def test_a_limit_of_failures_is_a_count_or_a_share_and_may_be_reached(limit, failed, is_spent):
    assert (code(batch(failed=failed, max_failures=limit)) == "max_failures") is is_spent


@pytest.mark.parametrize(("tokens", "is_spent"), [(1_000, False), (1_001, True)])
def test_output_tokens_are_limited(tokens, is_spent):
    assert (code(batch(output_tokens=tokens, max_output_tokens=1_000)) == "max_output_tokens") is is_spent


@pytest.mark.parametrize(("cost", "is_spent"), [(None, False), (2.0, False), (2.01, True)])
def test_a_cost_is_limited_where_it_is_known(cost, is_spent):
    assert (code(batch(max_cost=2.0), cost=cost) == "max_cost") is is_spent


def test_without_a_budget_nothing_stops_a_batch():
    it = batch(failed=100, output_tokens=1 << 40, record_attempts=True)
    assert spent_budget(it, cost=1e9) is None


def test_the_reason_names_what_was_spent_and_what_is_allowed():
    reason = spent_budget(batch(failed=11, max_failures=0.1), cost=None)
    assert reason is not None
    assert reason.message == "11 lines have failed, and the batch allows 0.1 of 100."
