"""A script optimized for speed: workers on aiohttp and uvloop, answers appended to a file, one fsync."""

import asyncio
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import aiohttp
import uvloop
from peer_loop import Stopwatch, arguments

_WINDOW = 256


def _run(url: str, path: Path, lines: int) -> None:
    watch = Stopwatch()
    with path.open("rb") as source, Path("answers.jsonl").open("wb") as target:
        uvloop.run(_send_all(url, iter(source), target))
        target.flush()
        os.fsync(target.fileno())
    watch.print_result(lines, f"{_WINDOW} in flight; one fsync at the end")


async def _send_all(url: str, rows: Iterator[bytes], target: BinaryIO) -> None:
    connector = aiohttp.TCPConnector(limit=0)
    headers = {"content-type": "application/json"}
    async with aiohttp.ClientSession(connector=connector, headers=headers) as session:

        async def worker() -> None:
            for row in rows:
                request = json.loads(row)
                body = json.dumps(request["body"]).encode()
                async with session.post(f"{url}/chat/completions", data=body) as response:
                    answer = await response.json()
                reply = {"status_code": response.status, "body": answer}
                line = {"custom_id": request["custom_id"], "response": reply}
                target.write(json.dumps(line).encode() + b"\n")

        await asyncio.gather(*(worker() for _ in range(_WINDOW)))


_run(*arguments())
