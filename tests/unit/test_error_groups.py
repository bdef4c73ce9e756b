"""Invalid lines with the same error are one group, and memory does not depend on their number."""

from nightmill.core.batch import LineError
from nightmill.validation.error_groups import FIRST_LINES, MOST_GROUPS, ErrorGroups
from nightmill.validation.report import ValidationReport


def add(groups: ErrorGroups, number: int, code: str, message: str, raw: bytes = b"{") -> None:
    groups.add(LineError(code, message, None, number), raw, ordinal=number - 1)


def test_equal_errors_are_one_group_with_the_first_lines():
    groups = ErrorGroups()
    for number in range(1, 100):
        add(groups, number, "invalid_type", "expected an object")
    add(groups, 100, "invalid_type", "expected a string")
    first, second = groups.groups
    assert (first.count, first.lines) == (99, [1, 2, 3, 4, 5])
    assert len(first.lines) == FIRST_LINES
    assert (second.count, second.lines, second.message) == (1, [100], "expected a string")


def test_repeated_custom_ids_are_one_group_whatever_they_are():
    groups = ErrorGroups()
    for number in range(1, 4):
        add(groups, number, "duplicate_custom_id", f"The custom_id '{number}' is a duplicate")
    [group] = groups.groups
    assert (group.count, group.message) == (3, "The custom_id '1' is a duplicate")


def test_the_same_error_with_another_hint_is_another_group():
    groups = ErrorGroups()
    add(groups, 1, "invalid_json_line", "not JSON", b"{'a': 1}")
    add(groups, 2, "invalid_json_line", "not JSON", b'{"a": ')
    assert [group.lines for group in groups.groups] == [[1], [2]]
    assert "Python dict" in groups.groups[0].hint


def test_lines_of_further_groups_are_only_counted():
    groups = ErrorGroups()
    for number in range(1, MOST_GROUPS + 4):
        add(groups, number, "model_not_found", f"The model {number}")
    assert (len(groups.groups), groups.other_lines) == (MOST_GROUPS, 3)
    groups.clear()
    assert (groups.groups, groups.other_lines) == ([], 0)


def test_every_line_goes_on_to_the_report():
    report = ValidationReport()
    groups = ErrorGroups(report)
    for number in range(1, 31):
        add(groups, number, "model_not_found", f"The model {number}")
    assert report.take().count(b"\n") == 30
