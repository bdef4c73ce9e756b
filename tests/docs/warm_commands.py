"""Runs the commands of the pages in forks of one process that has loaded them already.

The pages have more than 100 commands, and each would load the `openai` package for a second. `nightmill` in
the folder of `warm_commands` passes its arguments, environment, working directory and the three standard
streams to that process, and ends with the exit code that comes back. Commands that start processes run as
users run them.
"""

import json
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

STARTED_AS_USUAL = ("run", "serve", "torture", "work")
BROKEN = 70
CLIENT = """#!{python} -IS
import json, os, socket, sys
if set(sys.argv[1:2]) & set({as_usual!r}):
    os.execv({command!r}, ["nightmill", *sys.argv[1:]])
with socket.socket(socket.AF_UNIX) as link:
    link.connect({address!r})
    socket.send_fds(link, [b"."], [0, 1, 2])
    link.sendall(json.dumps([sys.argv[1:], dict(os.environ), os.getcwd()]).encode())
    link.shutdown(socket.SHUT_WR)
    sys.exit(int(link.recv(4) or {broken}))
"""


@contextmanager
def warm_commands(folder: Path) -> Iterator[Path]:
    """Starts the process; `folder` then holds the command `nightmill`, for the beginning of `PATH`."""
    address, client = folder / "s", folder / "nightmill"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(address))
        listener.listen(16)
        command = Path(sys.executable).parent / "nightmill"
        client.write_text(
            CLIENT.format(
                python=sys.executable,
                as_usual=STARTED_AS_USUAL,
                command=str(command),
                address=str(address),
                broken=BROKEN,
            )
        )
        client.chmod(client.stat().st_mode | stat.S_IXUSR)
        serving = subprocess.Popen(
            [sys.executable, "-m", "tests.docs.warm_commands", str(listener.fileno())],
            cwd=Path(__file__).resolve().parents[2],
            pass_fds=[listener.fileno()],
            stdin=subprocess.DEVNULL,
        )
    try:
        yield folder
    finally:
        serving.terminate()
        serving.wait()


def serve(listener: socket.socket) -> None:
    """Forks for each connection, without an end."""
    # Loaded before the forks, which is what this module is for.
    import nightmill.cli
    import nightmill.client.session  # noqa: F401 - see above

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel removes forks that have ended
    while True:
        link, _ = listener.accept()
        with link:
            if os.fork() == 0:
                listener.close()
                _run(link)
                os._exit(0)


def _run(link: socket.socket) -> None:
    from nightmill.__main__ import main

    _, streams, _, _ = socket.recv_fds(link, 1, 3)
    received = b"".join(iter(lambda: link.recv(1 << 16), b""))
    arguments, environment, folder = json.loads(received)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = ["nightmill", *arguments]
    code: object = BROKEN
    try:
        main()
    except SystemExit as ended:
        code = ended.code
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        link.sendall(str(int(str(code or 0))).encode())


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
