"""Pages of lines of stored files, and which batches use a file."""

import asyncio
import json
from typing import Any

import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nightmill.api import file_lines
from nightmill.api.file_lines import page_at, page_before
from nightmill.core.batch import Event
from nightmill.core.file import File, Purpose
from nightmill.ids import FileId, ProjectId
from tests.api.conftest import LINE, Server
from tests.api.followed import SETTINGS, FollowedBatch
from tests.api.test_line_lookup import CountedBlobs

FILE_ID = FileId("file-1")


def file_of(text: bytes) -> File:
    return File(FILE_ID, ProjectId("p"), Purpose.BATCH, "f.jsonl", len(text), 0, None, "files/file-1")


@pytest.fixture
def small_pages(monkeypatch):
    monkeypatch.setattr(file_lines, "_PAGE_BYTES", 40)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.sampled_from([b"", b"{}", b"x" * 15, b"y" * 100, b"\xff\n"]), max_size=20).map(b"\n".join),
    st.integers(1, 5),
    st.integers(0, 30),
)
def test_pages_forward_and_backward_have_every_line_once(small_pages, text, limit, most_bytes):
    blobs, file = CountedBlobs(text), file_of(text)
    expected = text.split(b"\n")
    if not expected[-1]:
        expected.pop()

    async def forward() -> list[Any]:
        found: list[Any] = []
        at = 0
        while at < len(text):
            page = await page_at(blobs, file, at, limit=limit, most_bytes=most_bytes)
            assert (page.start, 0 < len(page.lines) <= limit) == (at, True)
            found += page.lines
            at = page.end
        return found

    async def backward() -> list[Any]:
        found: list[Any] = []
        at = len(text)
        while at > 0:
            page = await page_before(blobs, file, at, limit=limit, most_bytes=most_bytes)
            assert (page.end, 0 < len(page.lines) <= limit) == (at, True)
            found[:0] = page.lines
            at = page.start
        return found

    lines = asyncio.run(forward())
    assert [line.text for line in lines] == [it[:most_bytes] for it in expected]
    assert [text[it.offset : it.offset + it.size_bytes] for it in lines] == expected
    assert asyncio.run(backward()) == lines


@given(st.lists(st.sampled_from([b"{}", b"x" * 30]), min_size=1, max_size=9), st.integers(0, 400))
def test_any_place_in_a_line_is_a_place_of_the_whole_line(lines, offset):
    text = b"".join(line + b"\n" for line in lines)
    offset = min(offset, len(text) - 1)
    start = text.rfind(b"\n", 0, offset) + 1
    page = asyncio.run(page_at(CountedBlobs(text), file_of(text), offset, limit=1, most_bytes=99))
    assert page.start == start


def get(server: Server, key: str, path: str) -> Any:
    answer = server.send("GET", f"/nightmill/v1/files{path}", key=key)
    assert answer.status == 200, answer.body
    return answer.json()


def upload(client: openai.OpenAI, text: bytes, purpose: Any = "batch") -> str:
    return client.files.create(file=("in.jsonl", text), purpose=purpose).id


def test_a_page_has_numbers_texts_and_the_places_around_it(server, client, key):
    text = b"\xef\xbb\xbf" + b"".join(
        json.dumps({"custom_id": f"line-{number}", "long": "ü" * number}).encode() + b"\n"
        for number in range(1, 301)
    )
    file_id = upload(client, text)
    page = get(server, key, f"/{file_id}/lines?limit=2&max_bytes=50")
    assert [(it["line"], it["custom_id"]) for it in page["data"]] == [(1, "line-1"), (2, "line-2")]
    assert page["data"][0]["text"].startswith('{"custom_id"')
    assert page["has_more"]
    following = get(server, key, f"/{file_id}/lines?offset={page['end']}&limit=200")
    assert [it["line"] for it in following["data"]] == [*range(3, 203)]
    assert get(server, key, f"/{file_id}/lines?before={following['start']}&limit=2&max_bytes=50") == page
    last = get(server, key, f"/{file_id}/lines?before={len(text)}&limit=1")
    assert (last["data"][0]["line"], last["has_more"]) == (300, False)
    assert get(server, key, f"/{file_id}/lines?line=77&limit=1")["data"][0]["custom_id"] == "line-77"
    cut = get(server, key, f"/{file_id}/lines?line=300&max_bytes=40")["data"][0]
    assert cut["is_cut"]
    assert cut["size_bytes"] == len(text.splitlines()[-1])


