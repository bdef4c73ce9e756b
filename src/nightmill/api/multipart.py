"""Forms with one file, read from the request stream.

The file of a multipart/form-data body goes to a blob writer, the other fields become short texts. The file is
written once, and memory use is constant. Every limit is enforced while reading. Unless `commit` was called,
nothing stays in storage. Invalid bytes always lead to a `RequestError`. `files` and `uploads` interpret the
fields.
"""

import hashlib
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

from fastapi import Request
from multipart import (  # pyright: ignore[reportMissingTypeStubs]  # annotated, but without a py.typed
    MultipartError,
    MultipartSegment,
    PushMultipartParser,
)

from nightmill.api.body import announced_bytes, media_type_of, unsupported_media_type
from nightmill.api.envelope import echo
from nightmill.api.upload_limiter import chunks_of
from nightmill.blobs import BlobWriter
from nightmill.errors import RequestError

BEGINNING_BYTES = 64 << 10
FILENAME_LENGTH = 1_024
UNNAMED = "upload"
_OVERHEAD_BYTES = 1 << 20
_TEXT_BYTES = 64 << 10
_MAX_PARTS = 64
_HEADER_BYTES = 8 << 10
_HEADERS = 16
_BOUNDARY_LENGTH = 256
_PLAIN_ENCODINGS = frozenset({"", "7bit", "8bit", "binary"})


def too_large() -> RequestError:
    """OpenAI's error for a large file: a 400 (docs/openai-behaviour.md 4.1), not a 413."""
    return RequestError("File is too large.")


@dataclass(frozen=True, slots=True, kw_only=True)
class FormPlan:
    """The form that a route expects.

    Args:
        file_field: the name of the file part; every other part is a short text.
        open_writer: called once, when the file begins.
        limit_bytes: the size limit of the file, given the texts before it.
        idle_s: see `upload_limiter.chunks_of`.
        hash_content: whether to compute the SHA-256 of the content, a pass over the bytes.
    """

    file_field: str
    open_writer: Callable[[], Awaitable[BlobWriter]]
    limit_bytes: Callable[[Mapping[str, str]], int]
    idle_s: float
    hash_content: bool = False


