"""Compares expected batches with found batches, output lines and the upstream's record. Pure.

Every check is a named row with a count of breaches that must be 0. How often lines may be sent again is the
subject of `repeats`.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from nightmill.emulator.answers import answer
from nightmill_torture.upstream import REQUEST_ID_PREFIX

_TERMINAL = {"completed", "failed", "expired", "cancelled"}
_KEPT_EXAMPLES = 5


class Variety(StrEnum):
    """The course that a batch is made for."""

    PLAIN = "plain"
    PARTS = "parts"
    """Its input arrives as an upload in parts."""
    CANCELLED = "cancelled"
    EXPIRING = "expiring"
    BAD = "bad"
    """Its input is invalid, so it fails."""


_ENDS: Mapping[Variety, frozenset[str]] = {
    Variety.PLAIN: frozenset({"completed"}),
    Variety.PARTS: frozenset({"completed"}),
    Variety.CANCELLED: frozenset({"cancelled", "completed"}),
    Variety.EXPIRING: frozenset({"expired", "completed"}),
    Variety.BAD: frozenset({"failed"}),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """A batch that the client made. `bodies` maps each custom_id, the marker of its line, to the body."""

    batch_id: str
    variety: Variety
    endpoint: str
    bodies: Mapping[str, bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A batch as the server reports it at the end, and the rows of its two files."""

    status: str
    counts: tuple[int, int, int]
    output: Sequence[Mapping[str, Any]]
    error: Sequence[Mapping[str, Any]]


@dataclass(slots=True)
class Proof:
    """Counts of breaches by check; `examples` describes the first breaches."""

    breaches: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)

    def check(self, name: str) -> None:
        """Adds the check, without a breach."""
        self.breaches[name] += 0

    def breach(self, name: str, detail: str, *, count: int = 1) -> None:
        self.breaches[name] += count
        if len(self.examples) < _KEPT_EXAMPLES:
            self.examples.append(f"{name}: {detail}")

    @property
    def is_kept(self) -> bool:
        return not self.breaches.total()


LINES_LOST = "lines lost"
LINES_DOUBLED = "lines doubled"
ANSWERS_MIXED = "answers that belong to another line"
ANSWERS_UNKNOWN = "answers the upstream never gave"
SETTLED_CHANGED = "settled answers changed or lost"
NOT_ENDED = "batches without an end"
WRONG_END = "batches with a wrong end"
MADE_TWICE = "batches made twice"
MISCOUNTED = "request_counts that differ from the files"


def prove(
    proof: Proof,
    expected: Iterable[Expected],
    found: Mapping[str, Found],
    *,
    markers: Sequence[str],
    settled: Mapping[str, str],
) -> None:
    """Adds every check and its breaches to `proof`.

    Args:
        markers: the line of each request in the upstream's record.
        settled: custom_id -> request id of every answer that was seen durable during the run.
    """
    for name in (LINES_LOST, LINES_DOUBLED, ANSWERS_MIXED, ANSWERS_UNKNOWN, SETTLED_CHANGED, NOT_ENDED):
        proof.check(name)
    for name in (WRONG_END, MADE_TWICE, MISCOUNTED):
        proof.check(name)
    known: set[str] = set()
    for batch in expected:
        known.add(batch.batch_id)
        end = found.get(batch.batch_id)
        if end is None or end.status not in _TERMINAL:
            proof.breach(NOT_ENDED, f"{batch.batch_id} is {end.status if end else 'unknown'}")
            continue
        if end.status not in _ENDS[batch.variety]:
            proof.breach(WRONG_END, f"{batch.batch_id}, made to be {batch.variety}, is {end.status}")
        if end.status == "failed" or (end.status == "cancelled" and end.counts[0] == 0):
            _prove_unsent(proof, batch, end, markers=markers)
        else:
            _prove_lines(proof, batch, end, markers=markers, settled=settled)
    for batch_id in found.keys() - known:
        proof.breach(MADE_TWICE, batch_id)


def _prove_unsent(proof: Proof, batch: Expected, found: Found, *, markers: Sequence[str]) -> None:
    """A batch that was refused, or cancelled before its input was accepted, has no rows and sent no line."""
    rows = [*found.output, *found.error]
    sent = batch.bodies.keys() & set(markers)
    if rows or sent:
        proof.breach(WRONG_END, f"{batch.batch_id}: {len(sent)} lines sent, {len(rows)} rows, none accepted")


def _prove_lines(
    proof: Proof, batch: Expected, found: Found, *, markers: Sequence[str], settled: Mapping[str, str]
) -> None:
    rows = [*found.output, *found.error]
    times = Counter(str(row["custom_id"]) for row in rows)
    for custom_id in batch.bodies:
        if times[custom_id] == 0:
            proof.breach(LINES_LOST, f"{custom_id} of {batch.batch_id} ({found.status})")
    for custom_id, number in times.items():
        if number > 1 or custom_id not in batch.bodies:
            proof.breach(LINES_DOUBLED, f"{custom_id} of {batch.batch_id}", count=max(1, number - 1))
    answers: dict[str, str] = {}
    for row in found.output:
        custom_id, response = str(row["custom_id"]), row["response"]
        request_id = str(response["request_id"])
        answers[custom_id] = request_id
        if custom_id in batch.bodies:
            right = json.loads(answer(batch.endpoint, batch.bodies[custom_id]).body)
            if response["status_code"] != 200 or response["body"] != right:
                proof.breach(ANSWERS_MIXED, f"{custom_id} of {batch.batch_id} has the body of another line")
        if _line_of(request_id, markers) != custom_id:
            proof.breach(ANSWERS_UNKNOWN, f"{custom_id} of {batch.batch_id} by request {request_id}")
    for custom_id in batch.bodies.keys() & settled.keys():
        if answers.get(custom_id) != settled[custom_id]:
            now = answers.get(custom_id, "none")
            proof.breach(SETTLED_CHANGED, f"{custom_id} had answer {settled[custom_id]}, now {now}")
    if found.status == "completed" and found.error:
        proof.breach(WRONG_END, f"{batch.batch_id} is completed with {len(found.error)} error lines")
    total, completed, failed = found.counts
    if (total, completed, failed) != (len(batch.bodies), len(found.output), 0):
        proof.breach(MISCOUNTED, f"{batch.batch_id}: {found.counts}, {len(found.output)} output lines")


def _line_of(request_id: str, markers: Sequence[str]) -> str | None:
    number = request_id.removeprefix(REQUEST_ID_PREFIX)
    if not number.isdecimal() or not 1 <= int(number) <= len(markers):
        return None
    return markers[int(number) - 1]


def repeated(markers: Sequence[str]) -> int:
    """How many requests were for a line that had been sent before."""
    return len(markers) - len(set(markers))
