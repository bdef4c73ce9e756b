"""nightmill: OpenAI's Batch API on your own models.

`nightmill.run` answers a JSONL file without a server; `nightmill.client` talks to any OpenAI-compatible
batch server. Both are imported on first use, so that `import nightmill` costs next to nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nightmill import client
    from nightmill.client import run

__all__ = ["__version__", "client", "run"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # Any other name stays unknown: a typing error here must not become an import of something else.
    if name == "client":
        return importlib.import_module("nightmill.client")
    if name == "run":
        return importlib.import_module("nightmill.client").run
    raise AttributeError(f"module 'nightmill' has no attribute '{name}'")
