"""Answers without a text of a model: embeddings, moderations, images and videos.

An embedding is derived from a hash of its input, so that equal texts have equal vectors. An image is a PNG of
a single pixel that names the emulator.
"""

import base64
import struct
import zlib
from array import array
from hashlib import shake_256
from math import sqrt
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Raw, Struct

from nightmill.emulator.content import (
    CREATED,
    FINGERPRINT,
    BadBodyError,
    Inputs,
    Model,
    Text,
    inputs_of,
    refuse_stream,
    seed_of,
    token_count,
)

_DIMENSIONS = 256
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


def _vector(given: str | list[int], dimensions: int) -> "array[float]":
    seed = given.encode("utf-8", "surrogatepass") if isinstance(given, str) else repr(given).encode()
    numbers = struct.unpack(f"<{dimensions}h", shake_256(seed).digest(2 * dimensions))
    length = sqrt(sum(number * number for number in numbers)) or 1.0
    return array("f", [number / length for number in numbers])


_decode_embedding = msgspec.json.Decoder(_EmbeddingBody).decode


def embeddings(body: bytes) -> dict[str, Any]:
    request = _decode_embedding(body)
    vectors = [_vector(given, request.dimensions or _DIMENSIONS) for given in inputs_of(request.input)]
    is_base64 = request.encoding_format == "base64"
    tokens = token_count(body)
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


def moderation(body: bytes) -> dict[str, Any]:
    request = _decode_moderation(body)
    texts = [request.input] if isinstance(request.input, str) else request.input
    # A list of objects is a single input of several kinds; a list of texts is several inputs.
    count = len(texts) if all(isinstance(text, str) for text in texts) else 1
    seed = seed_of(body)
    result = {
        "flagged": False,
        "categories": dict.fromkeys(_CATEGORIES, False),
        "category_scores": {name: byte / 1e6 for name, byte in zip(_CATEGORIES, seed, strict=False)},
        "category_applied_input_types": {name: ["text"] for name in _CATEGORIES},
    }
    return {"id": f"modr-{seed.hex()}", "model": request.model, "results": [result] * count}


_decode_image = msgspec.json.Decoder(_ImageBody).decode
_decode_edit = msgspec.json.Decoder(_EditBody).decode


def image(body: bytes) -> dict[str, Any]:
    return _images(_decode_image(body), body)


def edit(body: bytes) -> dict[str, Any]:
    request = _decode_edit(body)
    if request.image is msgspec.UNSET and request.images is msgspec.UNSET:
        raise BadBodyError("Missing required parameter: 'image'.")
    return _images(request, body)


def _images(request: _ImageBody, body: bytes) -> dict[str, Any]:
    refuse_stream(request.stream)
    seed = seed_of(body)
    is_url = (
        request.response_format or ("url" if request.model.startswith("dall-e") else "b64_json")
    ) == "url"
    image = (
        {"url": f"https://emulated.invalid/{seed.hex()}.png"} if is_url else {"b64_json": _base64(_png(seed))}
    )
    input_tokens, count = token_count(body), request.n or 1
    return {
        "created": CREATED,
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


def video(body: bytes) -> dict[str, Any]:
    request = _decode_video(body)
    return {
        "id": f"video_{seed_of(body).hex()}",
        "object": "video",
        "created_at": CREATED,
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
