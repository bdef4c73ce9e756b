"""The cheap request that finds out whether a model answers at all. No I/O.

It is sent when only lines that failed before are left, or when a model is held (see `core.health`). Its
answer is read and thrown away. It asks for one token, or for as little as the endpoint takes.
"""

from typing import Any, Final

import msgspec

_CONTENT: Final = "Hi"

_FIELDS: Final[dict[str, dict[str, Any]]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": _CONTENT}], "max_tokens": 1},
    "/v1/completions": {"prompt": _CONTENT, "max_tokens": 1},
    "/v1/embeddings": {"input": _CONTENT},
    "/v1/moderations": {"input": _CONTENT},
    "/v1/responses": {"input": _CONTENT, "max_output_tokens": 16},
}
"""The body without its model, for each endpoint where a request is cheap. Images and videos are not."""


def probe_body(endpoint: str, model: str | None) -> bytes | None:
    """The body of the cheap request, None where there is none for the endpoint.

    Args:
        model: the model to ask; None leaves it out.
    """
    fields = _FIELDS.get(endpoint)
    if fields is None:
        return None
    return msgspec.json.encode(fields if model is None else {"model": model, **fields})
