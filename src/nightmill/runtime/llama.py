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
from nightmill.runtime.llama_memory import available_bytes, plan_slots, read_header
from nightmill.runtime.supervisor import Program, child_command
from nightmill.settings import ModelSettings

_SPINS: Final = "1000"
"""How often a compute thread looks for work before it sleeps. With OpenMP's own 300,000, waiting threads take
the cores from computing ones: on two busy cores a 135M model answered five times as many lines with 1,000.
On idle cores it answered 16% fewer, and with 0 half as many.
"""
# llama.cpp uses one thread for each open connection; the client may keep many more connections than slots.
_CONNECTIONS: Final = 256
_ERRORS_ONLY: Final = 1
_POLL_S: Final = 0.05


def fitted(settings: ModelSettings) -> tuple[ModelSettings, str]:
    """Chooses the number of slots and their context so that the model fits into memory.

    Returns:
        The settings for `llama_program` or `llama_command`, and a line that says what was chosen and why.

    Raises:
        SetupError: llama.cpp is not installed, no model is named, or the file is not a model.
    """
    path = _model_path(settings)
    plan = plan_slots(settings, read_header(path), available_bytes=available_bytes())
    update = {"slots": plan.slots, "context_tokens": plan.context_tokens}
    return settings.model_copy(update=update), f"{path.name} answers {plan.reason}"


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


def _model_path(settings: ModelSettings) -> Path:
    if settings.path is None:
        raise SetupError("no model is named; give a GGUF file with --model")
    if not settings.path.is_file():
        raise SetupError(f"there is no model file at {settings.path.absolute()}")
    _require_llama()
    return settings.path


def _arguments(settings: ModelSettings, *, port: int) -> list[str]:
    return [
        "--model",
        str(_model_path(settings).absolute()),
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
    header = read_header(path)
    context_tokens: int = options.context or header.context_tokens
    _require_llama()
    os.environ.setdefault("GOMP_SPINCOUNT", _SPINS)  # read when llama.cpp is loaded
    llama: Any = import_module("xllamacpp")  # an extra, and a hundred megabytes
    params = llama.CommonParams()
    params.model.path = str(path)
    params.model_alias = {path.stem}
    params.n_parallel = options.slots
    # Each slot has a context of its own. With one for all, lines that are long together end each other.
    params.n_ctx = context_tokens * options.slots
    params.kv_unified = False
    # By default llama.cpp keeps up to 8 GiB of earlier prompts beside the slots.
    params.cache_ram_mib = 0
    if options.threads:
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = options.threads
    params.port = options.port
    params.n_threads_http = _CONNECTIONS
    params.endpoint_metrics = True
    params.ui = False
    params.verbosity = _ERRORS_ONLY  # a higher level writes prompts to the log
    params.embedding = header.makes_embeddings
    if header.makes_embeddings:
        # A text is computed in one batch; llama.cpp answers 500 to a longer one.
        params.n_batch = params.n_ubatch = context_tokens
    try:
        return llama.Server(params)
    except RuntimeError as error:
        raise SetupError(f"llama.cpp can't serve {path} on port {options.port}: {error}") from None


def _is_idle(server: Any) -> bool:
    wanted = ("llamacpp:requests_processing ", "llamacpp:requests_deferred ")
    counts = [line.split()[1] for line in server.handle_metrics().splitlines() if line.startswith(wanted)]
    return all(float(count) == 0 for count in counts)
