"""The usual script: the official client, a semaphore, gather, one file at the end."""

import asyncio
import json
from pathlib import Path

from openai import AsyncOpenAI
from peer_loop import Stopwatch, arguments, requests

_WINDOW = 256


def _run(url: str, path: Path, lines: int) -> None:
    watch = Stopwatch()
    rows = asyncio.run(_send_all(url, requests(path)))
    Path("answers.jsonl").write_text("\n".join(rows))
    watch.print_result(lines, f"{_WINDOW} in flight; nothing kept before the end")


async def _send_all(url: str, lines: list[dict]) -> list[str]:
    client = AsyncOpenAI(base_url=url, api_key="bench", max_retries=2)
    semaphore = asyncio.Semaphore(_WINDOW)

    async def one(request: dict) -> str:
        async with semaphore:
            answer = await client.chat.completions.create(**request["body"])
            return json.dumps({"custom_id": request["custom_id"], "response": {"body": answer.model_dump()}})

    return await asyncio.gather(*(one(request) for request in lines))


_run(*arguments())
