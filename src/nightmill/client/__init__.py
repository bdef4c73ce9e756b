"""Talk to any OpenAI-compatible batch server from Python, on the official `openai` package.

All of these are thin:

- `Client` and `AsyncClient`: send texts, rows or a DataFrame, wait with a progress bar, get answers joined to
  their requests.
- `BatchApi` and `AsyncBatchApi`: the four published operations by their own names.
- `Steering`, `InsightApi`, `RetryApi` and others, with their async forms: what only a nightmill server has.
  Pause and change running batches; what limits a batch, when it will end, and its history; retries, receipts.
- `run`: answer a JSONL file without a server.
- `NightmillError`: the root of every error that these raise.

Names are imported on first use: `run` must not pay for the `openai` package.
"""

import importlib
from typing import TYPE_CHECKING, Any, Final

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
    from nightmill.client.async_session import AsyncClient
    from nightmill.client.frames import Frame, to_frame
    from nightmill.client.input_files import AsyncInputApi, InputApi
    from nightmill.client.insight import AsyncInsightApi, BatchEvent, Forecast, InsightApi, Why
    from nightmill.client.local import RowArguments, RunArguments, run
    from nightmill.client.logs import AsyncLogApi, LogApi
    from nightmill.client.request_rows import Row, SubmitArguments
    from nightmill.client.results import FollowedLine, ResultPage, WantedResults
    from nightmill.client.retries import AsyncRetryApi, RetryApi
    from nightmill.client.session import Client
    from nightmill.client.steering import AsyncSteering, BatchSelection, Steering
    from nightmill.client.upstreams import AsyncUpstreamApi, UpstreamApi
    from nightmill.client.webhooks import AsyncWebhookApi, WebhookApi
    from nightmill.errors import (
        AuthenticationError,
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
    )
    from nightmill.runtime.run_file import Progress, RunSummary

__all__ = [
    "Answer",
    "ApiKeyAuth",
    "AsyncBatchApi",
    "AsyncClient",
    "AsyncInputApi",
    "AsyncInsightApi",
    "AsyncLogApi",
    "AsyncRetryApi",
    "AsyncSteering",
    "AsyncUpstreamApi",
    "AsyncWebhookApi",
    "AuthenticationError",
    "Batch",
    "BatchApi",
    "BatchEvent",
    "BatchOptions",
    "BatchPriority",
    "BatchSelection",
    "Client",
    "ConflictError",
    "CreateBatchRequest",
    "DamageError",
    "FollowedLine",
    "ForbiddenError",
    "Forecast",
    "Frame",
    "InputApi",
    "InsightApi",
    "ListBatchesResponse",
    "LogApi",
    "NightmillError",
    "NotFoundError",
    "OnInvalid",
    "OutputExpiresAfter",
    "Progress",
    "QuotaError",
    "RequestError",
    "ResultPage",
    "RetryApi",
    "Row",
    "RowArguments",
    "RunArguments",
    "RunSummary",
    "SetupError",
    "Steering",
    "StorageFullError",
    "SubmitArguments",
    "TooLargeError",
    "TooManyError",
    "UnavailableError",
    "UpstreamApi",
    "WantedResults",
    "WebhookApi",
    "Why",
    "run",
    "to_frame",
]

_HOMES: Final = {
    "Answer": "nightmill.client.answers",
    "ApiKeyAuth": "nightmill.client.api",
    "AsyncBatchApi": "nightmill.client.api",
    "AsyncClient": "nightmill.client.async_session",
    "AsyncInputApi": "nightmill.client.input_files",
    "AsyncInsightApi": "nightmill.client.insight",
    "AsyncLogApi": "nightmill.client.logs",
    "AsyncRetryApi": "nightmill.client.retries",
    "AsyncSteering": "nightmill.client.steering",
    "AsyncUpstreamApi": "nightmill.client.upstreams",
    "AsyncWebhookApi": "nightmill.client.webhooks",
    "AuthenticationError": "nightmill.errors",
    "Batch": "nightmill.client.api",
    "BatchApi": "nightmill.client.api",
    "BatchEvent": "nightmill.client.insight",
    "BatchOptions": "nightmill.client.api",
    "BatchPriority": "nightmill.client.api",
    "BatchSelection": "nightmill.client.steering",
    "Client": "nightmill.client.session",
    "ConflictError": "nightmill.errors",
    "CreateBatchRequest": "nightmill.client.api",
    "DamageError": "nightmill.errors",
    "ForbiddenError": "nightmill.errors",
    "FollowedLine": "nightmill.client.results",
    "Forecast": "nightmill.client.insight",
    "Frame": "nightmill.client.frames",
    "InputApi": "nightmill.client.input_files",
    "InsightApi": "nightmill.client.insight",
    "ListBatchesResponse": "nightmill.client.api",
    "LogApi": "nightmill.client.logs",
    "NightmillError": "nightmill.errors",
    "NotFoundError": "nightmill.errors",
    "OnInvalid": "nightmill.client.api",
    "OutputExpiresAfter": "nightmill.client.api",
    "Progress": "nightmill.runtime.run_file",
    "QuotaError": "nightmill.errors",
    "RequestError": "nightmill.errors",
    "ResultPage": "nightmill.client.results",
    "RetryApi": "nightmill.client.retries",
    "Row": "nightmill.client.request_rows",
    "RowArguments": "nightmill.client.local",
    "RunArguments": "nightmill.client.local",
    "RunSummary": "nightmill.runtime.run_file",
    "SetupError": "nightmill.errors",
    "Steering": "nightmill.client.steering",
    "StorageFullError": "nightmill.errors",
    "SubmitArguments": "nightmill.client.request_rows",
    "TooLargeError": "nightmill.errors",
    "TooManyError": "nightmill.errors",
    "UnavailableError": "nightmill.errors",
    "UpstreamApi": "nightmill.client.upstreams",
    "WantedResults": "nightmill.client.results",
    "WebhookApi": "nightmill.client.webhooks",
    "Why": "nightmill.client.insight",
    "run": "nightmill.client.local",
    "to_frame": "nightmill.client.frames",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'nightmill.client' has no attribute '{name}'")
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return __all__
