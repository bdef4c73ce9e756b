"""The Idempotency-Key header of creates: a create that is sent again gives the first one's answer.

OpenAI documents none; its clients repeat creates whose answer was lost, and with this header that makes no
second batch.
"""

from fastapi import Request

from nightmill.errors import RequestError
from nightmill.store import Idempotency

_MAX_LENGTH = 255


def idempotency_of(request: Request, *, fingerprint: str) -> Idempotency | None:
    """None when the client sent no key.

    Args:
        fingerprint: a hash of what was asked for; the same key with another one is a conflict.

    Raises:
        RequestError: the key is too long or has odd characters.
    """
    key = request.headers.get("idempotency-key", "").strip()
    if not key:
        return None
    if len(key) > _MAX_LENGTH or not (key.isascii() and key.isprintable()):
        message = (
            f"Invalid header 'Idempotency-Key': expected up to {_MAX_LENGTH} printable ASCII characters."
        )
        raise RequestError(message, param="Idempotency-Key", code="invalid_value")
    return Idempotency(key, fingerprint)
