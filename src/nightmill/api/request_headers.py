"""Refuses requests whose headers are ambiguous, or ask for an unsupported coding or behaviour.

Without this, a coded body would be read as if it were plain. `connection` checks the headers that frame a
body.
"""

from collections.abc import Iterable

from starlette.types import ASGIApp, Scope

from nightmill.api.envelope import echo, error_response

_SINGLE = (b"host", b"content-type", b"authorization", b"api-key", b"idempotency-key")
"""Headers of which two different values would leave open which one counts."""


def refusal_of(scope: Scope) -> ASGIApp | None:
    """The response to a request that is refused for its headers, or None."""
    headers: list[tuple[bytes, bytes]] = scope["headers"]
    path = scope["path"]
    values: dict[bytes, set[bytes]] = {}
    for name, value in headers:
        values.setdefault(name, set()).add(value)
    for name in _SINGLE:
        if len(values.get(name, ())) > 1:
            title = name.decode().title()
            message = (
                f"The header '{title}' was sent more than once, with different values. Please send it once."
            )
            return error_response(message, status=400, param=title, code="duplicate_parameter", path=path)
    if expectation := _other_token(values.get(b"expect", ()), b"100-continue"):
        message = f"Unsupported expectation: '{echo(expectation)}'. Only '100-continue' is supported."
        return error_response(message, status=417, param="Expect", path=path)
    if coding := _other_token(values.get(b"transfer-encoding", ()), b"chunked"):
        message = f"Unsupported transfer encoding: '{echo(coding)}'. Only 'chunked' is supported."
        return error_response(
            message, status=501, error_type="invalid_request_error", param="Transfer-Encoding", path=path
        )
    has_body = b"transfer-encoding" in values or values.get(b"content-length", {b"0"}) != {b"0"}
    if has_body and (coding := _other_token(values.get(b"content-encoding", ()), b"identity")):
        message = f"Unsupported content encoding: '{echo(coding)}'. Please send the body without compression."
        return error_response(
            message,
            status=415,
            param="Content-Encoding",
            code="unsupported_content_encoding",
            headers={"accept-encoding": "identity"},
            path=path,
        )
    return None


def _other_token(values: Iterable[bytes], known: bytes) -> str | None:
    """The first token of the comma lists that is not `known`, in any case."""
    for value in values:
        for token in value.lower().split(b","):
            if (token := token.strip()) not in (known, b""):
                return token.decode("latin-1")
    return None
