"""How an API key is made, and what of it is stored."""

import hashlib

from nightmill.core.api_key import PREFIX, Scope, digest_of, make_api_key
from nightmill.ids import ProjectId


def test_a_key_is_stored_as_a_digest_and_its_last_four_characters():
    secret, key = make_api_key(
        lambda count: b"\xfb" * count, project_id=ProjectId("p"), name="n", created_at=7, scope=Scope.ADMIN
    )
    assert secret.startswith(PREFIX)
    assert (key.project_id, key.name, key.created_at, key.scope) == ("p", "n", 7, Scope.ADMIN)
    assert key.digest == digest_of(secret) == hashlib.sha256(secret.encode()).hexdigest()
    assert key.hint == secret[-4:]
    assert secret not in repr(key)
