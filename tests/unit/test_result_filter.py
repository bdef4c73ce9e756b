"""Which output lines match a filter, and what is read of a line."""

import json

import pytest

from nightmill.core.output_line import answered, unanswered
from nightmill.core.request_line import slice_line
from nightmill.core.result_filter import LineOutcome, ResultFilter, ordinal_of
from nightmill.ids import BatchId, output_line_id

BATCH = BatchId("batch_" + "ab" * 16)
FAILED, COMPLETED = LineOutcome.FAILED, LineOutcome.COMPLETED


def line_of(custom_id="a", *, ordinal=7, status=200, body=b'{"choices": []}', code=None):
    request = slice_line(json.dumps({"custom_id": custom_id, "body": {}}).encode())
    line_id = output_line_id(BATCH, ordinal).encode()
    if code is not None:
        return unanswered(line_id, request, code=code, message="x").text
    return answered(
        line_id, request, endpoint="/v1/chat/completions", status=status, request_id=b'"r"', body=body
    ).text


@pytest.mark.parametrize("ordinal", [0, 7, 49_999, 0xFFFFFFFF])
def test_the_ordinal_of_a_line_is_read_from_its_id(ordinal):
    assert ordinal_of(line_of(ordinal=ordinal)) == ordinal


def test_what_is_no_output_line_has_no_ordinal():
    with pytest.raises(ValueError, match="not an output line"):
        ordinal_of(b'{"custom_id": "a"}')


@pytest.mark.parametrize(
    ("line", "codes"),
    [
        (line_of(code="batch_expired"), {"batch_expired"}),
        (
            line_of(status=400, body=b'{"error": {"code": "too_long", "type": "invalid"}}'),
            {"400", "too_long", "invalid"},
        ),
        (line_of(status=429, body=b'{"error": {"code": 429}}'), {"429"}),
        (line_of(status=500, body=b'{"error": "broken"}'), {"500"}),
        (line_of(status=500, body=b"<html>"), {"500", "invalid_upstream_answer", "server_error"}),
        (line_of(status=422, body=b'{"detail": [1]}'), {"422"}),
        (
            line_of(status=400, body=b'{"object": "error", "type": "BadRequest", "code": 400}'),
            {"400", "BadRequest"},
        ),
    ],
)
def test_a_failed_line_has_the_codes_of_its_error_and_its_status(line, codes):
    for code in codes:
        assert ResultFilter(codes=frozenset({code})).matches(line, FAILED)
    assert not ResultFilter(codes=frozenset({"another"})).matches(line, FAILED)


def test_a_filter_without_fields_matches_every_line():
    assert ResultFilter().matches(b"anything", FAILED)
    assert ResultFilter().matches(b"anything", COMPLETED)


def test_an_outcome_matches_the_lines_of_its_file():
    assert ResultFilter(outcome=FAILED).matches(b"", FAILED)
    assert not ResultFilter(outcome=FAILED).matches(b"", COMPLETED)


def test_a_code_matches_failed_lines_only():
    wanted = ResultFilter(codes=frozenset({"batch_expired", "429"}))
    assert wanted.matches(line_of(code="batch_expired"), FAILED)
    assert wanted.matches(line_of(status=429, body=b'{"error": {}}'), FAILED)
    assert not wanted.matches(line_of(code="batch_cancelled"), FAILED)
    assert not wanted.matches(line_of(), COMPLETED)
    assert not wanted.wants(COMPLETED)


@pytest.mark.parametrize("custom_id", ["a", "ä\n☃", "\ud800"])
def test_a_custom_id_matches_however_it_is_written(custom_id):
    wanted = ResultFilter(custom_ids=frozenset({custom_id}))
    assert wanted.matches(line_of(custom_id), COMPLETED)
    assert wanted.matches(line_of(custom_id, code="batch_expired"), FAILED)
    assert not wanted.matches(line_of("b"), COMPLETED)
