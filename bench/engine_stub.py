"""A model server whose throughput depends on the requests in flight: a raw protocol on uvloop.

`python engine_stub.py PORT OPTIONS`, the options as JSON (`stubs.Engine`). Kinds:

- `saturating` computes `slots` requests at once; the others wait in its queue.
- `refusing` answers 429 to what it cannot compute at once.
- `batching` computes all running requests in steps, which take longer with more of them. Each request fills a
  KV cache of `kv_tokens`; when the cache is full, the newest request is preempted and computed again.

Lengths of answers vary between half and three halves of the mean. `GET /history` returns what happened, in
steps of 50 ms. SIGTERM writes the same to the file `history_file` and ends the process at once, so that open
connections are reset as they are by a kill.
"""

import asyncio
import json
import os
import random
import signal
import sys
from collections import deque
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, __file__.rpartition("/bench/")[0])

from bench import inputs, raw_http

_LOOK_S = 0.05
_LENGTHS = tuple(0.5 + step / 10 for step in range(11))
_MODELS = b'{"object":"list","data":[{"id":"bench","object":"model","created":1,"owned_by":"bench"}]}'
_REFUSED = b'{"error":{"message":"too many requests","type":"rate_limit_error","code":"rate_limited"}}'
_TOKENS = b'"completion_tokens":32'
_STEP_TOKENS = 10
_LINE_TOKENS = 100
_PROMPT_TOKENS = 50
_STEP_S, _STEP_PER_LINE_S, _STEP_PER_COMPUTED_S = 0.01, 0.00025, 0.00005


class _Request:
    __slots__ = ("length", "made", "to_compute", "transport")

    def __init__(self, transport: asyncio.Transport, length: float) -> None:
        self.transport = transport
        self.length = length
        self.made = 0
        self.to_compute = _PROMPT_TOKENS


class Engine:
    """What all kinds have in common, and the kind `saturating`."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._loop = asyncio.get_running_loop()
        self._slots = int(options["slots"])
        self._line_s = float(options["line_s"])
        self._has_gauges = bool(options["gauges"])
        self._changes = list(options["changes"])
        self._random = random.Random(options["seed"])
        self._answers = {length: raw_http.response(200, _answer(length)) for length in _LENGTHS}
        self.waiting: deque[_Request] = deque()
        self.running = 0
        self.preemptions = 0
        self._received = self._answered = self._refused = 0
        self._history: list[tuple[float, int, int, int, int, int]] = []
        self._has_begun = False
        self._look()

    def _look(self) -> None:
        counts = (self._received, self._answered, self._refused, self.running, len(self.waiting))
        self._history.append((self._loop.time(), *counts))
        self._loop.call_later(_LOOK_S, self._look)

    @property
    def history(self) -> bytes:
        counts = (self._received, self._answered, self._refused, self.running, len(self.waiting))
        return json.dumps([*self._history, (self._loop.time(), *counts)]).encode()

    def metrics(self) -> bytes:
        if not self._has_gauges:
            return raw_http.response(404, b"{}")
        return raw_http.response(
            200,
            f'vllm:num_requests_running{{model_name="bench"}} {self.running}\n'
            f'vllm:num_requests_waiting{{model_name="bench"}} {len(self.waiting)}\n'
            f'vllm:kv_cache_usage_perc{{model_name="bench"}} {self.kv_use:.4f}\n'
            f'vllm:num_preemptions_total{{model_name="bench"}} {self.preemptions}\n'.encode(),
        )

    @property
    def kv_use(self) -> float:
        return 0.5 * self.running / self._slots  # the slots are the limit, not the cache

    def ask(self, transport: asyncio.Transport) -> None:
        if not self._has_begun:
            self._has_begun = True
            for after_s, slots in self._changes:
                self._loop.call_later(after_s, self._resize, slots)
        self._received += 1
        if self.refuses():
            self._refused += 1
            transport.write(raw_http.response(429, _REFUSED))
            return
        self.waiting.append(_Request(transport, self._random.choice(_LENGTHS)))
        self.begin()

    def _resize(self, slots: int) -> None:
        self._slots = slots
        self.begin()

    def refuses(self) -> bool:
        return False

    def begin(self) -> None:
        while self.waiting and self.running < self._slots:
            request = self.waiting.popleft()
            if request.transport.is_closing():
                continue
            self.running += 1
            self._loop.call_later(self._line_s * request.length, self._end, request)

    def _end(self, request: _Request) -> None:
        self.running -= 1
        self.answer(request)
        self.begin()

    def answer(self, request: _Request) -> None:
        self._answered += 1
        if not request.transport.is_closing():
            request.transport.write(self._answers[request.length])


class _Refusing(Engine):
    def refuses(self) -> bool:
        return self.running >= self._slots


class _Batching(Engine):
    def __init__(self, options: dict[str, Any]) -> None:
        self._kv_tokens = int(options["kv_tokens"])
        self._batch: list[_Request] = []
        self._is_stepping = False
        super().__init__(options)

    @property
    def kv_use(self) -> float:
        return min(1.0, self._used() / self._kv_tokens)

    def _used(self) -> int:
        return sum(_PROMPT_TOKENS + request.made for request in self._batch)

    def begin(self) -> None:
        if self._is_stepping:
            return
        used = self._used()
        while self.waiting and len(self._batch) < self._slots:
            need = _PROMPT_TOKENS + self.waiting[0].made + _STEP_TOKENS
            if used + need > self._kv_tokens and self._batch:
                break
            used += need
            self._batch.append(self.waiting.popleft())
        self.running = len(self._batch)
        if not self._batch:
            return
        computed = 0
        for request in self._batch:
            computed += request.to_compute
            request.to_compute = 0
            request.made += _STEP_TOKENS
        while self._used() > self._kv_tokens and len(self._batch) > 1:
            request = self._batch.pop()
            request.to_compute = _PROMPT_TOKENS + request.made
            self.waiting.appendleft(request)
            self.preemptions += 1
        self.running = len(self._batch)
        self._is_stepping = True
        step_s = _STEP_S + _STEP_PER_LINE_S * self.running + _STEP_PER_COMPUTED_S * computed
        self._loop.call_later(step_s, self._stepped)

    def _stepped(self) -> None:
        self._is_stepping = False
        for request in self._batch:
            if request.made >= _LINE_TOKENS * request.length:
                self.answer(request)
        self._batch = [request for request in self._batch if request.made < _LINE_TOKENS * request.length]
        self.begin()


_KINDS = {"saturating": Engine, "refusing": _Refusing, "batching": _Batching}


def _answer(length: float) -> bytes:
    return inputs.answer().replace(_TOKENS, b'"completion_tokens":%d' % round(32 * length))


def _handle(engine: Engine, request: bytes, transport: asyncio.Transport) -> None:
    if not request.startswith(b"GET "):
        engine.ask(transport)
    elif request.startswith(b"GET /history"):
        transport.write(raw_http.response(200, engine.history))
    elif request.startswith(b"GET /metrics"):
        transport.write(engine.metrics())
    elif request.startswith(b"GET /v1/models "):
        transport.write(raw_http.response(200, _MODELS))
    else:
        transport.write(raw_http.response(404, b"{}"))


async def _main() -> None:
    port, options = int(sys.argv[1]), json.loads(sys.argv[2])
    engine = _KINDS[options["kind"]](options)

    def end() -> None:
        Path(options["history_file"]).write_bytes(engine.history)
        os._exit(0)

    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, end)
    await raw_http.serve(partial(_handle, engine), port)


if __name__ == "__main__":
    raw_http.run(_main)
