"""How the work of answers is learned."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightmill.core.answer_work import UNKNOWN_ANSWER_WORK, AnswerWork, work_of_answers
from nightmill.core.batch import Tally, Usage
from nightmill.ids import BatchId

CHAT = ("/v1/chat/completions", "m")
EMBEDDINGS = ("/v1/embeddings", "m")
ONE, TWO = BatchId("batch_1"), BatchId("batch_2")


def test_nothing_is_known_before_the_first_answer():
    assert AnswerWork().expected(ONE, CHAT) == UNKNOWN_ANSWER_WORK


def test_a_new_batch_has_the_average_of_its_model_until_it_has_answers():
    work = AnswerWork()
    work.learn(ONE, CHAT, answers=10, work=20_000)
    assert work.expected(ONE, CHAT) == work.expected(TWO, CHAT) == 2_000
    assert work.expected(TWO, EMBEDDINGS) == UNKNOWN_ANSWER_WORK
    work.learn(TWO, CHAT, answers=1, work=50)
    assert (work.expected(ONE, CHAT), work.expected(TWO, CHAT)) == (2_000, 50)


def test_no_new_answers_change_nothing():
    work = AnswerWork()
    work.learn(ONE, CHAT, answers=0, work=0)
    assert work.expected(ONE, CHAT) == UNKNOWN_ANSWER_WORK


def test_later_answers_replace_earlier_ones():
    work = AnswerWork()
    work.learn(ONE, CHAT, answers=10_000, work=10_000 * 100)
    for _ in range(30):
        work.learn(ONE, CHAT, answers=100, work=100 * 900)
    assert work.expected(ONE, CHAT) == pytest.approx(900, rel=0.01)


@given(st.lists(st.tuples(st.integers(1, 2_000), st.floats(0, 1e6)), min_size=1, max_size=30))
def test_the_average_lies_between_the_shortest_and_the_longest(seen):
    work = AnswerWork()
    for answers, each in seen:
        work.learn(ONE, CHAT, answers=answers, work=answers * each)
    lengths = [each for _, each in seen]
    assert min(lengths) * 0.999 - 1e-6 <= work.expected(ONE, CHAT) <= max(lengths) * 1.001 + 1e-6


def test_batches_that_are_long_gone_are_forgotten():
    work = AnswerWork()
    work.learn(ONE, CHAT, answers=1, work=7)
    for number in range(5_000):
        work.learn(BatchId(f"batch_x{number}"), EMBEDDINGS, answers=1, work=9)
    assert work.expected(ONE, ("/v1/chat/completions", "other")) == UNKNOWN_ANSWER_WORK


def test_tokens_are_the_measure_where_answers_report_them():
    usage = Usage(input_tokens=50, output_tokens=30, total_tokens=80)
    assert work_of_answers(Tally(3, 0, usage), 10_000) == 120
    assert work_of_answers(Tally(3, 1), 10_000) == 10_000
