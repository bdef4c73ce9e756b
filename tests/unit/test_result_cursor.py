"""The cursor of a followed batch: runs of numbers, their text, and each line exactly once over any breaks."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightmill.core.number_runs import NumberRuns
from nightmill.core.result_cursor import ResultCursor, ResultPhase
from nightmill.errors import RequestError
from nightmill.ids import BatchId

BATCH = BatchId("batch_" + "0" * 32)
OTHER = BatchId("batch_" + "1" * 32)
numbers = st.lists(st.integers(0, 60))


@given(numbers)
def test_runs_are_the_set_of_their_numbers(added):
    runs, known = NumberRuns(), set()
    for number in added:
        assert runs.add(number) == (number not in known)
        known.add(number)
        assert len(runs) == len(known)
        for start in (0, 7, 60):
            assert runs.missing_from(start) == min(set(range(start, 62)) - known)
        assert runs.run_count == sum(one - 1 not in known for one in known)
    assert [number for number in range(62) if number in runs] == sorted(known)


@given(numbers, st.lists(st.integers(0, 1 << 39), max_size=5), st.binary(max_size=3))
def test_packed_runs_come_back(near, far, behind):
    runs = NumberRuns(near + far)
    packed = runs.pack()
    found, at = NumberRuns.unpack(packed + behind, 0)
    assert (found, len(found), at) == (runs, len(runs), len(packed))


def test_runs_without_gaps_are_a_few_bytes_however_many_numbers_they_have():
    assert len(NumberRuns(range(100_000)).pack()) < 8


@given(numbers, numbers, st.sampled_from(ResultPhase), st.integers(0, 1 << 50))
def test_a_cursor_comes_back_from_its_text(segments, lines, phase, offset):
    cursor = ResultCursor(BATCH)
    cursor.segments, cursor.lines = NumberRuns(segments), NumberRuns(lines)
    cursor.phase, cursor.offset = phase, offset
    found = ResultCursor.parse(cursor.text(), BATCH)
    assert (found.segments, found.lines) == (cursor.segments, cursor.lines)
    assert (found.phase, found.offset) == (phase, offset)
    assert found.text() == cursor.text()


@given(st.text(max_size=60) | st.binary(max_size=40).map(lambda raw: base64.urlsafe_b64encode(raw).decode()))
def test_another_text_is_no_cursor(text):
    with pytest.raises(RequestError) as caught:
        ResultCursor.parse(text, BATCH)
    assert (caught.value.param, caught.value.code) == ("after", "invalid_cursor")


@given(st.data())
def test_a_cursor_with_one_changed_letter_is_no_cursor(data):
    cursor = ResultCursor(BATCH)
    for number in (0, 1, 5):
        cursor.lines.add(number)
    text = cursor.text()
    at = data.draw(st.integers(0, len(text) - 2))  # of the last letter some bits say nothing
    letter = data.draw(st.sampled_from("ABCabc019-_").filter(lambda letter: letter != text[at]))
    with pytest.raises(RequestError):
        ResultCursor.parse(text[:at] + letter + text[at + 1 :], BATCH)


def test_a_cursor_of_another_batch_is_refused_as_such():
    with pytest.raises(RequestError) as caught:
        ResultCursor.parse(ResultCursor(BATCH).text(), OTHER)
    assert caught.value.code == "cursor_of_another_batch"


@given(st.data())
def test_each_line_is_given_once_over_any_order_of_answers_and_any_breaks(data):
    """Lines are answered in any order; the client breaks off anywhere and comes back with its last cursor."""
    total = data.draw(st.integers(1, 30))
    answered_live = data.draw(st.permutations(range(total)))[: data.draw(st.integers(0, total))]
    given_lines: list[int] = []
    text = None

    def cursor() -> ResultCursor:
        return ResultCursor(BATCH) if text is None else ResultCursor.parse(text, BATCH)

    for end in sorted(data.draw(st.lists(st.integers(0, len(answered_live)), max_size=6))):
        now = cursor()
        for ordinal in answered_live[:end]:
            if now.lines.add(ordinal):
                given_lines.append(ordinal)
                text = now.text()
                if data.draw(st.booleans()):
                    break
    output = [ordinal for ordinal in range(total) if ordinal % 3]
    error = [ordinal for ordinal in range(total) if not ordinal % 3]
    files = {ResultPhase.OUTPUT: output, ResultPhase.ERROR: error}
    now = cursor()
    while now.phase is not ResultPhase.END:
        if now.phase is ResultPhase.PARTS:
            now.enter(ResultPhase.OUTPUT)
        rest = files[now.phase][now.offset :]
        if not rest:
            now.enter(ResultPhase(now.phase + 1))
            continue
        now.offset += 1
        if rest[0] not in now.lines:
            given_lines.append(rest[0])
            text = now.text()
            if data.draw(st.booleans()):
                now = cursor()
    assert sorted(given_lines) == list(range(total))
