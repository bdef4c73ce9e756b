"""What a part's writer holds of the records that are not durable yet, and what they add to the tally.

Duty: the counting that both writers share: appended, taken, durable. Promise: the tally and the count of
`durable` move together, only in `settle`, to exactly what `take` took. No I/O. Not its duty: where the bytes
go, and how often they are tried.
"""

from collections.abc import Callable

from nightmill.core.batch import Tally
from nightmill.core.output_line import OutputLine
from nightmill.parts.record import HEADER_BYTES, pack_records


class RecordQueue:
    """One part's records, in the order they were appended.

    Args:
        on_commit: told how many records became durable, each time.
    """

    __slots__ = (
        "_counted",
        "_durable_counted",
        "_on_commit",
        "_records",
        "_refusal",
        "_taken_counted",
        "_taken_tally",
        "durable_bytes",
        "durable_tally",
        "queued_bytes",
        "taken_bytes",
    )

    def __init__(self, on_commit: Callable[[int], None] | None) -> None:
        self._on_commit = on_commit
        self._refusal: Exception | None = None
        self._records: list[tuple[int, OutputLine]] = []
        self._counted = self._taken_counted = self._durable_counted = 0
        self._taken_tally = Tally()
        self.durable_tally = Tally()
        self.durable_bytes = 0
        self.queued_bytes = 0
        """Of the records that were not taken yet."""
        self.taken_bytes = 0
        """Of those that were, and are not durable."""

    @property
    def counted(self) -> int:
        """Records ever appended."""
        return self._counted

    @property
    def pending_count(self) -> int:
        """Records that are not durable yet."""
        return self._counted - self._durable_counted

    def is_durable(self, count: int) -> bool:
        """Whether the first `count` records are."""
        return self._durable_counted >= count

    def append(self, ordinal: int, output: OutputLine) -> int:
        """Returns the record's size in bytes. Raises what the queue was told to refuse with."""
        if self._refusal is not None:
            raise self._refusal
        self._records.append((ordinal, output))
        self._counted += 1
        size_bytes = HEADER_BYTES + len(output.text)
        self.queued_bytes += size_bytes
        return size_bytes

    def refuse(self, refusal: Exception) -> None:
        """From now on `append` raises `refusal`; the first one stays."""
        self._refusal = self._refusal or refusal

    def take(self) -> list[bytes]:
        """The bytes of all queued records, in pieces. What was taken before stays taken."""
        pieces, tally = pack_records(self._records)
        self._records = []
        self.taken_bytes += self.queued_bytes
        self.queued_bytes = 0
        self._taken_counted = self._counted
        self._taken_tally = self._taken_tally.plus(tally)
        return pieces

    def settle(self) -> int:
        """What was taken is durable and counts. Returns its size in bytes."""
        newly_counted = self._taken_counted - self._durable_counted
        size_bytes, self.taken_bytes = self.taken_bytes, 0
        self.durable_bytes += size_bytes
        self._durable_counted = self._taken_counted
        self.durable_tally = self._taken_tally
        if self._on_commit is not None:
            self._on_commit(newly_counted)
        return size_bytes

    def drop(self) -> int:
        """Lets go of everything that is not durable. Returns its size in bytes."""
        size_bytes = self.taken_bytes + self.queued_bytes
        self._records = []
        self.taken_bytes = self.queued_bytes = 0
        return size_bytes
