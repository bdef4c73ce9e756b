"""Parts of which the scripts of model servers are made."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from nightmill.core.outcome import Answered, Broken, Outcome, Unreachable
from tests.simulation.simulator import Call, Script, Server, error

REFUSAL_S: Final = 0.01
"""The time after which a server gives an error."""


@dataclass(frozen=True)
class Hangs:
    """No answer, ever."""


Bad = Outcome | Hangs

OUTAGES: Final[Mapping[str, Bad]] = {
    "500": error(500),
    "502": error(502),
    "503": error(503),
    "504": error(504),
    "429": error(429),
    "401": error(401),
    "402": error(402),
    "empty account": error(429, code="insufficient_quota"),
    "404 in HTML": Answered(404, b"<html>not found</html>"),
    "redirect": Answered(302, b""),
    "connection refused": Unreachable("connection refused"),
    "connection reset": Broken("connection reset"),
    "time-out": Hangs(),
}
"""What every request can get while a server is down."""

BAD_LINES: Final[Mapping[str, Bad]] = {
    "500": error(500),
    "429": error(429),
    "429 with Retry-After": error(429, retry_after_s=3.0),
    "503": error(503),
    "504": error(504),
    "400": error(400),
    "403": error(403),
    "connection reset": Broken("connection reset"),
    "time-out": Hangs(),
}
"""What a line can get each time while its neighbours are answered."""


async def give(bad: Bad) -> Outcome:
    match bad:
        case Hangs():
            await asyncio.sleep(1e9)
            raise AssertionError("unreachable")
        case _:
            await asyncio.sleep(REFUSAL_S)
            return bad


def is_bad(call: Call) -> bool:
    return call.content.startswith("bad")


def gives(bad: Bad, *, when: Callable[[Call], bool]) -> Script:
    """A server that gives `bad` to some requests and a good answer to all others."""

    async def script(server: Server, call: Call) -> Outcome:
        return await give(bad) if when(call) else await server.compute()

    return script


def down(since_s: float, until_s: float) -> Callable[[Call], bool]:
    return lambda call: since_s <= call.at < until_s


def named(kind: str, count: int) -> Sequence[str]:
    return [f"{kind} {number}" for number in range(count)]


def every_tenth_bad(count: int) -> Sequence[str]:
    return [f"{'good' if number % 10 else 'bad'} {number}" for number in range(count)]
