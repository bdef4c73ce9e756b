"""API keys: the stored record, how a key is made, and the digest by which it is found. No I/O.

The secret is shown once and cannot be recovered from what is stored. Storing keys belongs to `store`,
checking them to `api.auth`.
"""

import hashlib
from base64 import urlsafe_b64encode
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from nightmill.ids import ProjectId

PREFIX = "sk-nightmill-"
_SECRET_BYTES = 32


class Scope(StrEnum):
    """What a key gives access to: its own project, all projects as the operator, or its own project without
    changing anything.
    """

    PROJECT = "project"
    ADMIN = "admin"
    READ = "read"


@dataclass(frozen=True, slots=True)
class ApiKey:
    """An API key as it is stored: `digest` is the SHA-256 of the secret, `hint` its last four characters."""

    id: str
    project_id: ProjectId
    name: str
    digest: str
    hint: str
    created_at: int
    revoked_at: int | None = None
    scope: Scope = Scope.PROJECT


def digest_of(secret: str) -> str:
    """SHA-256 in hex. A plain hash is enough: a secret has 256 random bits and cannot be guessed."""
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


def make_api_key(
    random: Callable[[int], bytes],
    *,
    project_id: ProjectId,
    name: str,
    created_at: int,
    scope: Scope = Scope.PROJECT,
) -> tuple[str, ApiKey]:
    """Makes a key.

    Args:
        random: returns that many random bytes.

    Returns:
        The secret, to be shown once and not stored, and the record to store.
    """
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
