"""The rows, chips and menus of the list of batches."""

from typing import Any

from nightmill.dashboard.batch_rows import lateness, row_of, summary_of
from nightmill.dashboard.list_address import ListAddress
from nightmill.dashboard.list_views import applied_filters, chips, matching_of, menus, metadata_menu

DEADLINE = 1_000_000


def document(**fields: Any) -> dict[str, Any]:
    """A batch as the API lists it."""
    return {
        "id": "batch_1",
        "status": "in_progress",
        "endpoint": "/v1/chat/completions",
        "created_at": 900_000,
        "deadline": DEADLINE,
        "request_counts": {"total": 100, "completed": 60, "failed": 10, "invalid": 0},
        "forecast": {"in_flight": 8, "lines_per_s": 2.5, "ends_at": 950_000, "deadline_odds": 0.99},
        **fields,
    }


def facets(**fields: Any) -> dict[str, Any]:
    empty: dict[str, list[Any]] = {
        name: [] for name in ("status", "model", "endpoint", "upstream", "project", "metadata")
    }
    return {"total": 0, "paused": 0, **empty, **fields}


def address(*pairs: tuple[str, str]) -> ListAddress:
    return ListAddress.of(pairs, now=DEADLINE)


def test_the_parts_of_the_progress_sum_up_to_the_whole() -> None:
    for in_flight in (0, 8, 30, 31, 5_000):
        counts = row_of(document(forecast={"in_flight": in_flight}))["counts"]
        parts = [counts[name] for name in ("ok", "failed", "in_flight", "waiting")]
        assert sum(parts) == counts["total"] == 100
        assert min(parts) >= 0


def test_a_batch_that_has_ended_has_neither_rate_nor_lateness() -> None:
    row = row_of(document(status="completed", forecast=None, completed_at=960_000))
    assert (row["lines_per_s"], row["late"], row["ended_at"]) == (None, None, 960_000)


def test_a_batch_that_was_paused_when_it_ended_is_not_shown_as_paused() -> None:
    assert row_of(document(paused_at=950_000))["is_paused"]
    assert not row_of(document(status="cancelled", paused_at=950_000, cancelled_at=960_000))["is_paused"]


def test_a_forecast_behind_the_deadline_is_late() -> None:
    late = lateness({"ends_at": DEADLINE + 60.4, "deadline_odds": 0.2}, DEADLINE)
    assert late == {"by_s": 60, "odds": 0.2}


def test_a_deadline_that_may_be_missed_is_marked_without_a_time() -> None:
    assert lateness({"ends_at": DEADLINE - 1, "deadline_odds": 0.7}, DEADLINE) == {"by_s": None, "odds": 0.7}
    assert lateness({"ends_at": DEADLINE - 1, "deadline_odds": 0.95}, DEADLINE) is None
    assert lateness({}, DEADLINE) is None


def test_the_summary_adds_the_unfinished_rows() -> None:
    rows = [
        row_of(document()),
        row_of(document(id="batch_2", forecast={"lines_per_s": 1.5, "ends_at": DEADLINE + 9})),
        row_of(document(id="batch_3", status="completed", forecast=None)),
    ]
    found = summary_of(rows, unfinished=12)
    assert (found["unfinished"], found["of_rows"], found["late"]) == (12, 2, 1)
    assert (found["lines_per_s"], found["left"], found["last_ends_at"]) == (4.0, 60, DEADLINE + 9)


def test_chips_count_paused_batches_once() -> None:
    counted = facets(
        total=9,
        paused=2,
        status=[{"value": "in_progress", "count": 5}, {"value": "completed", "count": 4}],
    )
    found = {chip["label"]: chip["count"] for chip in chips(address(), counted)}
    assert (found["All"], found["Unfinished"], found["In progress"], found["Paused"]) == (9, 5, 3, 2)


def test_the_counts_of_chips_say_how_many_match() -> None:
    counted = facets(
        total=9,
        paused=2,
        status=[{"value": "in_progress", "count": 5}, {"value": "completed", "count": 4}],
    )

    def matching(*statuses: str) -> int | None:
        return matching_of(address(*(("status", one) for one in statuses)), counted)

    assert [matching(), matching("in_progress"), matching("paused"), matching("expired")] == [9, 3, 2, 0]
    assert matching("unfinished", "completed") == 9
    assert matching("paused", "completed") is None


def test_a_chosen_chip_leads_back_to_all() -> None:
    here = address(("status", "failed"), ("model", "m"))
    by_label = {chip["label"]: chip for chip in chips(here, facets())}
    assert by_label["Failed"]["is_chosen"]
    assert by_label["Failed"]["href"] == "./?model=m"
    assert by_label["Expired"]["href"] == "./?model=m&status=expired"


def test_a_menu_offers_the_values_of_a_facet() -> None:
    counted = facets(model=[{"value": "a", "count": 3}, {"value": "b c", "count": 1}])
    menu = menus(address(("model", "a")), counted)[0]
    assert [(item["value"], item["is_chosen"], item["href"]) for item in menu["items"]] == [
        ("a", True, "./"),
        ("b c", False, "./?model=b+c"),
    ]


def test_pairs_of_metadata_narrow_the_view_one_after_the_other() -> None:
    counted = facets(metadata=[{"key": "team", "values": [{"value": "search", "count": 3}]}])
    found = metadata_menu(address(("metadata", "run=nightly")), counted)
    assert found[0]["items"][0]["href"] == "./?metadata=run%3Dnightly&metadata=team%3Dsearch"


def test_every_filter_can_be_taken_away_by_itself() -> None:
    here = address(("status", "failed"), ("q", "tickets"), ("metadata", "a=1"), ("range", "night"))
    found = {one["text"]: one["href"] for one in applied_filters(here)}
    assert found == {
        "contains “tickets”": "./?status=failed&metadata=a%3D1&range=night",
        "metadata: a=1": "./?status=failed&q=tickets&range=night",
        "last night": "./?status=failed&q=tickets&metadata=a%3D1",
    }
