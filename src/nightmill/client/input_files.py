"""What a nightmill server says of input files and of the first lines of a batch, over `/nightmill/v1`."""

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final, cast
from urllib.parse import quote

import msgspec
from openai import AsyncOpenAI, OpenAI

from nightmill.client.download import CHUNK_BYTES, lines

# With it the `openai` package returns the response before its body is read.
_STREAMED: Final = {"headers": {"X-Stainless-Raw-Response": "stream", "Accept-Encoding": "identity"}}

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
        for line in lines(self._report(batch_id)):
            yield msgspec.json.decode(line)

    def copy_validation(self, batch_id: str, stream: BinaryIO) -> int:
        """Writes the validation report to an open stream; returns the number of its rows."""
        rows = 0
        for chunk in self._report(batch_id):
            stream.write(chunk)
            rows += chunk.count(b"\n")
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
        return _json(self._openai.get(_own_url(self._openai, batch_id, "canary"), cast_to=object))

    def estimate(self, input_file_id: str, *, endpoint: str) -> dict[str, Any]:
        """What a batch of an uploaded file would need; nothing is sent."""
        body = {"input_file_id": input_file_id, "endpoint": endpoint}
        url = f"{own_root(self._openai)}/estimates"
        return _json(self._openai.post(url, body=body, cast_to=object))

    def _report(self, batch_id: str) -> Iterator[bytes]:
        url = _own_url(self._openai, batch_id, "validation")
        response: Any = self._openai.get(url, cast_to=object, options=cast("Any", _STREAMED))
        try:
            yield from response.iter_bytes(CHUNK_BYTES)
        finally:
            response.close()


class AsyncInputApi:
    """`InputApi` for asyncio."""

    def __init__(self, openai_client: AsyncOpenAI) -> None:
        self._openai = openai_client

    async def validation(self, batch_id: str) -> AsyncIterator[InvalidLine]:
        """The rows of the validation report as they arrive, one for each invalid line."""
        url = _own_url(self._openai, batch_id, "validation")
        response: Any = await self._openai.get(url, cast_to=object, options=cast("Any", _STREAMED))
        try:
            async for line in response.iter_lines():
                yield msgspec.json.decode(line)
        finally:
            await response.close()

    async def canary(self, batch_id: str) -> dict[str, Any]:
        """How the canary of a batch goes: its `state`, and the counts of its lines."""
        return _json(await self._openai.get(_own_url(self._openai, batch_id, "canary"), cast_to=object))

    async def estimate(self, input_file_id: str, *, endpoint: str) -> dict[str, Any]:
        """What a batch of an uploaded file would need; nothing is sent."""
        body = {"input_file_id": input_file_id, "endpoint": endpoint}
        url = f"{own_root(self._openai)}/estimates"
        return _json(await self._openai.post(url, body=body, cast_to=object))


def own_root(client: OpenAI | AsyncOpenAI) -> str:
    """The URL of `/nightmill/v1` of the server."""
    return str(client.base_url).rstrip("/").removesuffix("/v1") + "/nightmill/v1"


def _own_url(client: OpenAI | AsyncOpenAI, batch_id: str, what: str) -> str:
    return f"{own_root(client)}/batches/{quote(batch_id, safe='')}/{what}"


def _json(answer: object) -> dict[str, Any]:
    return cast("dict[str, Any]", answer)
