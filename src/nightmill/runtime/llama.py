"""A GGUF model as an upstream of our own: llama.cpp's HTTP server in a child process, on loopback only.

The first part, used by the parent, makes the command line and detects errors of setup before a child starts.
The second part is the child itself, kind `llama`. It announces its port once the model is loaded, and a drain
lets it finish the requests in flight.
"""

import argparse
import os
import sys
import threading
import time
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from nightmill.errors import SetupError
from nightmill.runtime.child import LLAMA
from nightmill.runtime.supervisor import Program, child_command
from nightmill.settings import ModelSettings

_MAGIC: Final = b"GGUF"
_HEAD_BYTES: Final = 1 << 20
# llama.cpp uses one thread for each open connection; the client may keep many more connections than slots.
_CONNECTIONS: Final = 256
_ERRORS_ONLY: Final = 1
_POLL_S: Final = 0.05


def llama_program(settings: ModelSettings, *, port: int) -> Program:
    """The child for the supervisor.

    Raises:
        SetupError: llama.cpp is not installed, no model is named, or the file does not exist.
    """
    return Program("llama", LLAMA, tuple(_arguments(settings, port=port)))


def llama_command(settings: ModelSettings, *, port: int = 0) -> list[str]:
    """The whole command line of the child; its `--help` lists the options.

    Raises:
        SetupError: as `llama_program`.
    """
    return child_command(LLAMA, *_arguments(settings, port=port))


def _arguments(settings: ModelSettings, *, port: int) -> list[str]:
    _require_llama()
    if settings.path is None:
        raise SetupError("no model is named; give a GGUF file with --model")
    if not settings.path.is_file():
        raise SetupError(f"there is no model file at {settings.path}")
    return [
        "--model",
        str(settings.path.absolute()),
        "--slots",
        str(settings.slots),
        "--context",
        str(settings.context_tokens),
        "--threads",
        str(settings.threads),
        "--port",
        str(port),
    ]


def _require_llama() -> None:
    if find_spec("xllamacpp") is None:
        raise SetupError("llama.cpp is not installed; run: pip install 'nightmill[llama]'")


# --- the child ---------------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of the child."""
    parser.add_argument("--model", type=Path, required=True, help="a GGUF file")
    parser.add_argument("--slots", type=int, default=4, help="lines answered at once")
    parser.add_argument(
        "--context", type=int, default=0, help="tokens for each slot; 0 takes the model's own"
    )
    parser.add_argument("--threads", type=int, default=0, help="0 takes one for each core")


def run(
    options: argparse.Namespace,
    *,
    announce: Callable[[int], None],
    on_drain: Callable[[Callable[[], None]], None],
) -> None:
    """Serves the model until it is drained; never returns.

    Raises:
        SetupError: llama.cpp can't load the file, or the port is taken.
    """
    drain = threading.Event()
    on_drain(drain.set)
    server = _start_server(options)
    announce(int(server.listening_address.rpartition(":")[2]))
    drain.wait()
    while not _is_idle(server):
        time.sleep(_POLL_S)
    sys.stderr.flush()
    # An ordinary exit would wait for connections that are kept alive.
    os._exit(0)


def _start_server(options: argparse.Namespace) -> Any:
    """Loads the model and listens."""
    path: Path = options.model
    head = _head(path)
    _require_llama()
    llama: Any = import_module("xllamacpp")  # an extra, and a hundred megabytes
    params = llama.CommonParams()
    params.model.path = str(path)
    params.model_alias = {path.stem}
    params.n_parallel = options.slots
    params.n_ctx = options.context * options.slots
    params.kv_unified = options.context == 0  # all slots share the model's own context
    if options.threads:
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = options.threads
    params.port = options.port
    params.n_threads_http = _CONNECTIONS
    params.endpoint_metrics = True
    params.ui = False
    params.verbosity = _ERRORS_ONLY  # a higher level writes prompts to the log
    # A model that pools its tokens makes embeddings, and llama.cpp then serves nothing else.
    params.embedding = b".pooling_type" in head
    try:
        return llama.Server(params)
    except RuntimeError as error:
        raise SetupError(f"llama.cpp can't serve {path} on port {options.port}: {error}") from None


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError as error:
        raise SetupError(f"the model {path} can't be read: {error.strerror}") from None
    if not head.startswith(_MAGIC):
        raise SetupError(f"{path} is not a GGUF file")
    return head


def _is_idle(server: Any) -> bool:
    wanted = ("llamacpp:requests_processing ", "llamacpp:requests_deferred ")
    counts = [line.split()[1] for line in server.handle_metrics().splitlines() if line.startswith(wanted)]
    return all(float(count) == 0 for count in counts)
