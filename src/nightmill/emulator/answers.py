"""The emulated answer to an endpoint and a body, as a pure function.

Numbers, ids and words are derived from a hash of the body, and embeddings from a hash of each input, so that
equal texts have equal vectors. Token counts are a quarter of the length.
"""

import base64
import struct
import zlib
from array import array
from collections.abc import Callable, Mapping
from hashlib import blake2b, shake_256
from math import sqrt
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import Meta, Raw, Struct

FINGERPRINT = "nightmill-emulator"

_CREATED = 1_767_225_600
_DIMENSIONS = 256
_WORDS = ("amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "heron", "inlet", "jetty", "knoll")
_CATEGORIES = (
    "harassment",
    "harassment/threatening",
    "hate",
    "hate/threatening",
    "illicit",
    "illicit/violent",
    "self-harm",
    "self-harm/intent",
    "self-harm/instructions",
    "sexual",
    "sexual/minors",
    "violence",
    "violence/graphic",
)

Model: TypeAlias = Annotated[str, Meta(min_length=1)]
Text: TypeAlias = Annotated[str, Meta(min_length=1)]
Tokens: TypeAlias = Annotated[list[Annotated[int, Meta(ge=0)]], Meta(min_length=1)]
Inputs: TypeAlias = (
    Text
    | Annotated[
        list[str | int | Annotated[list[Annotated[int, Meta(ge=0)]], Meta(min_length=1)]],
        Meta(min_length=1, max_length=2_048),
    ]
)
Choices: TypeAlias = Annotated[int, Meta(ge=1, le=128)] | None


class Answer(Struct, frozen=True):
    """A response; the content type is always JSON."""

    status: int
    body: bytes


class _ResponseFormat(Struct, frozen=True):
    type: str = "text"


class _ChatBody(Struct, frozen=True):
    model: Model
    messages: Annotated[list[Raw], Meta(min_length=1)]
    n: Choices = None
    stream: bool | None = None
    response_format: _ResponseFormat | None = None


class _CompletionBody(Struct, frozen=True):
    model: Model
    prompt: Inputs
    n: Choices = None
    stream: bool | None = None


class _ResponseBody(Struct, frozen=True):
    model: Model
    input: Text | Annotated[list[Raw], Meta(min_length=1)]
    instructions: str | None = None
    stream: bool | None = None


class _EmbeddingBody(Struct, frozen=True):
    model: Model
    input: Inputs
    dimensions: Annotated[int, Meta(ge=1, le=4_096)] | None = None
    encoding_format: Literal["float", "base64"] | None = None


class _ModerationBody(Struct, frozen=True):
    input: str | Annotated[list[str | dict[str, Raw]], Meta(min_length=1)]
    model: Model = "omni-moderation-latest"


class _ImageBody(Struct, frozen=True):
    prompt: Text
    model: Model = "gpt-image-1"
    n: Annotated[int, Meta(ge=1, le=10)] | None = None
    response_format: Literal["url", "b64_json"] | None = None
    stream: bool | None = None


class _EditBody(_ImageBody, frozen=True):
    image: Raw | msgspec.UnsetType = msgspec.UNSET
    images: Raw | msgspec.UnsetType = msgspec.UNSET


class _VideoBody(Struct, frozen=True):
    prompt: Text
    model: Model = "sora-2"
    seconds: Literal["4", "8", "12"] = "4"
    size: str = "720x1280"


class _BadBodyError(Exception):
    """Becomes a 400 with this text."""


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
    except _BadBodyError as bad:
        return error(400, str(bad))


def models() -> bytes:
    model = {"id": FINGERPRINT, "object": "model", "created": _CREATED, "owned_by": "nightmill"}
    return msgspec.json.encode({"object": "list", "data": [model]})


def error(status: int, message: str, *, code: str | None = None) -> Answer:
    kind = "server_error" if status >= 500 else "invalid_request_error"
    content = {"message": message, "type": kind, "param": None, "code": code}
    return Answer(status, msgspec.json.encode({"error": content}))


def _refuse_stream(stream: bool | None) -> None:
    if stream:
        raise _BadBodyError("The emulator does not stream; leave 'stream' out.")


def _hash(body: bytes) -> bytes:
    return blake2b(body, digest_size=16).digest()


def _text(seed: bytes) -> str:
    words = " ".join(_WORDS[byte % len(_WORDS)] for byte in seed[:4])
    return f"This answer is emulated, no model was asked: {words}."


def _count_tokens(content: bytes | str) -> int:
    return max(1, len(content) // 4)


def _usage(prompt_tokens: int, completion_tokens: int) -> dict[str, Any]:
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": 0,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


_decode_chat = msgspec.json.Decoder(_ChatBody).decode


def _chat(body: bytes) -> dict[str, Any]:
    request = _decode_chat(body)
    _refuse_stream(request.stream)
    seed = _hash(body)
    text = _text(seed)
    if request.response_format is not None and request.response_format.type != "text":
        text = msgspec.json.encode({"emulated": True, "answer": text}).decode()
    count = request.n or 1
    return {
        "id": f"chatcmpl-{seed.hex()}",
        "object": "chat.completion",
        "created": _CREATED,
        "model": request.model,
        "choices": [
            {
                "index": index,
                "message": {"role": "assistant", "content": text, "refusal": None, "annotations": []},
                "logprobs": None,
                "finish_reason": "stop",
            }
            for index in range(count)
        ],
        "usage": _usage(_count_tokens(body), count * _count_tokens(text)),
        "service_tier": "default",
        "system_fingerprint": FINGERPRINT,
    }


_decode_completion = msgspec.json.Decoder(_CompletionBody).decode


def _completion(body: bytes) -> dict[str, Any]:
    request = _decode_completion(body)
    _refuse_stream(request.stream)
    seed = _hash(body)
    text = _text(seed)
    count = len(_inputs(request.prompt)) * (request.n or 1)
    return {
        "id": f"cmpl-{seed.hex()}",
        "object": "text_completion",
        "created": _CREATED,
        "model": request.model,
        "choices": [
            {"index": index, "text": text, "logprobs": None, "finish_reason": "stop"}
            for index in range(count)
        ],
        "usage": _usage(_count_tokens(body), count * _count_tokens(text)),
        "system_fingerprint": FINGERPRINT,
    }


_decode_response = msgspec.json.Decoder(_ResponseBody).decode


def _response(body: bytes) -> dict[str, Any]:
    request = _decode_response(body)
    _refuse_stream(request.stream)
    seed = _hash(body)
    text = _text(seed)
    input_tokens, output_tokens = _count_tokens(body), _count_tokens(text)
    return {
        "id": f"resp_{seed.hex()}",
        "object": "response",
        "created_at": _CREATED,
        "status": "completed",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": request.instructions,
        "max_output_tokens": None,
        "model": request.model,
        "output": [
            {
                "id": f"msg_{seed.hex()}",
                "type": "message",
                "status": "completed",
                "role": "assistant",
                "content": [{"type": "output_text", "text": text, "annotations": [], "logprobs": []}],
            }
        ],
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "reasoning": {"effort": None, "summary": None},
        "service_tier": "default",
        "store": False,
        "temperature": 1.0,
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "truncation": "disabled",
        "usage": {
            "input_tokens": input_tokens,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": output_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": input_tokens + output_tokens,
        },
        "user": None,
        "metadata": {"system_fingerprint": FINGERPRINT},
    }


def _inputs(given: Inputs) -> list[str | list[int]]:
    """A text, a list of texts, a list of tokens, or a list of such lists, always as a list."""
    if isinstance(given, str):
        return [given]
    tokens = [token for token in given if isinstance(token, int)]
    if len(tokens) == len(given):
        return [tokens]
    inputs = [entry for entry in given if not isinstance(entry, int)]
    if tokens or len({type(entry) for entry in inputs}) > 1 or "" in inputs:
        raise _BadBodyError("Inputs must be all texts, or all tokens, and none of them empty.")
    return inputs


def _vector(given: str | list[int], dimensions: int) -> "array[float]":
    seed = given.encode("utf-8", "surrogatepass") if isinstance(given, str) else repr(given).encode()
    numbers = struct.unpack(f"<{dimensions}h", shake_256(seed).digest(2 * dimensions))
    length = sqrt(sum(number * number for number in numbers)) or 1.0
    return array("f", [number / length for number in numbers])


_decode_embedding = msgspec.json.Decoder(_EmbeddingBody).decode


def _embeddings(body: bytes) -> dict[str, Any]:
    request = _decode_embedding(body)
    vectors = [_vector(given, request.dimensions or _DIMENSIONS) for given in _inputs(request.input)]
    is_base64 = request.encoding_format == "base64"
    tokens = _count_tokens(body)
    return {
        "object": "list",
        "data": [
            {
                "object": "embedding",
                "index": index,
                "embedding": _base64(vector.tobytes()) if is_base64 else vector.tolist(),
            }
            for index, vector in enumerate(vectors)
        ],
        "model": request.model,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


_decode_moderation = msgspec.json.Decoder(_ModerationBody).decode


def _moderation(body: bytes) -> dict[str, Any]:
    request = _decode_moderation(body)
    texts = [request.input] if isinstance(request.input, str) else request.input
    # A list of objects is a single input of several kinds; a list of texts is several inputs.
    count = len(texts) if all(isinstance(text, str) for text in texts) else 1
    seed = _hash(body)
    result = {
        "flagged": False,
        "categories": dict.fromkeys(_CATEGORIES, False),
        "category_scores": {name: byte / 1e6 for name, byte in zip(_CATEGORIES, seed, strict=False)},
        "category_applied_input_types": {name: ["text"] for name in _CATEGORIES},
    }
    return {"id": f"modr-{seed.hex()}", "model": request.model, "results": [result] * count}


_decode_image = msgspec.json.Decoder(_ImageBody).decode
_decode_edit = msgspec.json.Decoder(_EditBody).decode


def _image(body: bytes) -> dict[str, Any]:
    return _images(_decode_image(body), body)


def _edit(body: bytes) -> dict[str, Any]:
    request = _decode_edit(body)
    if request.image is msgspec.UNSET and request.images is msgspec.UNSET:
        raise _BadBodyError("Missing required parameter: 'image'.")
    return _images(request, body)


def _images(request: _ImageBody, body: bytes) -> dict[str, Any]:
    _refuse_stream(request.stream)
    seed = _hash(body)
    is_url = (
        request.response_format or ("url" if request.model.startswith("dall-e") else "b64_json")
    ) == "url"
    image = (
        {"url": f"https://emulated.invalid/{seed.hex()}.png"} if is_url else {"b64_json": _base64(_png(seed))}
    )
    input_tokens, count = _count_tokens(body), request.n or 1
    return {
        "created": _CREATED,
        "data": [image] * count,
        "usage": {
            "input_tokens": input_tokens,
            "input_tokens_details": {"text_tokens": input_tokens, "image_tokens": 0},
            "output_tokens": count,
            "total_tokens": input_tokens + count,
        },
    }


def _png(seed: bytes) -> bytes:
    """A PNG of a single pixel, with a text chunk that names the emulator."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"tEXt", b"Software\0" + FINGERPRINT.encode())
        + chunk(b"IDAT", zlib.compress(b"\0" + seed[:3]))
        + chunk(b"IEND", b"")
    )


_decode_video = msgspec.json.Decoder(_VideoBody).decode


def _video(body: bytes) -> dict[str, Any]:
    request = _decode_video(body)
    return {
        "id": f"video_{_hash(body).hex()}",
        "object": "video",
        "created_at": _CREATED,
        "completed_at": None,
        "expires_at": None,
        "status": "queued",
        "model": request.model,
        "progress": 0,
        "prompt": request.prompt,
        "seconds": request.seconds,
        "size": request.size,
        "error": None,
        "remixed_from_video_id": None,
    }


_ANSWERS: Mapping[str, Callable[[bytes], dict[str, Any]]] = {
    "/v1/responses": _response,
    "/v1/chat/completions": _chat,
    "/v1/embeddings": _embeddings,
    "/v1/completions": _completion,
    "/v1/moderations": _moderation,
    "/v1/images/generations": _image,
    "/v1/images/edits": _edit,
    "/v1/videos": _video,
}
