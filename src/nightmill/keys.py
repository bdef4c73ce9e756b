"""API keys: made once, shown once, kept as a digest.

Duty: the shape of a key and its digest. Promise: the secret can't be had back from what is stored. Not its
duty: keeping keys (the store) and asking for them (`api.auth`).
"""

import hashlib
from base64 import urlsafe_b64encode
from collections.abc import Callable

from nightmill.ids import ProjectId
from nightmill.store.protocol import ApiKey
from nightmill.tenant import Scope

PREFIX = "sk-nightmill-"
_SECRET_BYTES = 32


def digest_of(secret: str) -> str:
    """SHA-256 in hex. A plain hash is enough: a secret has 256 random bits, so there is nothing to guess."""
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


def make_api_key(
    random: Callable[[int], bytes],
    *,
    project_id: ProjectId,
    name: str,
    created_at: int,
    scope: Scope = Scope.PROJECT,
) -> tuple[str, ApiKey]:
    """The secret, which is to be shown once and forgotten, and the key to store."""
    secret = PREFIX + urlsafe_b64encode(random(_SECRET_BYTES)).rstrip(b"=").decode("ascii")
    key = ApiKey(
        id="key_" + random(8).hex(),
        project_id=project_id,
        name=name,
        digest=digest_of(secret),
        hint=secret[-4:],
        created_at=created_at,
        scope=scope,
    )
    return secret, key
