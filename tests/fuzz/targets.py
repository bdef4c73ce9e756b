"""Properties that hold for any bytes. Each target takes bytes, and raises when a property is violated.

Hypothesis calls the targets in the tests (`test_readers.py`), atheris for any length of time (`make fuzz`).
"""

import asyncio
import io
import json
import os
from collections.abc import Callable
from typing import Any

from fastapi import Request

from nightmill.api.multipart import FormPlan, receive_form
from nightmill.core.output_line import answered, unanswered
from nightmill.core.request_line import RequestLine, slice_line
from nightmill.core.segment import unpack_lines
from nightmill.errors import RequestError
from nightmill.parts.record import pack_record, read_records
from nightmill.validation import InputRules, InputValidator

BOUNDARY = b"bound"
_CHAT = "/v1/chat/completions"
_TEXT_LIMIT_BYTES = 10_000
BOM = b"\xef\xbb\xbf"


def input_file(data: bytes) -> None:
    """Any chunk size gives the same index and findings; every indexed line can be sliced and parsed."""
    rules = InputRules(endpoint=_CHAT, lines_per_file=50, line_bytes=2_000, nesting=20, models_per_file=3)
    whole = _inspected(data, rules, chunk_bytes=len(data) or 1)
    for chunk_bytes in (1, 7, 64):
        assert _inspected(data, rules, chunk_bytes=chunk_bytes) == whole
    index, result = whole
    lines = list(unpack_lines(index))
    assert [line.ordinal for line in lines] == list(range(len(lines)))
    if result.errors:
        return
    assert result.total == len(lines) > 0
    starts = [line.offset for line in lines]
    assert starts == sorted(set(starts))
    custom_ids: set[str] = set()
    for line in lines:
        text = data[line.offset : line.offset + line.length_bytes]
        assert b"\n" not in text
        assert data[line.offset + line.length_bytes :][:1] in (b"", b"\n")
        row = json.loads(text.removeprefix(BOM))
        request = slice_line(text)
        assert json.loads(request.custom_id_json) == row["custom_id"]
        assert row["url"] == _CHAT
        assert json.loads(request.body) == row["body"]
        assert request.body in text
        assert row["custom_id"] not in custom_ids
        custom_ids.add(row["custom_id"])
        _is_row(unanswered(b"batch_req_1", request, code="batch_expired", message="late").text)
    between = b"".join(
        data[line.offset + line.length_bytes : after]
        for line, after in zip(lines, [*starts[1:], len(data)], strict=True)
    )
    assert not (data[: starts[0]].removeprefix(BOM) + between).strip(), "no line was left out"


def _inspected(data: bytes, rules: InputRules, *, chunk_bytes: int) -> tuple[bytes, Any]:
    chunks = [data[start : start + chunk_bytes] for start in range(0, len(data), chunk_bytes)]
    validator = InputValidator(rules)
    index = b""
    for chunk in chunks:
        if validator.is_over:
            break
        index += validator.take(chunk)
    index += validator.finish()
    duplicate_pass = validator.duplicate_pass()
    if duplicate_pass is not None:
        for chunk in chunks:
            duplicate_pass.take(chunk)
        duplicate_pass.finish()
    result = validator.result(duplicate_pass)
    return (b"" if result.errors else index), result


def answer(data: bytes) -> None:
    """For any upstream answer the row is one line of ASCII JSON. It is a success only if a 2xx has a result,
    and contains the answer unless that is no JSON, or a 2xx with neither a result nor an error.
    """
    status = 200 + data[0] if data else 200
    line = RequestLine(b'"a\\u00e9"', b"{}")
    request_id = b'"%b"' % data[:8].hex().encode()
    row = answered(b"batch_req_1", line, endpoint=_CHAT, status=status, request_id=request_id, body=data[1:])
    parsed = _is_row(row.text)
    assert parsed["custom_id"] == "a\u00e9"
    assert row.is_error == (row.error is not None)
    try:
        # `json.loads` would also decode UTF-16 from bytes, and accepts NaN unless `parse_constant`
        # refuses it.
        said = json.loads(data[1:].removeprefix(BOM).decode(), parse_constant=_refused)
    except RecursionError:
        return
    except ValueError:
        assert row.error is not None
        assert not row.error.is_json
        return
    assert row.error is None or row.error.is_json
    members = said if isinstance(said, dict) else {}
    is_2xx, has_result = status < 300, members.get("choices") is not None
    assert row.is_error == (not is_2xx or not has_result)
    has_error = members.get("error") is not None or members.get("object") == "error"
    if not is_2xx or has_result or has_error:
        assert repr(parsed["response"]["body"]) == repr(said)
    else:
        assert parsed["response"]["body"]["error"]["code"] == "invalid_upstream_answer"


def _refused(constant: str) -> None:
    raise ValueError(constant)


def _is_row(text: bytes) -> dict[str, Any]:
    assert text.isascii()
    assert text.endswith(b"\n")
    assert text.count(b"\n") == 1
    assert b"\r" not in text
    row = json.loads(text)
    assert list(row) == ["id", "custom_id", "response", "error"]
    return row


def part(data: bytes) -> None:
    """The records read back from a part are exactly those at its beginning."""
    again = b""
    end = 0
    for end, record in read_records(io.BytesIO(data), len(data)):  # noqa: B007 - the last is wanted
        again += b"".join(pack_record(record.ordinal, record.output))
    assert end <= len(data)
    assert len(again) == end


