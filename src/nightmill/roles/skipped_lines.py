"""The rows of the error file for lines that were put aside as invalid, read from the validation report.

They are read in the order of the input, once, with the memory of a few rows.
"""

from collections.abc import AsyncIterator
from typing import Final

import msgspec

from nightmill.ids import BatchId, output_line_id

_ROW: Final = b'{"id": "%b", "custom_id": %b, "response": null, "error": {"code": %b, "message": %b}}\n'


class _ReportRow(msgspec.Struct, gc=False):
    ordinal: int
    custom_id: msgspec.Raw
    code: msgspec.Raw
    reason: msgspec.Raw


_decoder = msgspec.json.Decoder(_ReportRow)


class SkippedLines:
    """The invalid lines of a run.

    Args:
        report: the bytes of the validation report.
        after: invalid lines up to this ordinal belong to an earlier run.
    """

    def __init__(self, batch_id: BatchId, report: AsyncIterator[bytes], *, after: int) -> None:
        self.count = 0
        """How many rows were returned."""
        self._batch_id = batch_id
        self._rows = _rows(report)
        self._after = after
        self._next: _ReportRow | None = None
        self._has_begun = False

    async def before(self, ordinal: int | None) -> AsyncIterator[bytes]:
        """The rows of the lines before `ordinal` that were not returned yet; all that are left for None."""
        if not self._has_begun:
            self._has_begun = True
            await self._step()
            while self._next is not None and self._next.ordinal <= self._after:
                await self._step()
        while self._next is not None and (ordinal is None or self._next.ordinal < ordinal):
            self.count += 1
            yield self._text(self._next)
            await self._step()

    async def _step(self) -> None:
        self._next = await anext(self._rows, None)

    def _text(self, row: _ReportRow) -> bytes:
        line_id = output_line_id(self._batch_id, row.ordinal).encode()
        return _ROW % (line_id, bytes(row.custom_id), bytes(row.code), bytes(row.reason))


async def _rows(report: AsyncIterator[bytes]) -> AsyncIterator[_ReportRow]:
    unfinished = b""
    async for chunk in report:
        *lines, unfinished = (unfinished + chunk).split(b"\n")
        for line in lines:
            yield _decoder.decode(line)
