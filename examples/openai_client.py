"""A whole batch with only the official openai package.

    export OPENAI_BASE_URL=http://127.0.0.1:8080/v1 OPENAI_API_KEY=unused
    python examples/openai_client.py examples/chat.jsonl

The same program runs against OpenAI itself when OPENAI_BASE_URL is not set.
"""

import json
import sys
import time
from pathlib import Path

from openai import OpenAI

POLL_S = 1.0
FINAL = {"completed", "failed", "expired", "cancelled"}


def main() -> None:
    path = Path(sys.argv[1] if len(sys.argv) > 1 else "examples/chat.jsonl")
    with path.open(encoding="utf-8") as lines:
        endpoint = json.loads(next(lines))["url"]

    client = OpenAI()
    uploaded = client.files.create(file=path, purpose="batch")
    batch = client.batches.create(
        input_file_id=uploaded.id, endpoint=endpoint, completion_window="24h", metadata={"from": path.name}
    )
    print(f"{batch.id} is {batch.status}")

    while batch.status not in FINAL:
        time.sleep(POLL_S)
        batch = client.batches.retrieve(batch.id)
        if counts := batch.request_counts:
            total, ok, failed = counts.total, counts.completed, counts.failed
            print(f"{batch.status}: {ok + failed} of {total} done ({ok} ok, {failed} failed)")

    for error in (batch.errors.data if batch.errors else None) or []:
        print(f"line {error.line}: {error.message}")
    for file_id, kind in ((batch.output_file_id, "output"), (batch.error_file_id, "errors")):
        if file_id:
            target = path.with_suffix(f".{kind}.jsonl").name
            client.files.content(file_id).write_to_file(target)
            print(f"wrote {target}")
    sys.exit(0 if batch.status == "completed" else 1)


if __name__ == "__main__":
    main()
