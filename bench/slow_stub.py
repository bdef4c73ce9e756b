"""An upstream that answers after a set time: a raw protocol on uvloop, a heap of due times, one timer.

`python slow_stub.py PORT MEAN_S SIGMA SEED`. Latencies with SIGMA above 0 are log-normal around the mean.
`GET /history` returns [moment, answers so far, requests in flight], every few ms since the last call.
"""

import asyncio
import heapq
import json
import math
import random
import sys
from itertools import count

sys.path.insert(0, __file__.rpartition("/bench/")[0])

from bench import inputs, raw_http

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
        self._answer = raw_http.response(200, inputs.answer())
        self._answered = 0
        self._history: list[tuple[float, int, int]] = []
        self._look()

    def _look(self) -> None:
        self._history.append((self._loop.time(), self._answered, len(self._due)))
        self._loop.call_later(_LOOK_S, self._look)

    def tell(self, transport: asyncio.Transport) -> None:
        transport.write(raw_http.response(200, json.dumps(self._history).encode()))
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


async def _main() -> None:
    port, mean_s, sigma, seed = sys.argv[1:5]
    answers = _Answers(float(mean_s), float(sigma), int(seed))

    def handle(request: bytes, transport: asyncio.Transport) -> None:
        if request.startswith(b"GET /history"):
            answers.tell(transport)
        else:
            answers.ask(transport)

    await raw_http.serve(handle, int(port))


if __name__ == "__main__":
    raw_http.run(_main)
