"""Checks shared by files and uploads: purpose, size, first bytes, expiry (docs/openai-behaviour.md 1.2, 4.1).

Errors have OpenAI's wording. Of the input file of a batch only the first bytes are checked, so a response
never waits for a second read of the whole file. Intake validates the lines later.
"""

import codecs
import json
import re
from collections.abc import Mapping

import msgspec
from pydantic import ValidationError

from nightmill.api.context import ApiContext
from nightmill.api.envelope import echo
from nightmill.api.file_wire import FileExpirationAfter
from nightmill.api.violations import to_request_error
from nightmill.api.wire import WireModel
from nightmill.core.file import UPLOAD_PURPOSES, Purpose
from nightmill.errors import RequestError
from nightmill.ids import ProjectId
from nightmill.settings import LimitSettings
from nightmill.validation.file_format import binary_format, other_encoding

NOT_JSONL = "Invalid file format for Batch API. Must be .jsonl"
NOT_UTF8 = "Invalid file for Batch API. Must be utf-8 encoded"
_BLANK = b" \t\r\n"
_EXPIRES_AFTER = "expires_after"
_BRACKETS = {"expires_after[anchor]": "anchor", "expires_after[seconds]": "seconds"}
_INTEGER = re.compile(r"[+-]?[0-9]{1,40}")


def purpose_of(text: str) -> Purpose:
    if text not in UPLOAD_PURPOSES:
        known = ", ".join(f"'{purpose}'" for purpose in UPLOAD_PURPOSES)
        raise RequestError(f"'{echo(text)}' is not one of [{known}] - 'purpose'", param="purpose")
    return Purpose(text)


def limit_bytes(texts: Mapping[str, str], limits: LimitSettings) -> int:
    """The size limit for the purpose, or the largest limit while the purpose is unknown.

    In a form, the purpose may follow the file.
    """
    match texts.get("purpose"):
        case None:
            return max(limits.file_bytes, limits.input_file_bytes)
        case Purpose.BATCH:
            return limits.input_file_bytes
        case _:
            return limits.file_bytes


def expires_at(
    purpose: Purpose, *, created_at: int, expires_after_s: int | None, limits: LimitSettings
) -> int | None:
    if expires_after_s is not None:
        return created_at + expires_after_s
    return created_at + limits.input_ttl_s if purpose is Purpose.BATCH else None


async def limits_of(context: ApiContext, project: ProjectId) -> LimitSettings:
    """The limits of the settings, with the rules of the project applied."""
    limits = context.settings.limits
    rules = await context.store.projects.rules(project)
    if rules.input_ttl_s is None:
        return limits
    return limits.model_copy(update={"input_ttl_s": rules.input_ttl_s})


# --- the first bytes of a batch's input ----------------------------------------------------------------


def check_batch_input(beginning: bytes, *, size_bytes: int) -> None:
    """Raises RequestError when these first bytes cannot begin the input file of a batch.

    Args:
        beginning: the first bytes of the file, or the whole file if it is shorter.
        size_bytes: the size of the whole file.
    """
    if name := binary_format(beginning):
        raise RequestError(f"{NOT_JSONL}. The file is {name}.")
    if name := other_encoding(beginning):
        raise RequestError(f"{NOT_UTF8}. The file is {name}.")
    is_whole = len(beginning) == size_bytes
    try:
        # The end of a partial beginning may lie inside a character.
        codecs.getincrementaldecoder("utf-8")().decode(beginning, final=is_whole)
    except UnicodeDecodeError:
        raise RequestError(NOT_UTF8) from None
    lines = beginning.removeprefix(codecs.BOM_UTF8).lstrip(_BLANK)
    line, line_break, _ = lines.partition(b"\n")
    if line_break or is_whole:
        is_json = _is_json(line)
    elif line:
        is_json = line.startswith(b"{")  # the line is longer than `beginning`
    else:
        is_json = True  # only blank lines so far; intake checks the rest
    if not is_json:
        raise RequestError(NOT_JSONL)


def _is_json(line: bytes) -> bool:
    try:
        # msgspec rejects lone surrogates, which are valid JSON; intake decides on them. Numbers stay text.
        # Decoded here, because `json` would also accept bytes in UTF-16.
        json.loads(line.decode(), parse_int=str, parse_float=str, parse_constant=_not_json)
    except RecursionError:
        return True  # valid JSON, nested deeply; intake reports the line
    except ValueError:
        return False
    return True


def _not_json(constant: str) -> None:
    raise ValueError(constant)


# --- expires_after -----------------------------------------------------------------------------------


class _Expiry(WireModel):
    expires_after: FileExpirationAfter


def expires_after_s(texts: Mapping[str, str]) -> int | None:
    """The expiry in seconds from the text fields of a form: two fields in brackets, or one field with JSON.

    Any other spelling is an error: to ignore it would keep the file longer than the client asked for.
    """
    given = {name for name in texts if name.startswith(_EXPIRES_AFTER)}
    if not given:
        return None
    if unknown := sorted(given - _BRACKETS.keys() - {_EXPIRES_AFTER}):
        raise RequestError(
            f"Unknown parameter: '{echo(unknown[0])}'.", param=echo(unknown[0]), code="unknown_parameter"
        )
    if _EXPIRES_AFTER not in given:
        policy: object = {_BRACKETS[name]: _number_or_text(texts[name]) for name in given}
    elif len(given) == 1:
        policy = _from_json(texts[_EXPIRES_AFTER])
    else:
        message = "'expires_after' is given twice, as JSON and in brackets. Send only one of them."
        raise RequestError(message, param=_EXPIRES_AFTER, code="invalid_value")
    try:
        return _Expiry.model_validate({_EXPIRES_AFTER: policy}).expires_after.seconds
    except ValidationError as error:
        raise to_request_error(error.errors(include_url=False)) from None


def _number_or_text(text: str) -> int | str:
    return int(text) if _INTEGER.fullmatch(text) else text


def _from_json(text: str) -> object:
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        message = "'expires_after' is not valid JSON."
        raise RequestError(message, param=_EXPIRES_AFTER, code="invalid_value") from None
