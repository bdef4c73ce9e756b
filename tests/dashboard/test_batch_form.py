"""What the form of a new batch asks the API for, and how far a canary is."""

from typing import Any

import pytest

from nightmill.dashboard.screens.batch_form import UNTOUCHED, WrongFieldError, batch_of, fields_of
from nightmill.dashboard.screens.canary_answers import output_tokens_of, phase_of
from nightmill.dashboard.visit import Form

USUAL = {**UNTOUCHED, "endpoint": "/v1/embeddings", "window": "24h"}


def wanted(**fields: str) -> dict[str, Any]:
    return batch_of({**USUAL, **fields}, "file-1")


def own(**fields: str) -> dict[str, Any]:
    return wanted(**fields)["nightmill"]


def test_an_untouched_form_waits_for_a_person_after_the_first_lines() -> None:
    assert wanted() == {
        "input_file_id": "file-1",
        "endpoint": "/v1/embeddings",
        "completion_window": "24h",
        "nightmill": {"priority": 0, "canary": 5, "canary_pause": True, "canary_max_failed": 1.0},
    }


def test_a_batch_may_go_on_by_itself_or_send_all_lines() -> None:
    assert own(start="go_on", canary="20", canary_max_failed="25") == {
        "priority": 0,
        "canary": 20,
        "canary_max_failed": 0.25,
    }
    assert own(start="all") == {"priority": 0}


def test_every_other_field_is_passed_on() -> None:
    fields = {
        "start": "all",
        "priority": "-3",
        "on_invalid": "skip",
        "max_output_tokens": "1,000,000",
        "max_cost": "12.5",
        "record_attempts": "yes",
    }
    assert own(**fields) == {
        "priority": -3,
        "on_invalid": "skip",
        "max_output_tokens": 1_000_000,
        "max_cost": 12.5,
        "record_attempts": True,
    }


@pytest.mark.parametrize(("written", "value"), [("5%", 0.05), ("20", 20.0), ("", None)])
def test_the_most_failed_lines_are_a_number_or_a_share(written: str, value: float | None) -> None:
    assert own(max_failures=written).get("max_failures") == value


def test_metadata_has_a_pair_on_each_line() -> None:
    assert wanted(metadata="team = support\r\n\r\nnote=a=b")["metadata"] == {"team": "support", "note": "a=b"}
    assert "metadata" not in wanted(metadata=" \n")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("metadata", "team support"),
        ("metadata", "= support"),
        ("priority", "high"),
        ("canary", "1.5"),
        ("max_cost", "nan"),
        ("max_cost", "inf"),
        ("max_failures", "x%"),
        ("max_failures", "0.5"),
    ],
)
def test_a_field_that_can_not_be_read_is_named(name: str, text: str) -> None:
    with pytest.raises(WrongFieldError, match="Write"):
        wanted(**{name: text})


def test_the_fields_of_a_form_are_kept_as_written() -> None:
    given = {"endpoint": "/v1/embeddings", "metadata": "a = <b>", "file": "file-1"}
    form = Form([*given.items()])
    assert fields_of(form)["metadata"] == "a = <b>"
    assert "file" not in fields_of(form)


@pytest.mark.parametrize(
    ("status", "paused", "state", "phase"),
    [
        ("validating", False, "running", "validating"),
        ("failed", False, "ended", "refused"),
        ("in_progress", False, "running", "running"),
        ("in_progress", True, "running", "running"),
        ("in_progress", True, "passed", "decide"),
        ("in_progress", False, "passed", "sent_on"),
        ("in_progress", False, "whole", "sent_on"),
        ("in_progress", False, None, "sent_on"),
        ("cancelling", False, "stopped", "stopped"),
        ("cancelled", False, "ended", "ended"),
        ("completed", False, "passed", "ended"),
    ],
)
def test_the_phase_says_what_a_person_can_do(
    status: str, paused: bool, state: str | None, phase: str
) -> None:
    batch = {"status": status, "paused_at": 1 if paused else None}
    assert phase_of(batch, None if state is None else {"state": state}) == phase


def test_output_tokens_are_read_from_any_answer() -> None:
    assert output_tokens_of({"usage": {"completion_tokens": 7}}) == 7
    assert output_tokens_of({"usage": {"output_tokens": 8}}) == 8
    for body in (None, [], {}, {"usage": None}, {"usage": {"completion_tokens": "7"}}):
        assert output_tokens_of(body) is None
