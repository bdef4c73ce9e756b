"""The form reader on streams with arbitrary chunks, with real blobs."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest
from fastapi import Request
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from nightmill.api.body import SlowBodyError
from nightmill.api.multipart import FILENAME_LENGTH, Form, FormPlan, receive_form
from nightmill.api.upload_limiter import BodyCutError
from nightmill.blobs import FolderBlobs
from nightmill.errors import RequestError, StorageFullError

KEY = "files/file-x"
BOUNDARY = "bound"
Receive = Callable[[], Awaitable[dict[str, object]]]


def part(disposition: str, content: bytes, *headers: str, boundary: str = BOUNDARY) -> bytes:
    lines = [f"--{boundary}", f"Content-Disposition: form-data; {disposition}", *headers, "", ""]
    return "\r\n".join(lines).encode() + content + b"\r\n"


def end(boundary: str = BOUNDARY) -> bytes:
    return f"--{boundary}--\r\n".encode()


PURPOSE = part('name="purpose"', b"batch")


def file_part(content: bytes = b"{}\n", filename: str = 'filename="in.jsonl"') -> bytes:
    return part(f'name="file"; {filename}', content, "Content-Type: application/octet-stream")


def arriving(chunks: Iterable[bytes], *, then: dict[str, object] | None = None) -> Receive:
    """What a server's `receive` gives: the chunks, then the end, or `then`."""
    messages: list[dict[str, object]] = [
        {"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks
    ]
    messages.append(then or {"type": "http.request", "body": b"", "more_body": False})
    coming = iter(messages)

    async def receive() -> dict[str, object]:
        return next(coming)

    return receive


@dataclass(frozen=True, slots=True)
class FormReader:
    """Reads forms into a folder."""

    folder: Path

    @property
    def blobs(self) -> FolderBlobs:
        return FolderBlobs(self.folder, watermark_bytes=0)

    def files(self) -> list[str]:
        return [str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if path.is_file()]

    async def read(
        self,
        chunks: Sequence[bytes] = (),
        *,
        content_type: str = f"multipart/form-data; boundary={BOUNDARY}",
        headers: Sequence[tuple[bytes, bytes]] = (),
        limit_bytes: int = 1 << 20,
        idle_s: float = 5.0,
        receive: Receive | None = None,
        watermark_bytes: int = 0,
    ) -> tuple[Form, bytes]:
        blobs = FolderBlobs(self.folder, watermark_bytes=watermark_bytes)
        scope = {
            "type": "http",
            "method": "POST",
            "headers": [(b"content-type", content_type.encode("latin-1")), *headers],
        }
        plan = FormPlan(
            file_field="file",
            open_writer=lambda: blobs.open_writer(KEY),
            limit_bytes=lambda _: limit_bytes,
            idle_s=idle_s,
            hash_content=True,
        )
        async with receive_form(Request(scope, receive or arriving(chunks)), plan) as form:
            await form.commit()
        return form, await blobs.read(KEY, 0, 1 << 30)

    async def refusal(self, *chunks: bytes, **how: object) -> RequestError:
        with pytest.raises(RequestError) as caught:
            await self.read(chunks, **how)  # type: ignore[arg-type]
        assert self.files() == [], "a refused form leaves nothing"
        return caught.value


@pytest.fixture
def forms(tmp_path: Path) -> FormReader:
    return FormReader(tmp_path / "blobs")


async def test_a_form_is_read_with_its_file_in_one_piece(forms: FormReader) -> None:
    form, content = await forms.read([PURPOSE + file_part(b"{}\n") + end()])
    assert (form.texts, form.filename, form.size_bytes) == ({"purpose": "batch"}, "in.jsonl", 3)
    assert content == form.beginning == b"{}\n"


async def test_the_file_may_come_before_the_texts(forms: FormReader) -> None:
    form, content = await forms.read([file_part() + PURPOSE + end()])
    assert (form.texts, content) == ({"purpose": "batch"}, b"{}\n")


@given(
    content=st.binary(max_size=200)
    | st.lists(st.sampled_from([b"\r", b"\n", b"--", b"bound", b"\r\n--boun", b"x"])).map(b"".join),
    cuts=st.lists(st.integers(0, 600), max_size=12),
)
@example(content=b"\r\n--boun\r\n--bound", cuts=[])
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_chunks_of_the_body_do_not_change_the_file(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, cuts: list[int]
) -> None:
    if f"\r\n--{BOUNDARY}".encode() in b"\r\n" + content + b"\r\n":
        return
    forms = FormReader(tmp_path_factory.getbasetemp() / "cut")
    body = file_part(content) + PURPOSE + end()
    places = sorted({0, len(body), *(min(cut, len(body)) for cut in cuts)})
    chunks = [body[start:stop] for start, stop in pairwise(places)]
    form, written = asyncio.run(forms.read(chunks))
    assert written == content
    assert form.texts == {"purpose": "batch"}
    assert form.size_bytes == len(content)


@given(body=st.binary(max_size=300), cut=st.integers(0, 400))
@example(body=b"--bound\r\n", cut=3)
@example(body=b'--bound\r\nContent-Disposition: form-data; name="file"\r\n\r\nx\r\n--bound-', cut=3)
@example(body=b"--bound\r\n: x\r\n\r\n", cut=3)
@example(body=b"--bound\r\nContent-Disposition: form-data; filename\r\n\r\n\r\n--bound--", cut=3)
@settings(max_examples=150, deadline=None)
def test_any_body_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, body: bytes, cut: int) -> None:
    forms = FormReader(tmp_path_factory.getbasetemp() / "odd")
    for start in (b"", b"--bound\r\n", file_part()[:-2]):
        odd = start + body
        asyncio.run(_tried(forms, [odd[:cut], odd[cut:]]))


