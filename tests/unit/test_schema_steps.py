"""Which step may run when, and which nightmills may work on what it leaves."""

import pytest

from nightmill.store import steps
from nightmill.store.steps import Stage, Step, next_stop, oldest_on, refusal

BEFORE, AFTER = Stage.BEFORE, Stage.AFTER


@pytest.fixture
def released(monkeypatch):
    """Two releases: the first ends with 0003, the second brings 0004 and 0005."""
    made = (
        *(Step("0001", BEFORE), Step("0002", BEFORE), Step("0003", AFTER)),
        *(Step("0004", BEFORE), Step("0005", AFTER)),
    )
    monkeypatch.setattr(steps, "STEPS", made)
    monkeypatch.setattr(steps, "SCHEMA_VERSION", "0005")
    monkeypatch.setattr(steps, "NEEDED_VERSION", "0004")


def test_a_before_step_shuts_nobody_out_and_an_after_step_all_who_lack_the_one_before_it(released):
    assert [oldest_on(step.version) for step in steps.STEPS] == ["0001", "0001", "0002", "0002", "0004"]


@pytest.mark.parametrize(
    ("found", "stage", "wanted"),
    [
        ("0003", BEFORE, "0004"),
        ("0004", BEFORE, "0004"),
        ("0005", BEFORE, "0005"),
        ("0004", AFTER, "0005"),
        ("0005", AFTER, "0005"),
        ("0001", None, "0005"),
        ("0005", None, "0005"),
    ],
)
def test_a_stage_goes_as_far_as_it_may(released, found, stage, wanted):
    assert next_stop(found, stage) == wanted


def test_an_after_step_of_an_earlier_release_is_not_passed_while_its_processes_may_live(released):
    with pytest.raises(ValueError, match="step 0003 of an earlier release"):
        next_stop("0002", BEFORE)


def test_what_comes_after_waits_for_what_comes_before(released):
    with pytest.raises(ValueError, match="run 'nightmill migrate --before'"):
        next_stop("0003", AFTER)


@pytest.mark.parametrize(
    ("found", "oldest", "expected"),
    [
        ("0003", None, "migrate --before"),
        ("0004", None, None),
        ("0005", None, None),
        ("0006", None, "newer"),
        ("0006", "0006", "newer"),
        ("0006", "0005", None),
        ("0006", "0002", None),
    ],
)
def test_a_schema_is_accepted_if_its_compatibility_row_allows_this_version(released, found, oldest, expected):
    reason = refusal(found, oldest)
    assert (reason is None) == (expected is None)
    assert expected is None or expected in reason
