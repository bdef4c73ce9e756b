"""`python -m nightmill.runtime.llama_server --model path.gguf`: llama.cpp's own HTTP server in this process.

It listens on loopback only. The port goes into `--port-file` or through `--port-fd` once the model is loaded.
It ends at the end of its standard input; a byte `d` there, after the first line, lets it finish what it has
begun first.
"""

import argparse
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from nightmill.errors import SetupError
from nightmill.runtime.llama import require_llama

_DRAIN = b"d"
_GGUF = b"GGUF"
_HEAD_BYTES = 1 << 20
# llama.cpp holds one thread for each open connection; the sender may keep many more of them than slots.
_CONNECTIONS = 256
_ERRORS_ONLY = 1
_LOOK_S = 0.05


def serve(path: Path, *, slots: int, context_tokens: int, threads: int, port: int) -> Any:
    """Loads the model and listens. `context_tokens` is for each slot; with 0 all share the model's own.
    With 0 `threads` llama.cpp takes one for each core.

    Raises:
        SetupError: the file is no model that llama.cpp can load, or the port is taken.
    """
    head = _head(path)
    require_llama()
    llama: Any = import_module("xllamacpp")  # an extra, and a hundred megabytes
    params = llama.CommonParams()
    params.model.path = str(path)
    params.model_alias = {path.stem}
    params.n_parallel = slots
    params.n_ctx = context_tokens * slots
    params.kv_unified = context_tokens == 0
    if threads:
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.port = port
    params.n_threads_http = _CONNECTIONS
    params.endpoint_metrics = True
    params.ui = False
    params.verbosity = _ERRORS_ONLY  # above it, prompts get into the log
    # A model that pools its tokens makes embeddings, and llama.cpp then serves nothing else.
    params.embedding = b".pooling_type" in head
    try:
        return llama.Server(params)
    except RuntimeError as error:
        raise SetupError(f"llama.cpp can't serve {path} on port {port}: {error}") from None


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError as error:
        raise SetupError(f"the model {path} can't be read: {error.strerror}") from None
    if not head.startswith(_GGUF):
        raise SetupError(f"{path} is not a GGUF file")
    return head


def _is_idle(server: Any) -> bool:
    wanted = ("llamacpp:requests_processing ", "llamacpp:requests_deferred ")
    counts = [line.split()[1] for line in server.handle_metrics().splitlines() if line.startswith(wanted)]
    return all(float(count) == 0 for count in counts)


def _watch_input(drain: threading.Event) -> None:
    past_first_line = False
    while received := os.read(sys.stdin.fileno(), 1_024):
        if not past_first_line:
            _, line_break, received = received.partition(b"\n")
            past_first_line = bool(line_break)
        if past_first_line and _DRAIN in received:
            drain.set()
    # The parent is gone, and with it whoever wants an answer: not even a model being loaded is waited for.
    os._exit(0)


def _tell_port(port: int, *, file: Path | None, descriptor: int | None) -> None:
    line = f"{port}\n"
    if file is not None:
        unfinished = file.with_name(file.name + ".tmp")
        unfinished.write_text(line, encoding="ascii")
        unfinished.replace(file)
    if descriptor is not None:
        with os.fdopen(descriptor, "w", encoding="ascii") as pipe:
            pipe.write(line)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m nightmill.runtime.llama_server", description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="a GGUF file")
    parser.add_argument("--slots", type=int, default=4, help="lines answered at once")
    parser.add_argument(
        "--context", type=int, default=0, help="tokens for each slot; 0 takes the model's own"
    )
    parser.add_argument("--threads", type=int, default=0, help="0 takes one for each core")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--port-file", type=Path, help="is written once the model is loaded")
    parser.add_argument("--port-fd", type=int, help="an open descriptor that gets the port as a line")
    asked = parser.parse_args(arguments)
    if not sys.stdin.isatty():
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what llama.cpp prints is for the log
    drain = threading.Event()
    threading.Thread(target=_watch_input, args=(drain,), daemon=True).start()
    try:
        server = serve(
            asked.model,
            slots=asked.slots,
            context_tokens=asked.context,
            threads=asked.threads,
            port=asked.port,
        )
    except SetupError as error:
        sys.stderr.write(f"nightmill llama: {error}\n")
        sys.exit(SetupError.exit_code)
    port = int(server.listening_address.rpartition(":")[2])
    _tell_port(port, file=asked.port_file, descriptor=asked.port_fd)
    drain.wait()
    while not _is_idle(server):
        time.sleep(_LOOK_S)
    sys.stderr.flush()
    # An ordinary exit would wait for connections that are kept alive.
    os._exit(0)


if __name__ == "__main__":
    main()
