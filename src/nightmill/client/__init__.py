"""Talk to any OpenAI-compatible batch server from Python, on the official `openai` package.

All of these are thin:

- `BatchApi` and `AsyncBatchApi`: the four published operations by their own names.
- `Steering`, `InsightApi`, `RetryApi` and their async forms: what only a nightmill server has. Pause and
  change running batches; what limits a batch, when it will end, and its history; retries and receipts.
- `Client`: send rows, wait with a progress bar, get answers joined to their requests.
- `run`: answer a JSONL file without a server.

Names are imported on first use: `run` must not pay for the `openai` package.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nightmill.client.answers import Answer
    from nightmill.client.api import (
        ApiKeyAuth,
        AsyncBatchApi,
        Batch,
        BatchApi,
        BatchOptions,
        BatchPriority,
        CreateBatchRequest,
        ListBatchesResponse,
        OnInvalid,
        OutputExpiresAfter,
    )
    from nightmill.client.insight import AsyncInsightApi, BatchEvent, Forecast, InsightApi, Why
    from nightmill.client.local import run
    from nightmill.client.results import FollowedLine, ResultPage, WantedResults
    from nightmill.client.retries import AsyncRetryApi, RetryApi
    from nightmill.client.session import Client
    from nightmill.client.steering import AsyncSteering, BatchSelection, Steering

__all__ = [
    "Answer",
    "ApiKeyAuth",
    "AsyncBatchApi",
    "AsyncInsightApi",
    "AsyncRetryApi",
    "AsyncSteering",
    "Batch",
    "BatchApi",
    "BatchEvent",
    "BatchOptions",
    "BatchPriority",
    "BatchSelection",
    "Client",
    "CreateBatchRequest",
    "FollowedLine",
    "Forecast",
    "InsightApi",
    "ListBatchesResponse",
    "OnInvalid",
    "OutputExpiresAfter",
    "ResultPage",
    "RetryApi",
    "Steering",
    "WantedResults",
    "Why",
    "run",
]

_HOMES = {
    "Answer": "answers",
    "ApiKeyAuth": "api",
    "AsyncBatchApi": "api",
    "AsyncInsightApi": "insight",
    "AsyncRetryApi": "retries",
    "AsyncSteering": "steering",
    "Batch": "api",
    "BatchApi": "api",
    "BatchEvent": "insight",
    "BatchOptions": "api",
    "BatchPriority": "api",
    "BatchSelection": "steering",
    "Client": "session",
    "CreateBatchRequest": "api",
    "FollowedLine": "results",
    "Forecast": "insight",
    "InsightApi": "insight",
    "ListBatchesResponse": "api",
    "OnInvalid": "api",
    "OutputExpiresAfter": "api",
    "ResultPage": "results",
    "RetryApi": "retries",
    "run": "local",
    "Steering": "steering",
    "WantedResults": "results",
    "Why": "insight",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'nightmill.client' has no attribute '{name}'")
    return getattr(importlib.import_module(f"nightmill.client.{home}"), name)
