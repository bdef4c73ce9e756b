"""Names and ids are data: they never become part of a path, an SQL statement, a page or a header."""

import json

import pytest

NAMES = [
    "../../../../etc/cron.d/evil",
    "..\\..\\evil.exe",
    "/etc/passwd",
    "C:\\Windows\\evil.jsonl",
    "x'; DROP TABLE file; --",
    '"; DELETE FROM batch; --',
    "<script>alert(1)</script>",
    "a\r\nSet-Cookie: x=1",
    "a\x00b",
    "${jndi:ldap://127.0.0.1/x}",
    "{{7*7}}%s%n",
    "\u202egpj.exe",
]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_file_name_is_data(served, line, name):
    before = {path for path in served.folder.parent.rglob("*") if not path.is_relative_to(served.folder)}
    sent = name.replace("\r\n", "%0D%0A").replace("\x00", "")

    file_id = served.upload(line, sent)

    status, _, answer = served.send("GET", f"/v1/files/{file_id}")
    file = json.loads(answer)
    assert status == 200
    assert file["filename"] == name.replace("\r\n", "").replace("\x00", "")
    status, headers, content = served.send("GET", f"/v1/files/{file_id}/content")
    assert (status, content) == (200, line)
    assert headers["content-disposition"].startswith("attachment; ")
    assert headers["content-type"].startswith("text/plain")
    assert headers["x-content-type-options"] == "nosniff"
    assert "set-cookie" not in headers
    assert {path.name for path in (served.folder / "blobs" / "files").iterdir()} >= {file_id}
    assert {
        path for path in served.folder.parent.rglob("*") if not path.is_relative_to(served.folder)
    } == before


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_metadata_is_returned_unchanged(served, line, name):
    batch = served.run_batch(line, metadata={name[:64]: name, "plain": "x"})

    assert batch["metadata"] == {name[:64]: name, "plain": "x"}
    listed = json.loads(served.send("GET", "/v1/batches?limit=1")[2])
    assert listed["data"][0]["metadata"] == batch["metadata"]


@pytest.mark.parametrize(
    "step",
    [
        "..%2f..%2fnightmill.sqlite",
        "%2e%2e%2fnightmill.sqlite",
        "file-x%00",
        "file-x'%20OR%20'1'='1",
        "%3Cscript%3E",
        "file-x%0d%0aSet-Cookie:%20x=1",
        "." * 3,
        "a" * 5_000,
    ],
)
@pytest.mark.parametrize("path", ["/v1/files/{}", "/v1/files/{}/content", "/v1/batches/{}"])
def test_an_unusual_id_is_an_unknown_id(served, path, step):
    status, headers, body = served.send("GET", path.format(step))

    assert status in (400, 404)  # the format of a batch id is checked first
    assert headers["content-type"] == "application/json"
    assert "set-cookie" not in headers
    assert json.loads(body)["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("value", ["x' OR '1'='1", "%27;DROP TABLE batch;--", "-1", "1;2", "file-x"])
@pytest.mark.parametrize(
    "path", ["/v1/batches?after={}", "/v1/files?after={}", "/v1/files?purpose={}", "/v1/batches?limit={}"]
)
def test_a_query_is_data(served, path, value):
    status, _, body = served.send("GET", path.format(value.replace(" ", "%20")))

    assert status in (200, 400, 404)
    if status == 200:
        assert json.loads(body)["data"] == []
    assert served.send("GET", "/v1/batches?limit=1")[0] == 200
