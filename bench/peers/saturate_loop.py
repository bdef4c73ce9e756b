"""The pump of `saturate` with its own controller, answers counted and dropped, until it is ended or done."""

import asyncio
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from saturate import AdaptiveClient, through


async def _main(url: str, path: Path) -> None:
    def rows() -> Iterator[tuple[str, dict]]:
        with path.open("rb") as source:
            for number, row in enumerate(source):
                yield str(number), json.loads(row)["body"]

    failed = 0
    async with AdaptiveClient(url) as client:
        async for done in through(client, rows(), lambda row: row, lambda *_: {}):
            failed += done.error is not None
    print(json.dumps({"failed": failed}))


asyncio.run(_main(sys.argv[1], Path(sys.argv[2])))
