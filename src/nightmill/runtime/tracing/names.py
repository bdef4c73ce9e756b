"""Every name in our spans. Those of OpenTelemetry's GenAI conventions, version 1.38, may still change."""

from typing import Final

# GenAI conventions (in development as of semantic conventions 1.38), for spans of attempts.
OPERATION: Final = "gen_ai.operation.name"
PROVIDER: Final = "gen_ai.provider.name"
REQUEST_MODEL: Final = "gen_ai.request.model"
RESPONSE_MODEL: Final = "gen_ai.response.model"
RESPONSE_ID: Final = "gen_ai.response.id"
INPUT_TOKENS: Final = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS: Final = "gen_ai.usage.output_tokens"
INPUT_CONTENT: Final = "gen_ai.input.messages"
OUTPUT_CONTENT: Final = "gen_ai.output.messages"

# Stable conventions.
STATUS_CODE: Final = "http.response.status_code"
ERROR_TYPE: Final = "error.type"

# Spans. An attempt's is its operation and model, as the conventions want; a phase's begins with the batch's.
BATCH_SPAN: Final = "batch"
SEGMENT_SPAN: Final = "segment"

# Our own.
BATCH: Final = "nightmill.batch.id"
BATCH_STATUS: Final = "nightmill.batch.status"
BATCH_LINES: Final = "nightmill.batch.lines"
BATCH_FAILED: Final = "nightmill.batch.failed"
SEGMENT: Final = "nightmill.segment.number"
LEASE: Final = "nightmill.segment.token"
SEGMENT_ANSWERED: Final = "nightmill.segment.answered"
UPSTREAM: Final = "nightmill.upstream"
ENDPOINT: Final = "nightmill.endpoint"

PROVIDER_OF_THE_API: Final = "openai"
"""The convention names the provider whose API is used, since the server behind it is not known."""
OPERATIONS: Final = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "text_completion",
    "/v1/responses": "chat",
    "/v1/embeddings": "embeddings",
}
OTHER_OPERATION: Final = "generate_content"
