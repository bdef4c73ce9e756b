"""Actions in words, and the orders that forms become."""

from typing import Any
from urllib.parse import urlencode

import pytest

from nightmill.dashboard import action_words as words
from nightmill.dashboard.action_forms import ActionForm, filter_of_query
from nightmill.dashboard.visit import Form
from nightmill.errors import RequestError


def document(**changes: Any) -> dict[str, Any]:
    counts = {"changed": 0, "unchanged": 0, "refused": 0, "not_found": 0, "undone": 0}
    return {"action": "pause", "state": "done", "total": 3, "done": 0, "waits_for": None, **counts, **changes}


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"state": "pending", "action": "cancel", "starts_in_s": 8.2},
            "3 batches will be cancelled in 9 s.",
        ),
        ({"state": "pending", "action": "cancel", "starts_in_s": 0.0}, "3 batches will be cancelled now."),
        (
            {"state": "pending", "action": "retry", "starts_in_s": 10.0, "total": 1},
            "The failed lines of 1 batch will be sent again in 10 s.",
        ),
        ({"state": "running", "done": 1_200, "total": 12_000}, "Pausing: 1,200 of 12,000 batches done."),
        (
            {"state": "running", "action": "retry", "waits_for": "Rate limit reached."},
            "Retrying: 0 of 3 batches done. Rate limit reached.",
        ),
        ({"changed": 2, "refused": 1}, "2 batches were paused. 1 refused it."),
        ({"action": "retry", "changed": 2}, "2 new batches repeat the failed lines."),
        ({"state": "undone", "changed": 3, "undone": 3}, "Undone: 3 batches are as before."),
        (
            {"state": "undone", "changed": 3, "undone": 1},
            "Undone: 1 batch is as before. 2 batches stayed: changed again meanwhile, or ended.",
        ),
        ({"state": "cancelled"}, "Called off: nothing was changed."),
        (
            {"state": "cancelled", "action": "cancel", "changed": 1, "done": 1},
            "Stopped. 1 batch was cancelled. 2 batches stayed as before.",
        ),
    ],
)
def test_an_action_is_told_in_one_sentence(changes: dict[str, Any], text: str) -> None:
    assert words.sentence(document(**changes)) == text


def form(**fields: Any) -> ActionForm:
    return ActionForm.of(Form([(name, one) for name, many in fields.items() for one in many]))


def test_all_that_match_without_a_filter_are_all_batches_and_never_an_empty_filter() -> None:
    order = form(action=["pause"], filter=[""], ids=["batch_1"]).order(is_admin=True)
    assert "ids" not in order
    assert len(order["filter"]["status"]) == 8


def test_a_filter_keeps_every_part() -> None:
    query = {
        "status": ["failed", "expired"],
        "metadata": ["team=a=b"],
        "paused": "false",
        "q": "night",
        "created_after": "5",
        "project": "*",
    }
    chosen, project = filter_of_query(urlencode(query, doseq=True))
    assert chosen == {
        "status": ["failed", "expired"],
        "metadata": {"team": "a=b"},
        "paused": False,
        "q": "night",
        "created_after": 5,
    }
    assert project == "*"


@pytest.mark.parametrize("query", ["odd=1", "metadata=x", "paused=maybe", "created_before=soon"])
def test_a_part_that_is_not_understood_is_refused(query: str) -> None:
    with pytest.raises(RequestError):
        filter_of_query(query)


def test_a_reviewed_form_orders_what_was_reviewed() -> None:
    reviewed = form(action=["retry"], ids=["batch_1", "batch_2"], codes=["429", "odd"], next=["./?q=x"])
    again = ActionForm.of(Form(reviewed.pairs()))
    assert again == reviewed
    assert again.order(is_admin=False) == {
        "action": "retry",
        "ids": ["batch_1", "batch_2"],
        "codes": ["429", "odd"],
    }
    limit = form(action=["limit"], ids=["batch_1"], concurrency=[""])
    assert ActionForm.of(Form(limit.pairs())).values == {"concurrency": None}
