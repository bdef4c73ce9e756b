"""A GGUF model as an upstream of our own: how to start its child process.

Duty: the command line. Promise: what can be told before the child starts is told here, as SetupError. Not its
duty: keeping the child alive (the local supervisor) and answering (`llama_server`, the child itself).
"""

import sys
from importlib.util import find_spec

from nightmill.errors import SetupError
from nightmill.runtime.supervisor import Program
from nightmill.settings import ModelSettings

MODULE = "nightmill.runtime.llama_server"


def llama_program(settings: ModelSettings, *, port: int) -> Program:
    """The child for the local supervisor.

    Raises:
        SetupError: llama.cpp is not installed, no model is named, or there is no such file.
    """
    return Program("llama", MODULE, tuple(_arguments(settings, port=port)))


def llama_command(settings: ModelSettings, *, port: int = 0) -> list[str]:
    """The whole command line, to run the child by hand, see its `--help`.

    Raises:
        SetupError: as `llama_program`.
    """
    return [sys.executable, "-m", MODULE, *_arguments(settings, port=port)]


def _arguments(settings: ModelSettings, *, port: int) -> list[str]:
    require_llama()
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


def require_llama() -> None:
    if find_spec("xllamacpp") is None:
        raise SetupError("llama.cpp is not installed; run: pip install 'nightmill[llama]'")
