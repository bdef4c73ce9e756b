"""The emulator as the upstream of a run: a child that outlives every kill, and its record."""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

from nightmill.errors import SetupError
from nightmill_torture.record import Record

SLOW = "slow-line"
SLOW_S = 3.0
REQUEST_ID_PREFIX = "emulated-"

_START_S = 60.0
_LOOK_S = 0.01


@asynccontextmanager
async def emulator(folder: Path, *, delay_s: float) -> AsyncGenerator[tuple[str, Record]]:
    """Yields the URL and the record. Lines with SLOW are answered after SLOW_S, others after `delay_s`.

    Raises:
        SetupError: the emulator did not start.
    """
    record, port_file = folder / "record", folder / "port"
    faults = json.dumps([{"fault": "slow", "match": SLOW, "times": None, "delay_s": SLOW_S}])
    record.touch()
    command = [
        *(sys.executable, "-m", "nightmill.runtime.child", "emulator", "--port-file", str(port_file)),
        *("--record", str(record), "--delay-s", str(delay_s), "--faults", faults),
    ]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
    try:
        async with asyncio.timeout(_START_S):
            while not port_file.exists():
                if child.poll() is not None:
                    raise SetupError("the emulator did not start; see its message above")
                await asyncio.sleep(_LOOK_S)
        yield f"http://127.0.0.1:{port_file.read_text().strip()}/v1", Record(record)
    finally:
        child.kill()
        child.wait()
        if child.stdin is not None:
            child.stdin.close()