async def _tried(forms: FormReader, chunks: list[bytes]) -> None:
    try:
        await forms.read([chunk for chunk in chunks if chunk])
    except RequestError:
        assert forms.files() == []
    except ValueError as error:
        # A form may be whole and hold no file; a route asks `has_file` before it commits.
        assert "no file" in str(error)
    await forms.blobs.delete(KEY)


@pytest.mark.parametrize(
    ("filename", "expected"),
    [
        ('filename="in.jsonl"', "in.jsonl"),
        ("filename=in.jsonl", "in.jsonl"),
        ("FileName=in.jsonl", "in.jsonl"),
        ('filename="你好.jsonl"', "你好.jsonl"),
        ('filename="a%22b.jsonl"', 'a"b.jsonl'),
        ('filename="100%.jsonl"', "100%.jsonl"),
        (r'filename="a\"b\\c.jsonl"', r'a"b\c.jsonl'),
        (r'filename="a\"', "a\\"),
        (r'filename="C:\dir\in.jsonl"', r"C:\dir\in.jsonl"),
        ('filename="../../etc/passwd"', "../../etc/passwd"),
        ("filename=\"=?utf-8?B?w6Q=?=\"; filename*=utf-8''%C3%A4.jsonl", "ä.jsonl"),
        ("filename*=UTF-8'en'%e2%82%ac%20rates; filename=rates", "€ rates"),
        ("filename*=utf-8''%ff; filename=plain", "plain"),
        ("filename*=iso-8859-1''%e4", "ä"),
        ('filename="x; filename=y"', "x; filename=y"),
        ('filename="a%0D%0AX-Evil: 1"', "aX-Evil: 1"),
        ('filename="a\x00b\x1b"', "ab"),
        ("filename*=utf-8''a%00%0d%0ab", "ab"),
        ('filename=""', "upload"),
        ("filename=", "upload"),
        ('filename="' + "n" * FILENAME_LENGTH + '"', "n" * FILENAME_LENGTH),
    ],
)
async def test_every_spelling_of_a_filename_is_decoded(
    forms: FormReader, filename: str, expected: str
) -> None:
    form, _ = await forms.read([file_part(filename=filename) + end()])
    assert form.filename == expected


async def test_a_file_without_a_name_is_called_upload(forms: FormReader) -> None:
    form, _ = await forms.read([part('name="file"', b"{}") + end()])
    assert form.filename == "upload"


async def test_a_filename_in_latin_1_is_accepted(forms: FormReader) -> None:
    body = file_part(filename='filename="?"').replace(b"?", b"\xe4") + end()
    form, _ = await forms.read([body])
    assert form.filename == "ä"


async def test_a_name_hidden_in_another_parameter_is_not_the_filename(forms: FormReader) -> None:
    form, _ = await forms.read([part('x="; filename=evil"; name="file"; filename=good', b"") + end()])
    assert form.filename == "good"


async def test_a_longer_filename_is_refused(forms: FormReader) -> None:
    refusal = await forms.refusal(
        file_part(filename='filename="' + "n" * (FILENAME_LENGTH + 1) + '"') + end()
    )
    assert (refusal.param, refusal.code) == ("file", "string_above_max_length")