def test_lines_that_are_no_json_or_no_text_are_shown(server, client, key):
    texts = [b"nonsense", b"\xff\xfe\x00", b'{"custom_id": 7}', b'{"custom_id": "a"', b"[" * 5_000, b""]
    # The beginning of a file is looked at while it is uploaded.
    file_id = upload(client, LINE.encode() * 1_000 + b"\n".join(texts))
    found = get(server, key, f"/{file_id}/lines?line=1001")["data"]
    assert [it["custom_id"] for it in found] == [None, None, None, "a", None]
    assert [it["text"] for it in found[:4]] == [
        "nonsense",
        "\ufffd\ufffd\0",
        '{"custom_id": 7}',
        '{"custom_id": "a"',
    ]


def test_an_empty_page_is_a_page(server, client, key):
    file_id = upload(client, b"{}\n", "evals")
    page = get(server, key, f"/{file_id}/lines?offset=99")
    assert (page["data"], page["has_more"]) == ([], False)
    assert get(server, key, f"/{file_id}/lines?before=0")["data"] == []


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("offset=1&line=1", 400),
        ("offset=-1", 400),
        ("line=0", 400),
        ("line=99", 404),
        ("limit=501", 400),
        ("before=x", 400),
        ("line=99999999999999999999", 404),
    ],
)
def test_a_page_that_can_not_be_is_refused(server, key, input_file_id, query, status):
    answer = server.send("GET", f"/nightmill/v1/files/{input_file_id}/lines?{query}", key=key)
    assert answer.status == status
    assert answer.error


def test_files_of_other_purposes_and_projects_have_no_lines(server, client, key):
    picture = upload(client, b"\x89PNG", "vision")
    assert server.send("GET", f"/nightmill/v1/files/{picture}/lines", key=key).status == 400
    other = server.new_key("a-project-of-others")
    for path in (
        f"/{picture}",
        f"/{picture}/lines",
        "/file-unknown",
        "/..%2f..%2fetc",
        "/file-unknown/lines",
    ):
        assert server.send("GET", f"/nightmill/v1/files{path}", key=other).status == 404


def test_a_file_names_the_batches_that_use_it(serve):
    server = serve(settings=SETTINGS)
    batch = FollowedBatch.of(server, 3)
    batch.answer_all(3, failed=[1])
    batch.move(Event.SETTLED)
    batch.finalize()
    listed = server.send("GET", "/nightmill/v1/files").json()
    uses = [use for file in listed["data"] for use in file["batches"]]
    assert sorted(use["as"] for use in uses) == ["error", "input", "output"]
    assert {(use["id"], use["status"]) for use in uses} == {(batch.id, "completed")}
    assert (listed["has_more"], listed["first_id"]) == (False, listed["data"][0]["id"])
    one = server.send("GET", f"/nightmill/v1/files/{listed['first_id']}").json()
    assert one == listed["data"][0]
    second = server.send("GET", f"/nightmill/v1/files?limit=1&after={listed['first_id']}").json()
    assert second["data"] == listed["data"][1:2]
    assert server.send("GET", "/nightmill/v1/files?purpose=batch").json()["data"] == listed["data"][2:]


def test_a_file_that_many_batches_use_names_the_newest(server, client, key, input_file_id):
    made = [
        client.batches.create(
            input_file_id=input_file_id, endpoint="/v1/chat/completions", completion_window="24h"
        ).id
        for _ in range(7)
    ]
    file = get(server, key, f"/{input_file_id}")
    assert [use["id"] for use in file["batches"]] == made[:1:-1]
    assert file["has_more_batches"]


def test_a_look_at_lines_is_in_the_audit_log_where_downloads_are(serve):
    server = serve(settings={"audit": {"downloads": True}})
    file_id = upload(server.client(), LINE.encode())
    assert server.send("GET", f"/nightmill/v1/files/{file_id}/lines").status == 200
    entry = server.do(server.context.store.audit.list(limit=1)).items[0]
    assert (entry.action, entry.subject_id) == ("file.downloaded", file_id)