def form(data: bytes) -> None:
    """A form is read or refused; a file that was read stands between two boundaries of the body, and no blob
    is left.
    """
    cut = data[0] if data else 0
    writers: list[_Memory] = []

    async def open_writer() -> _Memory:
        writers.append(_Memory())
        return writers[-1]

    plan = FormPlan(
        file_field="file",
        open_writer=open_writer,
        limit_bytes=lambda _: _TEXT_LIMIT_BYTES,
        idle_s=5.0,
        hash_content=True,
    )
    asyncio.run(_read(data, cut, plan, writers))
    assert len(writers) <= 1
    assert all(writer.ended for writer in writers)


async def _read(data: bytes, cut: int, plan: FormPlan, writers: "list[_Memory]") -> None:
    chunks = iter([chunk for chunk in (data[:cut], data[cut:]) if chunk])

    async def receive() -> dict[str, object]:
        chunk = next(chunks, None)
        if chunk is None:
            return {"type": "http.request", "body": b"", "more_body": False}
        return {"type": "http.request", "body": chunk, "more_body": True}

    content_type = b"multipart/form-data; boundary=" + BOUNDARY
    scope = {"type": "http", "method": "POST", "headers": [(b"content-type", content_type)]}
    try:
        async with receive_form(Request(scope, receive), plan) as read:
            for name, text in read.texts.items():
                assert text.encode() in data
                assert len(name) < len(data)
            if not read.has_file:
                return
            await read.commit()
            content = bytes(writers[0].content)
            assert read.size_bytes == len(content)
            assert read.beginning == content
            assert b"\n" + content + b"\r\n--" + BOUNDARY in data
            assert read.filename is not None
            assert read.filename.isprintable() or not {*read.filename} & {*map(chr, range(32))}
    except RequestError as error:
        assert error.status < 500


class _Memory:
    """A blob writer that keeps its bytes."""

    def __init__(self) -> None:
        self.content = bytearray()
        self.size_bytes = 0
        self.ended = False

    async def write(self, chunk: bytes | memoryview) -> None:
        self.content += chunk
        self.size_bytes += len(chunk)

    async def commit(self) -> None:
        assert not self.ended
        self.ended = True

    async def abort(self) -> None:
        self.ended = True


TARGETS: dict[str, Callable[[bytes], None]] = {
    "input_file": input_file,
    "answer": answer,
    "part": part,
    "form": form,
}

LINE = (
    b'{"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", '
    b'"body": {"model": "m", "messages": [{"role": "user", "content": "Hi \\ud83d \xc3\xa4"}]}}'
)
FORM = (
    b'--bound\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--bound\r\n'
    b'Content-Disposition: form-data; name="file"; filename="in.jsonl"; filename*=utf-8\'\'%C3%A4\r\n'
    b"Content-Type: application/octet-stream\r\n\r\n{}\n\r\n--bound--\r\n"
)
ANSWER = b'\x00{"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 1.0, "total_tokens": null}}'


def seeds() -> dict[str, list[bytes]]:
    """A few good inputs of each target, for a fuzzer to begin with."""
    line = RequestLine(b'"a"', b"{}")
    rows = [
        answered(b"batch_req_1", line, endpoint=_CHAT, status=status, request_id=b'"req"', body=ANSWER[1:])
        for status in (200, 500)
    ]
    records = b"".join(b"".join(pack_record(number, row)) for number, row in enumerate(rows))
    return {
        "input_file": [LINE, LINE + b"\r\n\n" + LINE.replace(b'"a"', b'"b"') + b"\n", BOM + LINE],
        "answer": [
            *(ANSWER, b"\xc8" + ANSWER[1:], b"\x00<html>", b"\x00" + BOM + b"{}"),
            *(b'\x00{"error": {"code": 429, "type": "busy"}}', b'\x00{"choices": [], "error": null}'),
        ],
        "part": [records, records[:-3]],
        "form": [FORM, FORM.replace(b"\r\n--bound--", b"\r\n--bound\r\nx")],
    }


def words() -> dict[str, list[bytes]]:
    """Building blocks of the inputs of each target."""
    json_words = [
        b"{",
        b"}",
        b"[",
        b"]",
        b'"',
        b":",
        b",",
        b"\\",
        b"\\u",
        b"\\ud83d",
        b"\\ude00",
        b"\n",
        b"\r\n",
    ]
    json_words += [
        b" ",
        b"null",
        b"true",
        b"1e999",
        b"-0",
        b"NaN",
        b"\x00",
        b"\xff",
        b"\xc3\xa4",
        b"\xe2\x80\xa8",
    ]
    return {
        "input_file": [
            *json_words,
            *(b'"custom_id"', b'"method"', b'"POST"', b'"url"', b'"/v1/chat/completions"', b'"body"'),
            *(b'"model"', b'"messages"', b'"stream"', LINE, LINE[:-1], LINE.replace(b'"a"', b'"b"'), BOM),
        ],
        "answer": [
            *(*json_words, b'"usage"', b'"total_tokens"', b"4294967296", ANSWER, BOM, b"429"),
            *(b'"choices"', b'"error"', b'"object"', b'"detail"', b'"code"', b'"type"', b'"status"'),
        ],
        "part": [*seeds()["part"], b"NMP1", os.urandom(4), b"\x00" * 8],
        "form": [
            *(
                b"--bound",
                b"--bound--",
                b"\r\n",
                b"\n",
                b"\r",
                b"--",
                b": ",
                b"; ",
                b'"',
                b"=",
                b"\x00",
                b"\xff",
            ),
            *(b"Content-Disposition: form-data", b'name="file"', b'name="purpose"', b'filename="x"', b"\\"),
            *(b"filename*=utf-8''%ff", b"Content-Type: text/plain", b"Content-Length: 3", FORM, FORM[:-12]),
        ],
    }
