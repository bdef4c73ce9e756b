"""Preforked children of a real parent, which forks them as `nightmill serve` does, before it has an event
loop.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

PARENT = """
import asyncio, os, sys
from pathlib import Path
from nightmill.runtime.prefork import prefork

def main(arguments):
    print(*arguments, os.environ.get("NIGHTMILL_KEY"), os.environ["KEPT"], flush=True)
    said = sys.stdin.read()
    sys.exit(len(said))

held = open(os.devnull)
preforked = prefork(2, kind="some kind", main=main)

async def begin_one():
    child = await preforked[0].begin("worker:0", "second")
    print(child.pid, (await child.stdout.readline()).decode().strip(), flush=True)
    print(os.readlink(f"/proc/{child.pid}/fd/2") == os.readlink("/proc/self/fd/2"),
          len(os.listdir(f"/proc/{child.pid}/fd")), flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    child.stdin.write(b"seven b")
    child.stdin.close()
    print(await child.wait(), child.returncode, flush=True)

asyncio.run(begin_one())
"""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux forks well")


@contextmanager
def parent() -> Iterator[subprocess.Popen[str]]:
    environment = os.environ | {"NIGHTMILL_KEY": "sk-of-the-upstream", "KEPT": "kept"}
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-c", PARENT], stdin=pipe, stdout=pipe, text=True, env=environment
    ) as it:
        try:
            yield it
        finally:
            it.kill()


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_a_preforked_child_runs_its_arguments_and_inherits_only_standard_error():
    with parent() as it:
        assert it.stdout is not None
        assert it.stdin is not None
        pid, said = it.stdout.readline().split(maxsplit=1)
        assert said.strip() == "worker:0 second None kept"
        assert it.stdout.readline().split() == ["True", "3"], "only its three standard streams"
        environment = Path(f"/proc/{pid}/environ").read_bytes()
        assert b"KEPT=kept" in environment
        assert b"sk-of-the-upstream" not in environment
        it.stdin.write("\n")
        it.stdin.flush()
        assert it.stdout.readline().split() == ["7", "7"]
        assert it.wait(60) == 0


def test_preforked_children_exit_with_their_parent_whether_they_have_begun_or_not():
    with parent() as it:
        assert it.stdout is not None
        it.stdout.readline()
        preforked = children_of(it.pid)
        assert len(preforked) == 2
        it.kill()
        deadline = time.monotonic() + 60
        while any(Path(f"/proc/{preforked}/stat").exists() for preforked in preforked):
            assert time.monotonic() < deadline
            time.sleep(0.01)
