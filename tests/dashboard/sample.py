"""Batches of every kind on a server, as a night with several teams leaves them."""

import json
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from tests.dashboard.conftest import RunningServer

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = {
    "NIGHTMILL_EMULATOR__DELAY_S": "0.4",
    "NIGHTMILL_UPSTREAM__CONCURRENCY": "8",
    "NIGHTMILL_UPSTREAM__MAX_ATTEMPTS": "2",
    "NIGHTMILL_PRICES__*__INPUT": "2.5",
    "NIGHTMILL_PRICES__*__OUTPUT": "10",
}


@dataclass(frozen=True)
class Sample:
    """The ids of the batches of a filled server."""

    completed: str
    with_failures: str
    refused: str
    paused: str
    running: str
    failed_line: int
    """The number of a line of `with_failures` that failed."""
    output_file: str


def fill(server: RunningServer, *, running_lines: int = 3_000) -> Sample:
    """Makes the batches, and waits until all but two have ended."""
    completed = _send(server, _lines(40, "ticket"), name="tickets-november.jsonl", team="support")
    faults = {6: "404", 17: "404", 23: "500, times always", 31: "refusal"}
    failing = _lines(36, "summary", faults=faults)
    with_failures = _send(server, failing, name="summaries.jsonl", team="research", record_attempts=True)
    refused = _send(server, [*_lines(3, "bad"), {"custom_id": "bad-1"}], name="broken.jsonl", team="research")
    for batch_id in (completed, with_failures, refused):
        server.wait_until(batch_id)
    paused = _send(server, _lines(400, "classify"), name="classify.jsonl", team="search")
    running = _send(server, _lines(running_lines, "label"), name="labels-2026-11.jsonl", team="search")
    server.wait_until(paused, "in_progress")
    server.wait_until(running, "in_progress")
    server.post(f"/nightmill/v1/batches/{paused}/pause")
    output_file = server.client.batches.retrieve(completed).output_file_id
    assert output_file is not None
    return Sample(completed, with_failures, refused, paused, running, 7, output_file)


def _lines(count: int, prefix: str, faults: dict[int, str] | None = None) -> list[dict[str, Any]]:
    text = (ROOT / "examples/chat.jsonl").read_text(encoding="utf-8")
    lines = [json.loads(line) for line in islice(cycle(text.splitlines()), count)]
    for number, line in enumerate(lines):
        line["custom_id"] = f"{prefix}-{number + 1:04}"
        if faults and number in faults:
            line["body"]["messages"][-1]["content"] += f" [emulate: {faults[number]}]"
    return lines


def _send(
    server: RunningServer, lines: list[dict[str, Any]], *, name: str, team: str, record_attempts: bool = False
) -> str:
    text = "".join(json.dumps(line) + "\n" for line in lines)
    file = server.client.files.create(file=(name, text.encode()), purpose="batch")
    batch = server.client.batches.create(
        input_file_id=file.id,
        endpoint="/v1/chat/completions",
        completion_window="24h",
        metadata={"team": team, "run": name.removesuffix(".jsonl")},
        extra_body={"nightmill": {"record_attempts": True}} if record_attempts else None,
    )
    return batch.id
