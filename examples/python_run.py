"""A batch from Python, without a nightmill server.

    python examples/python_run.py                               answers made up by the emulator
    python examples/python_run.py http://localhost:11434/v1     a model server

After Ctrl-C, the next run continues where this run stopped.
"""

import shutil
import sys
from pathlib import Path

import nightmill

HERE = Path(__file__).resolve().parent


def main() -> None:
    path = Path("tickets.jsonl")
    if not path.exists():
        shutil.copy(HERE / "chat.jsonl", path)
    if len(sys.argv) > 1:
        summary = nightmill.run(path, upstream=sys.argv[1])
    else:
        summary = nightmill.run(path, emulate=True)
    done = summary.completed + summary.failed
    print(
        f"{summary.status}: {done} of {summary.total} done ({summary.completed} ok, {summary.failed} failed)"
    )
    print(f"answers in {summary.output_path}")
    sys.exit(0 if summary.status == "completed" else 1)


if __name__ == "__main__":
    main()
