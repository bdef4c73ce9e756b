"""What a nightmill server says of input files and of the first lines of a batch, over `/nightmill/v1`."""

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
from openai import AsyncOpenAI, OpenAI

from nightmill.client.own_api import json_object, own_url, stream_lines, stream_lines_async

InvalidLine = dict[str, Any]
"""A row of the validation report: `line`, `ordinal`, `custom_id`, `code`, `field`, `reason`, `hint`."""


class InputApi:
    """The operations on input files that only nightmill has.

    Args:
        openai_client: a client of the server's `/v1`.
    """

    def __init__(self, openai_client: OpenAI) -> None:
        self._openai = openai_client

    def validation(self, batch_id: str) -> Iterator[InvalidLine]:
        """The rows of the validation report as they arrive, one for each invalid line."""
        for line in self._report(batch_id):
            yield msgspec.json.decode(line)

    def copy_validation(self, batch_id: str, stream: BinaryIO) -> int:
        """Writes the validation report to an open stream; returns the number of its rows."""
        rows = 0
        for line in self._report(batch_id):
            stream.write(line + b"\n")
            rows += 1
        stream.flush()
        return rows

    def save_validation(self, batch_id: str, path: Path) -> int:
        """As `copy_validation`, to `path`, which is replaced only when the report is complete."""
        partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
        try:
            with partial.open("wb") as stream:
                rows = self.copy_validation(batch_id, stream)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        return rows

    def canary(self, batch_id: str) -> dict[str, Any]:
        """How the canary of a batch goes: its `state`, and the counts of its lines."""
        return json_object(
            self._openai.get(own_url(self._openai, "batches", batch_id, "canary"), cast_to=object)
        )

    def estimate(self, input_file_id: str, *, endpoint: str) -> dict[str, Any]:
        """What a batch of an uploaded file would need; nothing is sent."""
        body = {"input_file_id": input_file_id, "endpoint": endpoint}
        url = own_url(self._openai, "estimates")
        return json_object(self._openai.post(url, body=body, cast_to=object))

    def _report(self, batch_id: str) -> Iterator[bytes]:
        return stream_lines(self._openai, own_url(self._openai, "batches", batch_id, "validation"))


class AsyncInputApi:
    """`InputApi` for asyncio."""

    def __init__(self, openai_client: AsyncOpenAI) -> None:
        self._openai = openai_client

    async def validation(self, batch_id: str) -> AsyncIterator[InvalidLine]:
        """The rows of the validation report as they arrive, one for each invalid line."""
        url = own_url(self._openai, "batches", batch_id, "validation")
        async for line in stream_lines_async(self._openai, url):
            yield msgspec.json.decode(line)

    async def canary(self, batch_id: str) -> dict[str, Any]:
        """How the canary of a batch goes: its `state`, and the counts of its lines."""
        return json_object(
            await self._openai.get(own_url(self._openai, "batches", batch_id, "canary"), cast_to=object)
        )

    async def estimate(self, input_file_id: str, *, endpoint: str) -> dict[str, Any]:
        """What a batch of an uploaded file would need; nothing is sent."""
        body = {"input_file_id": input_file_id, "endpoint": endpoint}
        url = own_url(self._openai, "estimates")
        return json_object(await self._openai.post(url, body=body, cast_to=object))
