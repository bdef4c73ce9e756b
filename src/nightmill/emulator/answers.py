"""The emulated answer to an endpoint and a body, as a pure function."""

from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from nightmill.emulator.content import CREATED, FINGERPRINT, Answer, BadBodyError, error
from nightmill.emulator.media import edit, embeddings, image, moderation, video
from nightmill.emulator.texts import chat, completion, response

_ANSWERS: Final[Mapping[str, Callable[[bytes], dict[str, Any]]]] = {
    "/v1/responses": response,
    "/v1/chat/completions": chat,
    "/v1/embeddings": embeddings,
    "/v1/completions": completion,
    "/v1/moderations": moderation,
    "/v1/images/generations": image,
    "/v1/images/edits": edit,
    "/v1/videos": video,
}


def answer(endpoint: str, body: bytes) -> Answer:
    """The emulated answer to a request; a 400 in OpenAI's envelope when the body is invalid."""
    answer_of = _ANSWERS.get(endpoint)
    if answer_of is None:
        return error(404, f"The emulator has no endpoint {endpoint[:100]}.")
    try:
        return Answer(200, msgspec.json.encode(answer_of(body)))
    except msgspec.ValidationError as invalid:
        return error(400, f"Invalid body: {invalid}")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return error(400, "The body is not valid JSON.")
    except BadBodyError as bad:
        return error(400, str(bad))


def models() -> bytes:
    """The answer to `GET /v1/models`."""
    model = {"id": FINGERPRINT, "object": "model", "created": CREATED, "owned_by": "nightmill"}
    return msgspec.json.encode({"object": "list", "data": [model]})
