"""Many clients: every client is answered while a batch runs. Timings are printed and decide nothing."""

import asyncio
import json
import secrets
import statistics
import time
from pathlib import Path

from tests.faults.served import assert_each_line_once, request_lines, serving, wait_until
from tests.slow import only_slow

POLLERS = 500
UPLOADERS = 50
LONG_S = 6.0
ANSWER_S = 30.0


class Caller:
    """One client with one kept connection; notes how long each answer took."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._stream: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, head: str, body: bytes = b"") -> tuple[int, bytes, float]:
        began = time.perf_counter()
        async with asyncio.timeout(ANSWER_S):
            if self._stream is None:
                self._stream = await asyncio.open_connection("127.0.0.1", self._port)
            reader, writer = self._stream
            writer.write(
                f"{head} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n".encode()
                + b"Content-Type: multipart/form-data; boundary=edge\r\n\r\n"
                + body
            )
            await writer.drain()
            answer = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
            length = int(answer.partition("content-length: ")[2].partition("\r\n")[0])
            content = await reader.readexactly(length)
            if "connection: close" in answer:
                await self.leave()
        return int(answer.split()[1]), content, time.perf_counter() - began

    async def leave(self) -> None:
        if self._stream is not None:
            self._stream[1].close()
            self._stream = None


def form(content: bytes) -> bytes:
    return (
        b'--edge\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
        b'--edge\r\nContent-Disposition: form-data; name="file"; filename="in.jsonl"\r\n\r\n'
        + content
        + b"\r\n--edge--\r\n"
    )


async def crowd(port: int, batch_id: str) -> dict[str, list[float]]:
    """How long the answers took, by kind. Raises on any that failed."""
    until = time.monotonic() + LONG_S
    took: dict[str, list[float]] = {"poll": [], "list": [], "upload": [], "health": []}

    async def repeat(kind: str, head: str, body: bytes, pause_s: float) -> None:
        caller = Caller(port)
        await asyncio.sleep(secrets.randbelow(1_000) / 1_000 * pause_s)
        try:
            while time.monotonic() < until:
                status, content, seconds = await caller.ask(head, body)
                assert status == 200, content
                took[kind].append(seconds)
                await asyncio.sleep(pause_s)
        finally:
            await caller.leave()

    async with asyncio.TaskGroup() as group:
        for _ in range(POLLERS):
            group.create_task(repeat("poll", f"GET /v1/batches/{batch_id}", b"", 2.0))
        for _ in range(20):
            group.create_task(repeat("list", "GET /v1/files", b"", 1.0))
        group.create_task(repeat("health", "GET /ready", b"", 0.2))
        for _ in range(UPLOADERS):
            group.create_task(repeat("upload", "POST /v1/files", form(request_lines(2_000)), 0.5))
    return took


@only_slow
def test_five_hundred_pollers_and_fifty_uploaders_are_all_answered_while_a_batch_runs(tmp_path: Path):
    with serving(tmp_path, worker__beat_s=0.5, emulator__delay_s=0.02) as served:
        batch_id = served.batch(request_lines(20_000))
        took = asyncio.run(crowd(served.port, batch_id))
        for kind, seconds in took.items():
            cuts = statistics.quantiles(seconds, n=100)
            print(
                f"{kind}: {len(seconds)} answers, median {cuts[49] * 1_000:.0f} ms, "
                f"p99 {cuts[98] * 1_000:.0f} ms, longest {max(seconds) * 1_000:.0f} ms"
            )
            assert len(seconds) >= 5
        ended = served.until_ended(batch_id, timeout_s=90)
        assert ended["request_counts"] == {"total": 20_000, "completed": 20_000, "failed": 0}
        assert_each_line_once(served.rows(ended), 20_000)


async def test_uploads_beyond_the_limit_get_a_429_and_a_time_to_come_back(tmp_path: Path):
    with serving(tmp_path, api__max_open_uploads=5) as served:
        whole = form(request_lines(10))
        head = (
            "POST /v1/files HTTP/1.1\r\nHost: localhost\r\n"
            f"Content-Type: multipart/form-data; boundary=edge\r\nContent-Length: {len(whole)}\r\n\r\n"
        ).encode()
        slow = [await asyncio.open_connection("127.0.0.1", served.port) for _ in range(5)]
        for _, writer in slow:
            writer.write(head + whole[:200])
            await writer.drain()

        # An admitted upload has begun its blob. A further upload before that could take the place of one.
        unfinished = tmp_path / "blobs" / "tmp"
        await asyncio.to_thread(wait_until, lambda: len(list(unfinished.glob("*"))) == 5)
        status, headers, document = await asyncio.to_thread(served.upload, request_lines(3))
        assert (status, headers["retry-after"]) == (429, "1")
        assert document["error"]["message"].startswith("5 uploads are being received already.")
        # An upload that was admitted is received to its end; then there is room again.
        for reader, writer in slow:
            writer.write(whole[200:])
            assert b" 200 OK" in await reader.readline()
            writer.close()
        status, _, _ = await asyncio.to_thread(served.upload, request_lines(3))
        assert status == 200


async def test_a_slow_loris_upload_ends_by_timeout_and_leaves_nothing(tmp_path: Path):
    with serving(tmp_path, api__upload_idle_s=0.5) as served:
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        head = "POST /v1/files HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n"
        start = form(request_lines(10))[:300]
        writer.write(f"{head}Content-Type: multipart/form-data; boundary=edge\r\n\r\n".encode() + start)

        async def trickle() -> None:
            while True:
                writer.write(b"x")
                await asyncio.sleep(0.05)

        async with asyncio.timeout(ANSWER_S):
            trickling = asyncio.create_task(trickle())
            answer = await reader.readuntil(b"}}")
            trickling.cancel()
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert "error" in json.loads(
            answer.partition(b"\r\n\r\n")[2].split(b"\r\n")[0] or answer[answer.index(b"{") :]
        )
        writer.close()
        assert not [path for path in (tmp_path / "blobs").rglob("*") if path.is_file()]


def test_a_key_with_too_many_requests_gets_a_retry_after(tmp_path: Path):
    with serving(tmp_path, api__requests_per_minute=20) as served:
        answers = [served.send("GET", "/v1/batches") for _ in range(40)]
        statuses = [status for status, _, _ in answers]
        assert statuses[:20] == [200] * 20
        assert 429 in statuses
        _, headers, document = answers[statuses.index(429)]
        assert 1 <= int(headers["retry-after"]) <= 3
        assert document["error"]["code"] == "rate_limit_exceeded"
        assert served.send("GET", "/health")[0] == 200