@pytest.mark.parametrize(
    ("content_type", "boundary"),
    [
        ('multipart/form-data; boundary="a=b_c?d"', "a=b_c?d"),
        ("multipart/form-data; boundary=----=_Part_1_2.3", "----=_Part_1_2.3"),
        ("multipart/form-data;boundary=x", "x"),
        ("Multipart/Form-Data; charset=utf-8; BOUNDARY=x", "x"),
        ("multipart/form-data; boundary=x; charset=utf-8", "x"),
        ("multipart/form-data; boundary=" + "-" * 62 + "RubyBoundary1234", "-" * 62 + "RubyBoundary1234"),
    ],
)
async def test_every_spelling_of_a_boundary_is_accepted(
    forms: FormReader, content_type: str, boundary: str
) -> None:
    body = part('name="file"; filename=x', b"{}", boundary=boundary) + end(boundary)
    _, content = await forms.read([body], content_type=content_type)
    assert content == b"{}"


@pytest.mark.parametrize(
    "content_type",
    [
        "multipart/form-data",
        "multipart/form-data; boundary=",
        'multipart/form-data; boundary=""',
        "multipart/form-data; boundary=" + "x" * 300,
        "multipart/form-data; boundary=other",
        "multipart/mixed; boundary=bound",
        "application/json",
        "",
    ],
)
async def test_a_boundary_that_is_missing_or_wrong_is_refused(forms: FormReader, content_type: str) -> None:
    refusal = await forms.refusal(file_part() + end(), content_type=content_type)
    assert refusal.status == 400


@pytest.mark.parametrize(
    "header",
    [
        "Content-Type: ",
        "Content-Type: text/plain; charset=utf-16",
        "Content-Length: 2",
        "Content-Transfer-Encoding: binary",
        "Transfer-Encoding: chunked",
        "X-Whatever: 1",
        "content-type: application/jsonl",
    ],
)
async def test_headers_of_a_part_are_tolerated(forms: FormReader, header: str) -> None:
    _, content = await forms.read([part('name="file"; filename=x', b"{}", header) + end()])
    assert content == b"{}"


async def test_a_part_shorter_than_its_content_length_is_refused(forms: FormReader) -> None:
    await forms.refusal(part('name="file"; filename=x', b"{}", "Content-Length: 3") + end())


@pytest.mark.parametrize("encoding", ["base64", "Quoted-Printable", "x-uuencode"])
@pytest.mark.parametrize(("name", "more"), [("file", "; filename=x"), ("purpose", "")])
async def test_a_part_with_a_transfer_encoding_is_refused(
    forms: FormReader, encoding: str, name: str, more: str
) -> None:
    header = f"content-transfer-encoding: {encoding}"
    refusal = await forms.refusal(part(f'name="{name}"{more}', b"e30=", header) + end())
    assert refusal.param == name


async def test_the_end_needs_no_line_break_and_may_be_followed_by_more(forms: FormReader) -> None:
    _, content = await forms.read([file_part() + b"--bound--"])
    assert content == b"{}\n"
    _, content = await forms.read([file_part() + end(), b"epilogue"])
    assert content == b"{}\n"


async def test_two_files_are_refused(forms: FormReader) -> None:
    assert (await forms.refusal(file_part() + file_part() + end())).param == "file"


async def test_a_text_given_twice_is_refused(forms: FormReader) -> None:
    assert (await forms.refusal(PURPOSE + PURPOSE + file_part() + end())).code == "duplicate_parameter"


async def test_a_text_that_is_not_utf_8_is_refused(forms: FormReader) -> None:
    assert (await forms.refusal(part('name="purpose"', b"\xff") + end())).param == "purpose"


async def test_a_long_text_is_refused(forms: FormReader) -> None:
    assert (await forms.refusal(part('name="purpose"', b"x" * 100_000) + end())).param == "purpose"


async def test_a_thousand_parts_are_refused(forms: FormReader) -> None:
    await forms.refusal(*(part(f'name="n{number}"', b"") for number in range(1_000)), end())


async def test_a_file_is_refused_while_it_is_read(forms: FormReader) -> None:
    asked = 0

    async def endless() -> dict[str, object]:
        nonlocal asked
        asked += 1
        body = file_part(b"")[:-2] if asked == 1 else b"x" * 1_000
        return {"type": "http.request", "body": body, "more_body": True}

    refusal = await forms.refusal(receive=endless, limit_bytes=5_000)
    assert (refusal.status, refusal.message) == (400, "File is too large.")
    assert asked == 7


