"""Looks for the usual local servers, for `--upstream auto`. Requests go to loopback only and carry no key.

A nightmill, which lists the models of its upstream as its own, is recognized, so that it is not used as its
own upstream.
"""

import asyncio
from dataclasses import dataclass

import msgspec

from nightmill.settings import UpstreamSettings
from nightmill.upstream.answer import body_of_ok
from nightmill.upstream.http1 import LeanUpstream
from nightmill.upstream.target import target_of

LOCAL_SERVERS = (
    ("vLLM", 8000),
    ("Ollama", 11434),
    ("llama.cpp", 8080),
    ("LM Studio", 1234),
    ("SGLang", 30000),
)
_MAX_ANSWER_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class FoundServer:
    """A server that answered GET /v1/models, or a nightmill. `url` is its base URL."""

    name: str
    url: str
    models: tuple[str, ...]
    is_nightmill: bool = False


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model]


class _Version(msgspec.Struct):
    name: str = ""


async def find_local_servers(
    timeout_s: float, *, servers: tuple[tuple[str, int], ...] = LOCAL_SERVERS
) -> list[FoundServer]:
    """The servers that answer on the usual ports, in the order of `servers`; all are asked at once.

    The name is inferred from the port, except that of a nightmill, which reports its name at /version.
    """
    found = await asyncio.gather(*(_ask(name, port, timeout_s) for name, port in servers))
    return [server for server in found if server is not None]


async def _ask(name: str, port: int, timeout_s: float) -> FoundServer | None:
    url = f"http://127.0.0.1:{port}/v1"
    upstream = LeanUpstream(
        target_of(url, UpstreamSettings()),
        tls=None,
        connect_timeout_s=timeout_s,
        max_answer_bytes=_MAX_ANSWER_BYTES,
    )
    answer = version = None
    try:
        async with asyncio.timeout(timeout_s):
            answer = await upstream.models()
            version = body_of_ok(
                await upstream.get("/version", timeout_s=timeout_s, max_answer_bytes=_MAX_ANSWER_BYTES)
            )
    except TimeoutError:
        pass  # a server without /version may leave that request unanswered
    finally:
        await upstream.close()
    if version is not None and is_nightmill(version):
        return FoundServer("nightmill", url, (), is_nightmill=True)
    models = None if answer is None else models_in(answer)
    return None if models is None else FoundServer(name, url, models)


def models_in(listing: bytes) -> tuple[str, ...] | None:
    """The ids in the answer to GET /v1/models; None if the answer is no list of models."""
    try:
        models = msgspec.json.decode(listing, type=_Models)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return tuple(model.id for model in models.data)


def is_nightmill(version: bytes) -> bool:
    """Whether the answer to GET /version is that of a nightmill."""
    try:
        return msgspec.json.decode(version, type=_Version).name == "nightmill"
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
