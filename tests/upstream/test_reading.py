"""Reading an answer: however the network cuts it, and whatever is in it."""

import asyncio
import time
from email.utils import formatdate
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nightmill.core.outcome import Answered, Broken
from nightmill.upstream.answer import outcome_of, retry_after_s
from nightmill.upstream.connection import Attempt, Connection

LIMIT_BYTES = 10_000


class Wire:
    """A transport that goes nowhere."""

    def __init__(self):
        self.closed = False

    def write(self, data):
        pass

    writelines = write

    def close(self):
        self.closed = True

    abort = close


def read(pieces, *, then_close=True):
    """The outcome of one request answered in these pieces, and how often the connection was freed."""
    loop = asyncio.new_event_loop()
    try:
        buffer, freed = bytearray(65_536), []
        connection = Connection(
            loop=loop,
            buffer=memoryview(buffer),
            max_answer_bytes=LIMIT_BYTES,
            wall_clock=lambda: 0.0,
            freed=freed.append,
            unsent=lambda _attempt: None,
            lost=lambda _connection: None,
            answering=lambda _attempt: None,
        )
        wire = Wire()
        connection.connection_made(wire)
        outcomes = []
        on_outcome = lambda _tag, outcome: outcomes.append(outcome)  # noqa: E731 - two lines less
        connection.ask(Attempt(None, on_outcome, b"", b"", deadline=1.0, timeout_s=1.0))
        for piece in pieces:
            if piece and not wire.closed:
                buffer[: len(piece)] = piece
                connection.buffer_updated(len(piece))
        if then_close:
            connection.connection_lost(None)
        assert len(outcomes) == 1 or not then_close
        return outcomes[0] if outcomes else None, len(freed)
    finally:
        loop.close()


PLAIN = b'HTTP/1.1 200 OK\r\ncontent-length: 11\r\nx-request-id: r-1\r\n\r\n{"ok":true}'
CHUNKS = b'6\r\n{"ok":\r\n5\r\ntrue}\r\n0\r\n\r\n'
ANSWERS = [
    PLAIN,
    b"HTTP/1.1 200 OK\r\nx-request-id: r-1\r\ntransfer-encoding: chunked\r\n\r\n" + CHUNKS,
    b'HTTP/1.1 200 OK\r\nX-REQUEST-ID: r-1\r\n\r\n{"ok":true}',
    b"HTTP/1.1 100 Continue\r\n\r\n" + PLAIN,
]


@given(st.sampled_from(ANSWERS), st.lists(st.integers(0, 200), max_size=12))
def test_an_answer_is_the_same_however_it_is_cut(answer, cuts):
    edges = sorted({0, len(answer), *(min(cut, len(answer)) for cut in cuts)})
    pieces = [answer[start:end] for start, end in pairwise(edges)]
    outcome, _ = read(pieces)
    assert outcome == Answered(200, b'{"ok":true}', "r-1")


@given(st.sampled_from(ANSWERS[:2] + ANSWERS[3:]), st.data())
def test_a_framed_answer_that_ends_early_is_broken(answer, data):
    kept = data.draw(st.integers(0, len(answer) - 1))
    outcome, freed = read([answer[:kept]])
    assert isinstance(outcome, Broken)
    assert freed == 0


@given(st.lists(st.binary(max_size=300), max_size=8))
@example([b"HTTP/1.1 200 OK\r\n\r\n"])
def test_any_bytes_give_some_outcome_and_no_exception(pieces):
    outcome, freed = read(pieces)
    assert outcome is not None
    assert freed <= 1


@given(st.sampled_from(ANSWERS), st.integers(0, 250), st.binary(min_size=1, max_size=4))
def test_a_flipped_byte_gives_some_outcome_and_no_exception(answer, place, noise):
    place = min(place, len(answer))
    outcome, _ = read([answer[:place] + noise + answer[place + len(noise) :]])
    assert outcome is not None


def test_an_answer_frees_its_connection_once():
    assert read([ANSWERS[0]], then_close=False) == (Answered(200, b'{"ok":true}', "r-1"), 1)
    assert read([ANSWERS[2]], then_close=False) == (None, 0)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0.0),
        ("7", 7.0),
        (" 7.5 ", 7.5),
        ("-3", 0.0),
        ("inf", None),
        ("nan", None),
        ("", None),
        ("soon", None),
        ("Thu, 01 Jan 1970 00:02:00 GMT", 20.0),
        ("Thu, 01 Jan 1970 00:02:00 -0000", 20.0),
        ("Thursday, 01-Jan-70 00:02:00 GMT", 20.0),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0),
        ("Thu, 99 Jan 1970 00:00:00 GMT", None),
    ],
)
def test_retry_after_in_all_its_forms(value, seconds):
    assert retry_after_s(value, now=100.0) == seconds


@given(st.text(max_size=40))
def test_no_retry_after_is_an_exception(value):
    seconds = retry_after_s(value, now=time.time())
    assert seconds is None or seconds >= 0


@given(st.integers(0, 4_000_000_000))
def test_a_date_of_ours_comes_back_as_seconds(ahead_s):
    assert retry_after_s(formatdate(ahead_s, usegmt=True), now=0.0) == ahead_s


def test_a_compressed_body_of_no_bytes_is_no_bytes():
    outcome = outcome_of(204, b"", headers={b"content-encoding": b"gzip"}, max_bytes=9, now=0.0)
    assert outcome == Answered(204, b"", None)
