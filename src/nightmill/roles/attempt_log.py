"""Records the attempts of a leased segment, for batches that ask for a file of their attempts.

Records are collected in memory and written as blobs when the segment ends and at intervals. What a worker
that is killed had not written is missing. A record has no prompt and no answer.
"""

from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import msgspec

from nightmill.blobs import Blobs, new_blob
from nightmill.core.json_text import utf8_string
from nightmill.core.outcome import Answered, Outcome
from nightmill.core.output_line import OutputLine
from nightmill.core.segment import Segment
from nightmill.errors import UnavailableError
from nightmill.ids import BatchId

if TYPE_CHECKING:
    from nightmill.roles.model_lines import PendingLine

ATTEMPTS_FOLDER: Final = "attempts"
WRITE_S: Final = 10.0
"""Seconds between two writes of a segment that is being answered."""
_MOST_RECORDS: Final = 10_000


class AttemptLog:
    """The attempts of one segment under one lease that are not written yet."""

    def __init__(self, segment: Segment, token: int) -> None:
        self._segment = segment
        self._token = token
        self._records: list[dict[str, Any]] = []
        self._ended: dict[int, tuple[int, float]] = {}
        self._pieces = 0
        self._write_at = 0.0

    def note(
        self,
        line: "PendingLine",
        outcome: Outcome,
        row: OutputLine,
        *,
        upstream: str,
        now: float,
        wall: float,
    ) -> None:
        """Records an attempt that has ended.

        Args:
            now: monotonic time.
            wall: the same moment in Unix seconds.
        """
        ordinal, started_at = line.ordinal, line.started_at
        earlier = self._ended.get(ordinal)
        attempts = 0 if earlier is None else earlier[0]
        self._ended[ordinal] = (attempts + 1, now)
        error = row.error
        self._records.append(
            {
                "custom_id": utf8_string(line.request.custom_id_json),
                "ordinal": ordinal,
                "attempt": attempts + 1,
                "upstream": upstream,
                "started_at": round(wall - (now - started_at), 3),
                "duration_s": round(now - started_at, 4),
                "wait_s": None if earlier is None else round(started_at - earlier[1], 4),
                "outcome": type(outcome).__name__.lower(),
                "status": outcome.status if isinstance(outcome, Answered) else None,
                "code": None if error is None else error.code,
                "is_error": row.is_error,
            }
        )

    def is_due(self, now: float) -> bool:
        """Whether the records should be written although the segment goes on."""
        if not self._records:
            return False
        if not self._write_at:
            self._write_at = now + WRITE_S
        return now >= self._write_at or len(self._records) >= _MOST_RECORDS

    async def write(self, blobs: Blobs) -> None:
        """Writes the records so far. Records that can't be written are dropped: answers come first."""
        records, self._records, self._write_at = self._records, [], 0.0
        if not records:
            return
        name = f"{self._segment.number:08d}.{self._token:06d}.{self._pieces:06d}"
        self._pieces += 1
        text = b"".join(msgspec.json.encode(record) + b"\n" for record in records)
        with suppress(UnavailableError):
            async with new_blob(blobs, f"{attempts_prefix(self._segment.batch_id)}/{name}") as writer:
                await writer.write(text)


def attempts_prefix(batch_id: BatchId) -> str:
    """Where the blobs with the attempts of a batch are."""
    return f"{ATTEMPTS_FOLDER}/{batch_id}"
