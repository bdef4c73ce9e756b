"""`python -m bench`: every row of the table, against its target.

Each figure is a median over rounds. Rounds with much foreign CPU are left out as long as two quiet ones
remain; the results contain all rounds. Results go to `.run/bench/results.json` and, with --publish, together
with the plots into docs/.
"""

import argparse
import importlib
import json
import shutil
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from bench import stubs
from bench.figures import FULL, LONG, QUICK, Bench, Figure
from bench.report import machine_and_versions, print_figures

ROWS = (
    "dispatch",
    "busy",
    "small",
    "intake",
    "transfer",
    "memory",
    "polls",
    "lists",
    "dashboard",
    "start",
    "leases",
    "fleet",
    "adaptive",
    "two-upstreams",
    "small-behind-large",
    "online",
    "forecast",
)
ENGINE_ROWS = ("engines", "engines_online")
"""Only on request: they need what `make test-engines` installs, and take half an hour."""
_RESULTS = Path(".run/bench/results.json")


def main() -> int:
    arguments = _arguments()
    if arguments.profile is not None:
        from bench.profile import write_flame_graph  # noqa: PLC0415 - only then

        return write_flame_graph(arguments.profile, source=arguments.source)
    if (lack := stubs.missing()) is not None:
        print(f"SKIPPED: {lack}")
        return 0
    sizes = QUICK if arguments.quick else LONG if arguments.long else FULL
    rows = arguments.only or [*ROWS, *(["peers"] if arguments.peers else [])]
    if arguments.before and not arguments.only:
        rows.append("before")
    results = json.loads(_RESULTS.read_text()) if _RESULTS.exists() and arguments.only else {}
    results |= machine_and_versions()
    results.setdefault("rows", {})
    folder = Path(tempfile.mkdtemp(prefix="nightmill-bench-", dir=arguments.folder))
    try:
        bench = Bench(folder, sizes, arguments.source, arguments.before)
        for name in rows:
            began = time.monotonic()
            figures: list[Figure] = importlib.import_module(f"bench.rows.{name.replace('-', '_')}").measure(
                bench
            )
            print_figures(figures, seconds=time.monotonic() - began)
            results["rows"][name] = [asdict(figure) | {"verdict": figure.verdict} for figure in figures]
            _RESULTS.parent.mkdir(parents=True, exist_ok=True)
            _RESULTS.write_text(json.dumps(results, indent=1))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if arguments.publish:
        from bench.publish import publish  # noqa: PLC0415 - needs matplotlib, in a venv of its own

        publish(results)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="a short form of each row, a few minutes in all")
    size.add_argument(
        "--long", action="store_true", help="also ten million lines (half an hour, 20 GB of disk)"
    )
    parser.add_argument(
        "--only",
        nargs="+",
        choices=[*ROWS, *ENGINE_ROWS, "peers", "before"],
        help="these rows; earlier results stay",
    )
    parser.add_argument(
        "--peers", action="store_true", help="also the peers, each installed into its own venv"
    )
    parser.add_argument(
        "--profile", type=Path, metavar="FILE.svg", help="only a flame graph of the dispatcher"
    )
    parser.add_argument("--publish", action="store_true", help="write docs/benchmarks.md and its plots")
    parser.add_argument(
        "--folder", type=Path, help="where to work; needs 5 GB [the system's temporary folder]"
    )
    parser.add_argument("--source", type=Path, help="a src folder to measure in place of the installed one")
    parser.add_argument(
        "--before", type=Path, help="the src folder of an earlier version, for the row `before`"
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
