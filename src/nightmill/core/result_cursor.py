"""Which output lines of a batch a client has, as a text that the client sends back to go on. No I/O.

While the batch runs, lines are given as they are answered, in any order: the cursor holds the ordinals of the
lines given so far, as runs, and the segments of which every line was given. Holes in the runs are lines in
flight, so the text stays short. Once the batch has ended, the other lines are read from its files in order:
from then on the ordinals stay as they are, and a place in the files moves. The server keeps nothing, so that
a cursor is valid at any server of a fleet and after any restart.

The text is base64url without padding:

    version | 6 bytes of a hash of the batch id | segments | lines | file, offset | CRC-32 of all before
"""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from enum import IntEnum
from hashlib import blake2b
from typing import Final
from zlib import crc32

from nightmill.core.number_runs import NumberRuns, read_varint, varint
from nightmill.errors import RequestError
from nightmill.ids import BatchId

_VERSION: Final = b"\x01"
_HASH_BYTES: Final = 6
_CRC_BYTES: Final = 4


class ResultPhase(IntEnum):
    """Where the next lines come from: the parts of a running batch, its output file, its error file.

    In `END` the batch has ended and every line was given.
    """

    PARTS = 0
    OUTPUT = 1
    ERROR = 2
    END = 3


class ResultCursor:
    """What one client has of a batch's lines.

    Attributes:
        segments: the numbers of the segments of which every line was given while the batch ran.
        lines: the ordinals of the lines given while the batch ran.
        phase: where the next lines come from.
        offset: in the file of the phase, behind the last line that was looked at.
    """

    __slots__ = ("_batch_hash", "_head", "_head_crc", "lines", "offset", "phase", "segments")

    def __init__(self, batch_id: BatchId) -> None:
        self._batch_hash = blake2b(batch_id.encode(), digest_size=_HASH_BYTES).digest()
        self.segments = NumberRuns()
        self.lines = NumberRuns()
        self.phase = ResultPhase.PARTS
        self.offset = 0
        self._head = b""
        self._head_crc = 0

    @staticmethod
    def parse(text: str, batch_id: BatchId) -> "ResultCursor":
        """The cursor of a text.

        Raises:
            RequestError: the text is no cursor, or one of another batch.
        """
        cursor = ResultCursor(batch_id)
        try:
            packed = urlsafe_b64decode(text.encode("ascii") + b"=" * (-len(text) % 4))
            content, crc = packed[:-_CRC_BYTES], packed[-_CRC_BYTES:]
            if crc32(content).to_bytes(_CRC_BYTES, "big") != crc or content[:1] != _VERSION:
                raise ValueError("not whole, or of another version")
            at = 1 + _HASH_BYTES
            batch_hash = content[1:at]
            cursor.segments, at = NumberRuns.unpack(content, at)
            cursor.lines, at = NumberRuns.unpack(content, at)
            phase, at = read_varint(content, at)
            cursor.phase = ResultPhase(phase)
            cursor.offset, at = read_varint(content, at)
            if at != len(content):
                raise ValueError("bytes behind the end")
        except ValueError:
            message = "'after' is not a cursor. Send one that this server has returned, unchanged."
            raise RequestError(message, param="after", code="invalid_cursor") from None
        if batch_hash != cursor._batch_hash:
            message = f"'after' is a cursor of another batch than '{batch_id}'."
            raise RequestError(message, param="after", code="cursor_of_another_batch")
        return cursor

    def text(self) -> str:
        if self.phase is ResultPhase.PARTS or not self._head:
            self._head = _VERSION + self._batch_hash + self.segments.pack() + self.lines.pack()
            self._head_crc = crc32(self._head)
        place = varint(self.phase) + varint(self.offset)
        crc = crc32(place, self._head_crc).to_bytes(_CRC_BYTES, "big")
        return urlsafe_b64encode(self._head + place + crc).rstrip(b"=").decode("ascii")

    def enter(self, phase: ResultPhase) -> None:
        """Goes on at the start of a file, or to the end."""
        if self.phase is ResultPhase.PARTS:
            self.segments = NumberRuns()  # only the ordinals count from here on
            self._head = b""
        self.phase = phase
        self.offset = 0
