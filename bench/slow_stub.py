"""An upstream that answers after a set time: a raw protocol on uvloop, a heap of due times, one timer.

`python slow_stub.py PORT MEAN_S SIGMA SEED`. Latencies with SIGMA above 0 are log-normal around the mean.
`GET /history` returns [moment, answers so far, requests in flight], every few ms since the last call.
"""

import asyncio
import contextlib
import heapq
import json
import math
import random
import sys
from itertools import count

import uvloop

sys.path.insert(0, __file__.rpartition("/bench/")[0])

from bench import inputs

_HEAD_END = b"\r\n\r\n"
_LOOK_S = 0.005


class _Answers:
    """The pending answers, ordered by due time."""

    def __init__(self, mean_s: float, sigma: float, seed: int) -> None:
        self._mean_s, self._sigma = mean_s, sigma
        self._mu = math.log(mean_s) - sigma * sigma / 2 if mean_s else 0.0
        self._random = random.Random(seed)
        self._due: list[tuple[float, int, asyncio.Transport]] = []
        self._number = count()
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self._answer = _whole(inputs.answer())
        self._answered = 0
        self._history: list[tuple[float, int, int]] = []
        self._look()

    def _look(self) -> None:
        self._history.append((self._loop.time(), self._answered, len(self._due)))
        self._loop.call_later(_LOOK_S, self._look)

    def tell(self, transport: asyncio.Transport) -> None:
        transport.write(_whole(json.dumps(self._history).encode()))
        self._history = self._history[-1:]

    def ask(self, transport: asyncio.Transport) -> None:
        seconds = self._random.lognormvariate(self._mu, self._sigma) if self._sigma else self._mean_s
        moment = self._loop.time() + seconds
        is_next = not self._due or moment < self._due[0][0]
        heapq.heappush(self._due, (moment, next(self._number), transport))
        if is_next:
            self._wait()

    def _wait(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        # Timers of uvloop have millisecond resolution and round up, which would make answers late.
        moment = self._due[0][0] - self._loop.time() - 0.001
        self._timer = self._loop.call_later(max(0.0, moment), self._send)

    def _send(self) -> None:
        self._timer = None
        now = self._loop.time() + 0.0005
        while self._due and self._due[0][0] <= now:
            transport = heapq.heappop(self._due)[2]
            self._answered += 1
            if not transport.is_closing():
                transport.write(self._answer)
        if self._due:
            self._wait()


def _whole(text: bytes) -> bytes:
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(text)
    return head + text


class _Connection(asyncio.Protocol):
    """Reads whole requests, one at a time."""

    def __init__(self, answers: _Answers) -> None:
        self._answers = answers
        self._received = b""
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        received = self._received + data if self._received else data
        end = received.find(_HEAD_END)
        if end >= 0:
            at = received.lower().find(b"content-length:", 0, end)
            length = int(received[at + 15 : received.index(b"\r", at)]) if at >= 0 else 0
            if len(received) >= end + len(_HEAD_END) + length:
                self._received = b""
                if received.startswith(b"GET /history"):
                    self._answers.tell(self._transport)
                else:
                    self._answers.ask(self._transport)
                return
        self._received = received


async def _main() -> None:
    port, mean_s, sigma, seed = sys.argv[1:5]
    loop = asyncio.get_running_loop()
    answers = _Answers(float(mean_s), float(sigma), int(seed))
    server = await loop.create_server(lambda: _Connection(answers), "127.0.0.1", int(port), backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    with (
        contextlib.suppress(KeyboardInterrupt),
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        runner.run(_main())