class Form:
    """A form. `commit` makes the file visible; otherwise the exit of `receive_form` deletes the file."""

    def __init__(self, plan: FormPlan) -> None:
        self.texts: dict[str, str] = {}
        self.filename: str | None = None
        self.size_bytes = 0
        self.beginning = b""
        self._plan = plan
        self._writer: BlobWriter | None = None
        self._limit_bytes = 0
        self._digest = hashlib.sha256() if plan.hash_content else None
        self._part: bytearray | BlobWriter = bytearray()
        self._part_name = ""

    @property
    def content_digest(self) -> str | None:
        return self._digest.hexdigest() if self._digest else None

    @property
    def has_file(self) -> bool:
        return self.filename is not None

    async def commit(self) -> None:
        writer, self._writer = self._writer, None
        if writer is None:
            raise ValueError("this form has no file, or the file is already committed")
        await writer.commit()

    async def discard(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            await writer.abort()

    async def read(self, request: Request) -> None:
        plan = self._plan
        parser = PushMultipartParser(
            _boundary(request),
            max_header_size=_HEADER_BYTES,
            max_header_count=_HEADERS,
            max_segment_count=_MAX_PARTS,
            header_charset="latin-1",  # accepts every byte; `_utf8` decodes names
        )
        if announced_bytes(request) > plan.limit_bytes({}) + _OVERHEAD_BYTES:
            raise too_large()
        received_bytes = 0
        try:
            async for chunk in chunks_of(request, idle_s=plan.idle_s):
                received_bytes += len(chunk)
                for event in parser.parse(chunk):
                    match event:
                        case None:
                            self._end_part()
                        case MultipartSegment():
                            await self._begin_part(event)
                        case _:
                            await self._take(event)
                if received_bytes - self.size_bytes > _OVERHEAD_BYTES:
                    raise _malformed("there is too much beside the file")
            parser.close()
        except MultipartError as error:
            raise _malformed(str(error)) from None

    async def _begin_part(self, part: MultipartSegment) -> None:
        plan = self._plan
        self._part_name = _utf8(part.name or "")
        headers = dict(part.headerlist)
        if headers.get("Content-Transfer-Encoding", "").strip().lower() not in _PLAIN_ENCODINGS:
            param = echo(self._part_name)
            message = f"'{param}' must be sent as it is, without a Content-Transfer-Encoding."
            raise RequestError(message, param=param)
        if self._part_name != plan.file_field:
            self._part = bytearray()
            return
        if self.has_file:
            raise RequestError(f"Only one '{plan.file_field}' can be sent at a time.", param=plan.file_field)
        name = _filename(headers["Content-Disposition"])
        self.filename = checked_filename(name, param=plan.file_field)
        self._limit_bytes = plan.limit_bytes(self.texts)
        self._part = self._writer = await plan.open_writer()

    async def _take(self, chunk: bytes) -> None:
        if isinstance(self._part, bytearray):
            self._part += chunk
            if len(self._part) > _TEXT_BYTES:
                raise RequestError(f"'{echo(self._part_name)}' is too long.", param=echo(self._part_name))
            return
        self.size_bytes += len(chunk)
        if self.size_bytes > self._limit_bytes:
            raise too_large()
        if len(self.beginning) < BEGINNING_BYTES:
            self.beginning += chunk[: BEGINNING_BYTES - len(self.beginning)]
        if self._digest is not None:
            self._digest.update(chunk)
        await self._part.write(chunk)

    def _end_part(self) -> None:
        if not isinstance(self._part, bytearray):
            return
        param = echo(self._part_name)
        if self._part_name in self.texts:
            raise RequestError(f"Duplicate parameter: '{param}'.", param=param, code="duplicate_parameter")
        try:
            self.texts[self._part_name] = self._part.decode("utf-8")
        except UnicodeDecodeError:
            raise RequestError(f"'{param}' is not UTF-8.", param=param, code="invalid_value") from None


@asynccontextmanager
async def receive_form(request: Request, plan: FormPlan) -> AsyncGenerator[Form]:
    """The whole form. The file is written and not yet visible.

    Raises:
        RequestError: the body is invalid, too slow or incomplete.
        StorageFullError: the storage has no room for the file.
    """
    form = Form(plan)
    try:
        await form.read(request)
        yield form
    finally:
        await form.discard()


# --- headers -----------------------------------------------------------------------------------------

_BOUNDARY = re.compile(r';\s*boundary\s*=\s*(?:"((?:\\.|[^"\\])*)"|([^;\s]+))', re.IGNORECASE)
_PARAMETER = re.compile(r';\s*([^\s=;"]+)\s*=\s*("(?:\\.|[^"\\])*"(?=\s*(?:;|\Z))|"[^"]*"|[^;]*)')
_ESCAPED = re.compile(r'\\(["\\])')
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_PERCENT = {"%22": '"', "%0D": "\r", "%0A": "\n"}


def checked_filename(name: str, *, param: str) -> str:
    """The name without control characters. A name is never used as a path, so the rest stays unchanged."""
    name = without_controls(name)
    if len(name) > FILENAME_LENGTH:
        message = (
            f"Invalid '{param}': filename too long. Expected a filename with maximum length "
            f"{FILENAME_LENGTH}, but got a filename with length {len(name)} instead."
        )
        raise RequestError(message, param=param, code="string_above_max_length")
    return name or UNNAMED


def without_controls(text: str) -> str:
    return _CONTROLS.sub("", text)


def _boundary(request: Request) -> bytes:
    if media_type_of(request) != "multipart/form-data":
        raise unsupported_media_type(request, accepted="multipart/form-data")
    match = _BOUNDARY.search(request.headers["content-type"])
    quoted, plain = match.groups() if match else (None, None)
    boundary = _ESCAPED.sub(r"\1", quoted) if quoted is not None else plain
    if not boundary:
        raise _malformed("the Content-Type header has no boundary")
    if len(boundary) > _BOUNDARY_LENGTH:
        raise _malformed("its boundary is too long")
    return boundary.encode("latin-1")


def _filename(disposition: str) -> str:
    """The filename in a Content-Disposition, in every spelling that clients use; '' without a filename."""
    parameters = {name.lower(): value.strip() for name, value in _PARAMETER.findall(disposition)}
    if (extended := _extended(parameters.get("filename*", "").strip('"'))) is not None:
        return extended
    name = parameters.get("filename", "")
    if len(name) < 2 or not name.startswith('"'):
        return _utf8(name)
    name = name[1:-1]
    if _ESCAPED.search(name):
        return _utf8(_ESCAPED.sub(r"\1", name))
    for escape, letter in _PERCENT.items():
        name = name.replace(escape, letter)
    return _utf8(name)


def _extended(value: str) -> str | None:
    """Decodes RFC 5987: charset'language'percent-encoded."""
    charset, mark, rest = value.partition("'")
    _, second_mark, encoded = rest.partition("'")
    if not mark or not second_mark or charset.lower() not in {"utf-8", "iso-8859-1"}:
        return None
    try:
        return unquote_to_bytes(encoded.encode("latin-1")).decode(charset)
    except UnicodeDecodeError:
        return None


def _utf8(text: str) -> str:
    """Decodes a header as UTF-8, which nearly every client sends; it was read as Latin-1."""
    try:
        return text.encode("latin-1").decode("utf-8")
    except UnicodeDecodeError:
        return text


def _malformed(reason: str) -> RequestError:
    return RequestError(f"We could not parse the multipart body of your request: {echo(reason)}.")
