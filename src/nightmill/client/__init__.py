"""Talk to any OpenAI-compatible batch server from Python, on the official `openai` package.

Thin levels:

- `BatchApi` and `AsyncBatchApi`: the four published operations by their own names, and priorities.
- `RetryApi` and `AsyncRetryApi`: retries, merged results and receipts of a nightmill server.
Four levels, all thin:

- `BatchApi` and `AsyncBatchApi`: the four published operations by their own names, and priorities.
- `InsightApi` and `AsyncInsightApi`: what limits a batch, when it will end, and its history.
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
    from nightmill.client.retries import AsyncRetryApi, RetryApi
    from nightmill.client.results import FollowedLine, ResultPage, WantedResults
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
    "Forecast",
    "InsightApi",
    "FollowedLine",
    "ListBatchesResponse",
    "OnInvalid",
    "OutputExpiresAfter",
    "RetryApi",
    "Why",
    "Steering",
    "ResultPage",
    "WantedResults",
    "Steering",
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
    "Forecast": "insight",
    "InsightApi": "insight",
    "FollowedLine": "results",
    "ListBatchesResponse": "api",
    "OnInvalid": "api",
    "OutputExpiresAfter": "api",
    "RetryApi": "retries",
    "Steering": "steering",
    "ResultPage": "results",
    "WantedResults": "results",
    "run": "local",
    "Why": "insight",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'nightmill.client' has no attribute '{name}'")
    return getattr(importlib.import_module(f"nightmill.client.{home}"), name)
