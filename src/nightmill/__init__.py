"""nightmill: OpenAI's Batch API on your own models.

`Client` sends batches to any OpenAI-compatible batch server, `AsyncClient` does so on asyncio, and `run`
answers a JSONL file without a server. Every error is a `NightmillError`; `nightmill.client` has all of the
client, and `nightmill.testing` starts a server for tests. Names are imported on first use, so that `import
nightmill` costs next to nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nightmill import client, testing
    from nightmill.client import (
        Answer,
        AsyncClient,
        AuthenticationError,
        Client,
        ConflictError,
        DamageError,
        ForbiddenError,
        NightmillError,
        NotFoundError,
        QuotaError,
        RequestError,
        SetupError,
        StorageFullError,
        TooLargeError,
        TooManyError,
        UnavailableError,
        run,
        to_frame,
    )

__all__ = [
    "Answer",
    "AsyncClient",
    "AuthenticationError",
    "Client",
    "ConflictError",
    "DamageError",
    "ForbiddenError",
    "NightmillError",
    "NotFoundError",
    "QuotaError",
    "RequestError",
    "SetupError",
    "StorageFullError",
    "TooLargeError",
    "TooManyError",
    "UnavailableError",
    "__version__",
    "client",
    "run",
    "testing",
    "to_frame",
]

__version__ = "0.1.0"

_MODULES = ("client", "testing")


def __getattr__(name: str) -> Any:
    # Any other name stays unknown: a typing error here must not become an import of something else.
    if name in _MODULES:
        return importlib.import_module(f"nightmill.{name}")
    if name in __all__:
        return getattr(importlib.import_module("nightmill.client"), name)
    raise AttributeError(f"module 'nightmill' has no attribute '{name}'")


def __dir__() -> list[str]:
    return __all__