async def test_a_file_of_exactly_the_limit_is_accepted(forms: FormReader) -> None:
    form, _ = await forms.read([file_part(b"x" * 5_000) + end()], limit_bytes=5_000)
    assert form.size_bytes == 5_000


async def test_a_content_length_over_the_limit_is_refused_before_reading(forms: FormReader) -> None:
    async def never() -> dict[str, object]:
        raise AssertionError("nothing is to be read")

    headers = [(b"content-length", b"9" * 30)]
    assert (await forms.refusal(receive=never, headers=headers)).message == "File is too large."


async def test_an_endless_preamble_is_refused(forms: FormReader) -> None:
    async def endless() -> dict[str, object]:
        return {"type": "http.request", "body": b"x" * 65_536, "more_body": True}

    await forms.refusal(receive=endless)


async def test_a_sender_that_stops_is_refused(forms: FormReader) -> None:
    sent = [file_part()[:-2]]

    async def stalling() -> dict[str, object]:
        if not sent:
            await asyncio.Event().wait()
        return {"type": "http.request", "body": sent.pop(), "more_body": True}

    refusal = await forms.refusal(receive=stalling, idle_s=0.02)
    assert isinstance(refusal, SlowBodyError)
    assert refusal.status == 408


async def test_a_sender_that_trickles_is_refused(forms: FormReader) -> None:
    sent = 0

    async def trickling() -> dict[str, object]:
        nonlocal sent
        sent += 1
        assert sent < 200, "a byte now and then must not count as progress"
        await asyncio.sleep(0.005)
        return {"type": "http.request", "body": b"-", "more_body": True}

    assert isinstance(await forms.refusal(receive=trickling, idle_s=0.2), SlowBodyError)


async def test_time_spent_writing_does_not_count_as_idle(forms: FormReader) -> None:
    chunks = iter([file_part(b"")[:-2], *[b"x"] * 20, b"\r\n" + end()])

    async def receive() -> dict[str, object]:
        chunk = next(chunks, b"")
        await asyncio.sleep(0)
        return {"type": "http.request", "body": chunk, "more_body": bool(chunk)}

    class Slow:
        def __init__(self, writer: object) -> None:
            self._writer = writer

        def __getattr__(self, name: str) -> object:
            return getattr(self._writer, name)

        async def write(self, chunk: bytes) -> None:
            await asyncio.sleep(0.05)
            await self._writer.write(chunk)  # type: ignore[attr-defined]

    async def open_slowly() -> object:
        return Slow(await forms.blobs.open_writer(KEY))

    scope = {
        "type": "http",
        "method": "POST",
        "headers": [(b"content-type", b"multipart/form-data; boundary=bound")],
    }
    plan = FormPlan(file_field="file", open_writer=open_slowly, limit_bytes=lambda _: 100, idle_s=0.6)  # type: ignore[arg-type]
    async with receive_form(Request(scope, receive), plan) as form:
        assert form.size_bytes == 20


async def test_a_disconnect_leaves_no_bytes(forms: FormReader) -> None:
    cut = arriving([file_part(b"x" * 3_000_000)], then={"type": "http.disconnect"})
    assert isinstance(await forms.refusal(receive=cut, limit_bytes=1 << 30), BodyCutError)


async def test_a_cancelled_read_leaves_no_bytes(forms: FormReader) -> None:
    is_waiting = asyncio.Event()
    sent = [file_part(b"x" * 3_000_000)]

    async def receive() -> dict[str, object]:
        if not sent:
            is_waiting.set()
            await asyncio.Event().wait()
        return {"type": "http.request", "body": sent.pop(), "more_body": True}

    reading = asyncio.create_task(forms.read(receive=receive, limit_bytes=1 << 30))
    await is_waiting.wait()
    assert forms.files() != []
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert forms.files() == []


async def test_a_full_disk_is_reported_and_leaves_no_bytes(forms: FormReader) -> None:
    with pytest.raises(StorageFullError):
        await forms.read([file_part() + end()], watermark_bytes=1 << 60)
    assert forms.files() == []


async def test_the_content_is_hashed_while_reading(forms: FormReader) -> None:
    form, _ = await forms.read([file_part(b"abc") + end()])
    assert form.content_digest == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
