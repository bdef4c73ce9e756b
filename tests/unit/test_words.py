"""The words of counts, failures, durations and ids, which every command shares."""

from nightmill.core.words import (
    FailureGroup,
    clock,
    counts_text,
    cut,
    duration,
    failures_text,
    final_counts_text,
    short_id,
)

NOPE = "The model nope does not exist."


def test_done_is_ok_plus_failed():
    assert counts_text(300, 260, 20) == "280 of 300 done (260 ok, 20 failed)"
    assert counts_text(50_000, 50_000, 0) == "50,000 of 50,000 done (50,000 ok, 0 failed)"


def test_the_lines_that_an_ended_batch_leaves_are_named():
    assert final_counts_text(600, 322, 24) == "346 of 600 done (322 ok, 24 failed), 254 left"
    assert final_counts_text(3, 3, 0) == counts_text(3, 3, 0)


def test_counts_have_no_brackets_while_nothing_is_done():
    assert counts_text(300, 0, 0) == "0 of 300 done"


def test_failures_are_grouped_by_code_and_message():
    assert failures_text([FailureGroup(20, "404", NOPE)]) == f'20 failed: 20x 404 "{NOPE}"'
    groups = [FailureGroup(15, "404", NOPE), FailureGroup(5, "batch_expired")]
    assert failures_text(groups) == f'20 failed: 15x 404 "{NOPE}", 5x batch_expired'


def test_failures_that_were_read_in_part_say_so():
    text = failures_text([FailureGroup(1_000, "500", "no")], 20_000)
    assert text == '20,000 failed; of the first 1,000: 1,000x 500 "no"'
    assert failures_text([], 3) == "3 failed"
    assert not failures_text([], 0)


def test_rare_kinds_of_failures_are_counted_together():
    groups = [FailureGroup(9 - number, f"{500 + number}") for number in range(5)]
    assert failures_text(groups) == "35 failed: 9x 500, 8x 501, 7x 502, 11x of 2 other kinds"


def test_the_message_of_a_failure_is_one_short_line_without_control_characters():
    text = failures_text([FailureGroup(1, "500", "a\x1b[2J\nb " + "x" * 500)])
    assert text.startswith('1 failed: 1x 500 "a[2J b xxx')
    assert text.endswith('…"')
    assert len(text) < 150


def test_an_id_of_nightmill_has_a_short_form_and_others_have_not():
    assert short_id("batch_3f2a9c1b" + "0" * 24) == "3f2a9c1b"
    assert short_id("batch_1") == "batch_1"
    assert short_id("msgbatch_3f2a9c1b" + "0" * 24) == "msgbatch_3f2a9c1b" + "0" * 24


def test_durations_have_one_unit():
    assert [duration(seconds) for seconds in (-1, 12, 119, 7_300, 400_000)] == [
        "0 s",
        "12 s",
        "1 min",
        "2 h",
        "4 d",
    ]


def test_a_clock_has_hours_only_when_there_are_some():
    assert [clock(seconds) for seconds in (0, 5, 754, 3_723)] == ["0:00", "0:05", "12:34", "1:02:03"]


def test_a_cut_text_ends_with_an_ellipsis():
    assert cut("abcdef", 6) == "abcdef"
    assert cut("abcde fghi", 7) == "abcde…"
