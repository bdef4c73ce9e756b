"""Fills a store with ended batches in seconds, as a server has them after some months.

    python -m bench.seeding FOLDER --batches 100000

makes the data folder FOLDER, which `nightmill serve --folder FOLDER` then uses. The rows are written into the
tables directly: creating so many batches over the API would take an hour. Their files are deleted ones, so no
bytes are missing. The same numbers give the same rows.
"""

import argparse
import asyncio
import json
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection, insert

from nightmill.store import migrate, open_store
from nightmill.store.schema import batch, file

PROJECTS: Final = ("default", "search", "support", "research")
MODELS: Final = ("gpt-4o-mini", "qwen3-8b", "llama-3.3-70b", "mistral-small", "text-embedding-3-small")
TEAMS: Final = ("ads", "billing", "docs", "evals", "growth", "maps", "night shift", "quality")
_AGE_S: Final = 90 * 86_400
_AT_ONCE: Final = 5_000
_ENDS: Final = {"completed": 90, "failed": 4, "cancelled": 3, "expired": 3}
_OWN_PROJECT_WEIGHTS: Final = (85, 5, 5, 5)


async def seed(store_url: str, *, batches: int, now: float) -> None:
    """Migrates the store and adds so many ended batches, the newest one created at `now`."""
    await migrate(store_url)
    store = open_store(store_url)
    try:
        for first in range(0, batches, _AT_ONCE):
            numbers = range(first, min(first + _AT_ONCE, batches))
            made = list(_rows(numbers, of=batches, now=now))
            await store.database.write(_add, made)
        while await store.batch_counts.fold():
            pass
        await store.database.write(_update_statistics)
    finally:
        await store.close()


def _update_statistics(connection: Connection) -> None:
    """As Postgres itself does within a minute; before, it knows nothing of the rows."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql("ANALYZE")


def _add(connection: Connection, rows: Sequence[tuple[dict[str, Any], dict[str, Any]]]) -> None:
    connection.execute(insert(file), [of_file for of_file, _ in rows])
    connection.execute(insert(batch), [of_batch for _, of_batch in rows])


def _rows(numbers: range, *, of: int, now: float) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    for number in numbers:
        chance = random.Random(number)
        created_at = int(now - _AGE_S * (of - number) / of)
        project = chance.choices(PROJECTS, _OWN_PROJECT_WEIGHTS)[0]
        model, team = chance.choice(MODELS), chance.choice(TEAMS)
        status = chance.choices(list(_ENDS), list(_ENDS.values()))[0]
        total = chance.choice((100, 1_000, 20_000))
        failed = chance.choice((0, 0, 0, 1, total // 50))
        answered = total if status == "completed" else total // 3
        file_id = f"file-seed{number:018d}"
        name = f"{team.replace(' ', '-')}-{number % 365:03d}-{chance.randrange(10_000):04d}.jsonl"
        started_at, ended_at = created_at + 20, created_at + 20 + total // 10
        yield (
            {
                "id": file_id,
                "project_id": project,
                "purpose": "batch",
                "filename": name,
                "size_bytes": total * 700,
                "created_at": created_at - 5,
                "deleted_at": created_at + 86_400,
            },
            {
                "id": f"batch_{chance.randbytes(16).hex()}",
                "project_id": project,
                "endpoint": "/v1/embeddings" if "embedding" in model else "/v1/chat/completions",
                "input_file_id": file_id,
                "input_blob_key": f"files/seed{number}",
                "completion_window": "24h",
                "created_at": created_at,
                "expires_at": created_at + 86_400,
                "status": status,
                "model": model,
                "metadata": json.dumps(
                    {"team": team, "night": str(created_at // 86_400), "run": f"{number}"}
                ),
                "total": total,
                "completed": 0 if status == "failed" else answered - min(failed, answered),
                "failed": 0 if status == "failed" else min(failed, answered),
                "input_tokens": answered * 180,
                "output_tokens": answered * 60,
                "total_tokens": answered * 240,
                "retries": failed * 3,
                "input_bytes": total * 700,
                "priority": chance.choice((0, 0, 0, 5, -5)),
                **{f"{other}_at": None for other in _ENDS},
                "in_progress_at": None if status == "failed" else started_at,
                "finalizing_at": ended_at if status in ("completed", "expired") else None,
                "cancelling_at": ended_at if status == "cancelled" else None,
                f"{status}_at": ended_at + 2,
            },
        )


def main() -> None:
    """Seeds the SQLite store of a data folder."""
    parser = argparse.ArgumentParser(prog="python -m bench.seeding", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--batches", type=int, default=100_000)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    url = f"sqlite:///{arguments.folder.absolute() / 'nightmill.sqlite'}"
    asyncio.run(seed(url, batches=arguments.batches, now=time.time()))
    print(f"{arguments.batches:,} batches in {time.monotonic() - began:.1f} s: {arguments.folder}")


if __name__ == "__main__":
    main()
