"""What all answers of the emulator share: the mark, made-up texts, token counts and errors.

Texts and ids are derived from a hash of the body, so that equal bodies have equal answers. Token counts are a
quarter of the length.
"""

from hashlib import blake2b
from typing import Annotated, Any, Final, TypeAlias

import msgspec
from msgspec import Meta, Raw, Struct

FINGERPRINT: Final = "nightmill-emulator"
CREATED: Final = 1_767_225_600
CHARACTERS_PER_TOKEN: Final = 4
WORDS: Final = (
    "amber",
    "birch",
    "cedar",
    "delta",
    "ember",
    "fjord",
    "grove",
    "heron",
    "inlet",
    "jetty",
    "knoll",
)

_ERROR_TYPES: Final = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
NOT_GIVEN: Final = Raw(b"")

Model: TypeAlias = Annotated[str, Meta(min_length=1)]
Text: TypeAlias = Annotated[str, Meta(min_length=1)]
Choices: TypeAlias = Annotated[int, Meta(ge=1, le=128)] | None
Inputs: TypeAlias = (
    Text
    | Annotated[
        list[str | int | Annotated[list[Annotated[int, Meta(ge=0)]], Meta(min_length=1)]],
        Meta(min_length=1, max_length=2_048),
    ]
)


class Answer(Struct, frozen=True):
    """A response; the content type is always JSON."""

    status: int
    body: bytes


class BadBodyError(Exception):
    """Becomes a 400 with this text."""


def error(status: int, message: str, *, code: str | None = None) -> Answer:
    """An answer in OpenAI's envelope of errors."""
    kind = _ERROR_TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    content = {"message": message, "type": kind, "param": None, "code": code}
    return Answer(status, msgspec.json.encode({"error": content}))


def refuse_stream(stream: bool | None) -> None:
    """Raises BadBodyError if the request asks for a stream."""
    if stream:
        raise BadBodyError("The emulator does not stream; leave 'stream' out.")


def seed_of(body: bytes) -> bytes:
    """16 bytes that are the same for equal bodies."""
    return blake2b(body, digest_size=16).digest()


def made_up_text(seed: bytes) -> str:
    words = " ".join(WORDS[byte % len(WORDS)] for byte in seed[:4])
    return f"This answer is emulated, no model was asked: {words}."


def token_count(content: bytes | str) -> int:
    return max(1, len(content) // CHARACTERS_PER_TOKEN)


def is_given(raw: Raw) -> bool:
    """Whether the request has this member, and it is not null."""
    return raw is not NOT_GIVEN and bytes(raw) not in (b"", b"null")


def object_of(raw: bytes | Raw) -> dict[str, Any]:
    """The JSON object in `raw`; raises msgspec.DecodeError for anything else."""
    return msgspec.json.decode(raw, type=dict[str, Any])


def inputs_of(given: Inputs) -> list[str | list[int]]:
    """A text, a list of texts, a list of tokens, or a list of such lists, always as a list."""
    if isinstance(given, str):
        return [given]
    tokens = [token for token in given if isinstance(token, int)]
    if len(tokens) == len(given):
        return [tokens]
    inputs = [entry for entry in given if not isinstance(entry, int)]
    if tokens or len({type(entry) for entry in inputs}) > 1 or "" in inputs:
        raise BadBodyError("Inputs must be all texts, or all tokens, and none of them empty.")
    return inputs
