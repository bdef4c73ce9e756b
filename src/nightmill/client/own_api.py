"""What the requests to `/nightmill/v1`, which only nightmill servers have, share: URLs, headers, answers."""

import uuid
from collections.abc import AsyncIterator, Iterator
from typing import Any, Final, cast
from urllib.parse import quote

import httpx2
from openai import AsyncOpenAI, OpenAI

from nightmill.client.download import CHUNK_BYTES, lines
from nightmill.errors import UnavailableError

# The first header makes the package return the response before its body is read.
STREAMED: Final = {"X-Stainless-Raw-Response": "stream", "Accept-Encoding": "identity"}


def own_url(client: OpenAI | AsyncOpenAI, *steps: str) -> str:
    """The URL of `/nightmill/v1/...` on the client's server; each step is quoted."""
    server = str(client.base_url).rstrip("/").removesuffix("/v1")
    return "/".join((f"{server}/nightmill/v1", *(quote(step, safe="") for step in steps)))


def once() -> dict[str, str]:
    """The package repeats a request whose answer was lost; with the key the server makes one batch only."""
    return {"Idempotency-Key": str(uuid.uuid4())}


def json_object(answer: object) -> dict[str, Any]:
    """The JSON object that the server has answered."""
    return cast("dict[str, Any]", answer)


def stream_lines(client: OpenAI, url: str) -> Iterator[bytes]:
    """The lines of a streamed response without their line breaks.

    Raises:
        UnavailableError: the connection broke before the end.
    """
    response = client.get(url, cast_to=httpx2.Response, options={"headers": STREAMED})
    try:
        yield from lines(response.iter_bytes(CHUNK_BYTES))
    except httpx2.HTTPError as error:
        raise _broken(url) from error
    finally:
        response.close()


async def stream_lines_async(client: AsyncOpenAI, url: str) -> AsyncIterator[bytes]:
    """`stream_lines` for asyncio."""
    response = await client.get(url, cast_to=httpx2.Response, options={"headers": STREAMED})
    begun = b""
    try:
        async for chunk in response.aiter_bytes(CHUNK_BYTES):
            *whole, begun = (begun + chunk).split(b"\n")
            for line in whole:
                yield line
    except httpx2.HTTPError as error:
        raise _broken(url) from error
    finally:
        await response.aclose()
    if begun:
        yield begun


def _broken(url: str) -> UnavailableError:
    return UnavailableError(f"the connection broke before the end of {url}; try again")
