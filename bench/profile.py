"""A flame graph of the dispatcher at full speed, by py-spy, C frames included."""

import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

from bench import inputs, stubs, tools
from bench.rows.dispatch import WINDOW, run_batch
from bench.server import serving

_LINES = 500_000
_SAMPLES_PER_S = 400


def write_flame_graph(target: Path, *, source: Path | None) -> int:
    """Profiles one worker for half a million lines; needs permission to trace another process."""
    if (lack := stubs.missing()) is not None:
        print(f"SKIPPED: {lack}")
        return 0
    try:
        programs = tools.venv("tools", "py-spy")
    except tools.CannotInstallError as error:
        print(f"SKIPPED: {error}")
        return 0
    folder = Path(tempfile.mkdtemp(prefix="nightmill-bench-"))
    try:
        with (
            stubs.instant(folder / "nginx") as stub,
            serving(folder / "data", upstream=stub.url, concurrency=WINDOW, source=source) as server,
        ):
            file_id = server.upload(inputs.input_file(folder, _LINES))
            arguments = [str(programs / "py-spy"), "record", "--native", "--gil", "-r", str(_SAMPLES_PER_S)]
            arguments += ["-o", str(target), "-p", str(server.pids["worker 0"])]
            spy = subprocess.Popen(arguments)
            run_batch(server, file_id, lines=_LINES)
            spy.send_signal(signal.SIGINT)
            spy.wait(120)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(f"wrote {target}")
    return 0
