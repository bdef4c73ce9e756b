"""The proof reports each kind of breach."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from nightmill.emulator.answers import answer
from nightmill_torture.proof import (
    ANSWERS_MIXED,
    ANSWERS_UNKNOWN,
    LINES_DOUBLED,
    LINES_LOST,
    MADE_TWICE,
    MISCOUNTED,
    NOT_ENDED,
    SETTLED_CHANGED,
    WRONG_END,
    Expected,
    Found,
    Proof,
    Variety,
    prove,
    repeated,
)
from nightmill_torture.watch import COUNTS_BACK, FILES_CHANGED, STAMPS_CHANGED, STATUS_BACK, Seen, Watch

ENDPOINT = "/v1/chat/completions"
MARKERS = ["a", "b", "a", "c"]
BODIES = {name: b'{"model":"m","messages":[{"content":"marker:%s"}]}' % name.encode() for name in "abc"}
EXPECTED = Expected(batch_id="batch_1", variety=Variety.PLAIN, endpoint=ENDPOINT, bodies=BODIES)


def row(name: str, number: int) -> dict[str, Any]:
    body = json.loads(answer(ENDPOINT, BODIES[name]).body)
    response = {"status_code": 200, "request_id": f"emulated-{number}", "body": body}
    return {"custom_id": name, "response": response, "error": None}


def missing(name: str) -> dict[str, Any]:
    return {"custom_id": name, "response": None, "error": {"code": "batch_expired"}}


FOUND = Found(status="completed", counts=(3, 3, 0), output=[row("a", 3), row("b", 2), row("c", 4)], error=[])


def proven(found: Found | None = FOUND, *, expected: Expected = EXPECTED, **also: Any) -> Proof:
    proof = Proof()
    ends = {} if found is None else {"batch_1": found}
    prove(
        proof,
        [expected],
        {**ends, **also.get("others", {})},
        markers=MARKERS,
        settled=also.get("settled", {"a": "emulated-3", "b": "emulated-2"}),
    )
    return proof


def test_a_batch_with_every_line_answered_once_keeps_the_promise() -> None:
    proof = proven()
    assert proof.is_kept
    assert set(proof.breaches.values()) == {0}


def test_an_expired_batch_keeps_it_when_the_rest_stands_in_the_error_file() -> None:
    found = Found(
        status="expired", counts=(3, 1, 0), output=[row("b", 2)], error=[missing("a"), missing("c")]
    )
    expected = replace(EXPECTED, variety=Variety.EXPIRING)
    assert proven(found, expected=expected, settled={"b": "emulated-2"}).is_kept
    assert proven(found, expected=expected).breaches[SETTLED_CHANGED] == 1


def test_a_batch_cancelled_before_its_input_was_accepted_has_no_lines_and_asked_nothing() -> None:
    found = Found(status="cancelled", counts=(0, 0, 0), output=[], error=[])
    expected = replace(EXPECTED, variety=Variety.CANCELLED, bodies={"never-asked": BODIES["a"]})
    assert proven(found, expected=expected, settled={}).is_kept
    asked = replace(EXPECTED, variety=Variety.CANCELLED)
    assert proven(found, expected=asked, settled={}).breaches[WRONG_END] == 1


def changed(**changes: Any) -> Callable[[], Proof]:
    return lambda: proven(replace(FOUND, **changes))


@pytest.mark.parametrize(
    ("name", "prove_it"),
    [
        (LINES_LOST, changed(output=FOUND.output[1:], counts=(3, 2, 0))),
        (LINES_DOUBLED, changed(output=[*FOUND.output, row("a", 3)], counts=(3, 4, 0))),
        (LINES_DOUBLED, changed(error=[missing("a")])),
        (ANSWERS_MIXED, changed(output=[*FOUND.output[:2], {**row("b", 4), "custom_id": "c"}])),
        (ANSWERS_UNKNOWN, changed(output=[*FOUND.output[:2], row("c", 2)])),
        (ANSWERS_UNKNOWN, changed(output=[*FOUND.output[:2], row("c", 9)])),
        (SETTLED_CHANGED, changed(output=[row("a", 1), *FOUND.output[1:]])),
        (NOT_ENDED, lambda: proven(None)),
        (NOT_ENDED, changed(status="finalizing")),
        (WRONG_END, changed(status="expired")),
        (MADE_TWICE, lambda: proven(others={"batch_2": FOUND})),
        (MISCOUNTED, changed(counts=(3, 2, 1))),
    ],
)
def test_each_breach_is_seen(name: str, prove_it: Callable[[], Proof]) -> None:
    proof = prove_it()
    assert proof.breaches[name] >= 1
    assert not proof.is_kept
    assert any(example.startswith(name) for example in proof.examples)


def test_requests_for_the_same_line_are_repeated() -> None:
    assert repeated(MARKERS) == 1


SEEN = Seen("batch_1", "in_progress", (3, 2, 0), {"created_at": 5, "in_progress_at": 6}, (None, None))


@pytest.mark.parametrize(
    ("name", "then"),
    [
        (COUNTS_BACK, replace(SEEN, counts=(3, 1, 0))),
        (STAMPS_CHANGED, replace(SEEN, stamps={"created_at": 5, "in_progress_at": 7})),
        (STAMPS_CHANGED, replace(SEEN, stamps={"created_at": 5, "in_progress_at": None})),
        (STATUS_BACK, replace(SEEN, status="validating")),
        (FILES_CHANGED, replace(SEEN, status="cancelled", files=("file-2", None))),
    ],
)
def test_what_goes_backwards_before_a_client_is_seen(name: str, then: Seen) -> None:
    proof = Proof()
    watch = Watch(_NoClient(), proof)
    watch.note(replace(SEEN, status="cancelled", files=("file-1", None)) if name in _AT_THE_END else SEEN)
    assert proof.is_kept
    watch.note(then)
    assert proof.breaches[name] == 1


_AT_THE_END = {FILES_CHANGED}


class _NoClient:
    def with_options(self, **_: Any) -> Any:
        return self
