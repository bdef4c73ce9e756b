"""The uploads of released HTTP clients: their bytes as they send them, and real clients where installed.

The shapes of the JDK, Node, curl, requests, httpx and aiohttp were recorded; the others are written by hand.
`test_files` has the tests of the official client.
"""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.api.conftest import LINE, Server

CONTENT = LINE.encode() * 30
LARGE = LINE.encode() * 20_000
PROGRAMS = Path(__file__).parent / "http_clients"


@dataclass(frozen=True, kw_only=True)
class Shape:
    """An upload of a client.

    Args:
        headers: the request's headers, without Host, Authorization and the length.
        parts: the headers of each part. The part whose headers contain `filename` gets the file's content.
        is_chunked: whether the body has chunks in place of a length.
    """

    headers: tuple[str, ...]
    boundary: str
    parts: tuple[tuple[str, ...], ...]
    is_chunked: bool = False

    def body(self) -> bytes:
        pieces = []
        for headers in self.parts:
            content = CONTENT if any("filename" in header for header in headers) else b"batch"
            text = "\r\n".join([f"--{self.boundary}", *headers, "", ""])
            pieces.append(text.replace("{size}", str(len(content))).encode() + content + b"\r\n")
        return b"".join(pieces) + f"--{self.boundary}--\r\n".encode()

    def head(self, key: str) -> bytes:
        length = "transfer-encoding: chunked" if self.is_chunked else f"Content-Length: {len(self.body())}"
        first = ("POST /v1/files HTTP/1.1", "Host: localhost", f"Authorization: Bearer {key}", length)
        return "\r\n".join([*first, *self.headers, "", ""]).encode()

    def sent_body(self) -> bytes:
        if not self.is_chunked:
            return self.body()
        pieces = self.body().splitlines(keepends=True)
        return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


PURPOSE = 'Content-Disposition: form-data; name="purpose"'
FILE = 'Content-Disposition: form-data; name="file"; filename="in.jsonl"'
BYTES = "Content-Type: application/octet-stream"
SHAPES = {
    "JDK java.net.http": Shape(
        headers=(
            "Connection: Upgrade, HTTP2-Settings",
            "HTTP2-Settings: AAEAAEAAAAIAAAAAAAMAAAAAAAQBAAAAAAUAAEAAAAYABgAA",
            "Upgrade: h2c",
            "User-Agent: Java-http-client/17.0.15",
            "Content-Type: multipart/form-data; boundary=f3b2a1",
        ),
        boundary="f3b2a1",
        parts=((PURPOSE,), (FILE, BYTES)),
    ),
    "OkHttp 4": Shape(
        headers=(
            "Content-Type: multipart/form-data; boundary=6f1a2f80-6ec1-4b39-a3f1-0d1a0a3a7f55",
            "Connection: Keep-Alive",
            "Accept-Encoding: gzip",
            "User-Agent: okhttp/4.12.0",
        ),
        boundary="6f1a2f80-6ec1-4b39-a3f1-0d1a0a3a7f55",
        parts=((PURPOSE, "Content-Length: {size}"), (FILE, BYTES, "Content-Length: {size}")),
    ),
    "Apache HttpClient 4, chunked": Shape(
        headers=(
            "Content-Type: multipart/form-data; boundary=-_kQ5s0h-Vx; charset=ISO-8859-1",
            "Connection: Keep-Alive",
            "Expect: 100-continue",
            "User-Agent: Apache-HttpClient/4.5.14 (Java/17.0.15)",
            "Accept-Encoding: gzip,deflate",
        ),
        boundary="-_kQ5s0h-Vx",
        parts=(
            (PURPOSE, "Content-Type: text/plain; charset=ISO-8859-1", "Content-Transfer-Encoding: 8bit"),
            (FILE, BYTES, "Content-Transfer-Encoding: binary"),
        ),
        is_chunked=True,
    ),
    ".NET HttpClient": Shape(
        headers=('Content-Type: multipart/form-data; boundary="d5b2a6c1-42a0-4b43-9a17-8e7a52d9f6b1"',),
        boundary="d5b2a6c1-42a0-4b43-9a17-8e7a52d9f6b1",
        parts=(
            (
                BYTES,
                "Content-Disposition: form-data; name=file; filename=in.jsonl; filename*=utf-8''in.jsonl",
            ),
            ("Content-Type: text/plain; charset=utf-8", "Content-Disposition: form-data; name=purpose"),
        ),
    ),
    "OpenAI for .NET": Shape(
        headers=('Content-Type: multipart/form-data; boundary="a=b_c\'d(e)f+g,h./i:j?k"',),
        boundary="a=b_c'd(e)f+g,h./i:j?k",
        parts=(
            ("Content-Disposition: form-data; name=file; filename=in.jsonl",),
            ("Content-Type: text/plain", "Content-Disposition: form-data; name=purpose"),
        ),
    ),
    "Node fetch (undici)": Shape(
        headers=(
            "content-type: multipart/form-data; boundary=----formdata-undici-053291748613",
            "connection: keep-alive",
            "accept: */*",
            "accept-language: *",
            "sec-fetch-mode: cors",
            "user-agent: node",
            "accept-encoding: gzip, deflate",
        ),
        boundary="----formdata-undici-053291748613",
        parts=((FILE, BYTES), (PURPOSE,)),
    ),
    "axios with form-data": Shape(
        headers=(
            "Accept: application/json, text/plain, */*",
            "Content-Type: multipart/form-data; boundary=--------------------------418293746501928374650192",
            "User-Agent: axios/1.7.9",
            "Accept-Encoding: gzip, compress, deflate, br",
            "Connection: keep-alive",
        ),
        boundary="--------------------------418293746501928374650192",
        parts=((PURPOSE,), (FILE, "Content-Type: application/x-jsonlines")),
        is_chunked=True,
    ),
    "Go net/http from a pipe": Shape(
        headers=(
            "User-Agent: Go-http-client/1.1",
            "Content-Type: multipart/form-data; boundary=" + "0f1e2d3c4b5a" * 5,
            "Accept-Encoding: gzip",
        ),
        boundary="0f1e2d3c4b5a" * 5,
        parts=((FILE, BYTES), (PURPOSE,)),
        is_chunked=True,
    ),
    "curl over 1 MB": Shape(
        headers=(
            "User-Agent: curl/7.88.1",
            "Accept: */*",
            "Content-Type: multipart/form-data; boundary=------------------------d74496d66958873e",
            "Expect: 100-continue",
        ),
        boundary="------------------------d74496d66958873e",
        parts=((PURPOSE,), (FILE, BYTES)),
    ),
    "requests": Shape(
        headers=(
            "User-Agent: python-requests/2.32.3",
            "Accept-Encoding: gzip, deflate, br, zstd",
            "Connection: keep-alive",
            "Content-Type: multipart/form-data; boundary=2e7956ca1b0c4a5d8f3e6b9a7c0d1e2f",
        ),
        boundary="2e7956ca1b0c4a5d8f3e6b9a7c0d1e2f",
        parts=((PURPOSE,), (FILE,)),
    ),
    "httpx": Shape(
        headers=(
            "Accept-Encoding: gzip, deflate",
            "User-Agent: python-httpx/0.28.1",
            "Content-Type: multipart/form-data; boundary=9c1f7d2e4b6a8035c1f7d2e4b6a80359",
        ),
        boundary="9c1f7d2e4b6a8035c1f7d2e4b6a80359",
        parts=((PURPOSE,), (FILE, "Content-Type: application/jsonl")),
    ),
    "aiohttp": Shape(
        headers=(
            "Accept-Encoding: gzip, deflate",
            "User-Agent: Python/3.11 aiohttp/3.14.5",
            "Content-Type: multipart/form-data; boundary=4c1e9a7b5d3f40628e1a9c7b5d3f4062",
        ),
        boundary="4c1e9a7b5d3f40628e1a9c7b5d3f4062",
        parts=(
            ("Content-Type: text/plain; charset=utf-8", PURPOSE),
            (BYTES, FILE),
        ),
    ),
    "Ruby Faraday": Shape(
        headers=(
            "Content-Type: multipart/form-data; boundary=-----------RubyMultipartPost-5d1c9e7a3b",
            "User-Agent: Faraday v2.12.2",
            "Accept-Encoding: gzip;q=1.0,deflate;q=0.6,identity;q=0.3",
            "Connection: close",
        ),
        boundary="-----------RubyMultipartPost-5d1c9e7a3b",
        parts=(
            (FILE, "Content-Length: {size}", "Content-Type: ", "Content-Transfer-Encoding: binary"),
            (PURPOSE, "Content-Type: text/plain"),
        ),
    ),
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_the_upload_of_a_released_client_is_read(server, key, shape):
    with server.connected() as connection:
        connection.send(shape.head(key))
        if any(header == "Expect: 100-continue" for header in shape.headers):
            assert connection.read().status == 100
        connection.send(shape.sent_body())
        uploaded = connection.read()
        assert connection.is_closed() if "Connection: close" in shape.headers else True
    assert uploaded.status == 200, uploaded.body
    assert uploaded.json()["filename"] == "in.jsonl"
    assert content_of(server, key, uploaded.json()["id"]) == CONTENT


# --- real clients --------------------------------------------------------------------------------------


def content_of(server: Server, key: str, file_id: str) -> bytes:
    return server.send("GET", f"/v1/files/{file_id}/content", key=key).body


def program(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not on PATH")
    return path


def printed(server: Server, key: str, *command: str | Path) -> list[str]:
    """The lines that a client prints. Proxies of the environment are not used."""
    environment = {name: text for name, text in os.environ.items() if "proxy" not in name.lower()}
    environment |= {"SERVER": server.url, "KEY": key}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.split()


@pytest.fixture
def input_file(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    path.write_bytes(LARGE)
    return path


def test_the_http_client_of_the_jdk_uploads_and_creates(server, key, input_file):
    """It offers to upgrade to HTTP/2 with the first request of each connection."""
    java = program("java")
    modules = subprocess.run([java, "--list-modules"], capture_output=True, text=True, check=False).stdout
    if not {"java.net.http", "jdk.compiler"} <= {line.partition("@")[0] for line in modules.splitlines()}:
        pytest.skip("this Java has no compiler or no java.net.http")
    lines = printed(server, key, java, PROGRAMS / "Upload.java", input_file)
    files, batches = lines[:-1], lines[-1]
    assert len(files) == 3
    assert all(content_of(server, key, file_id) == LARGE for file_id in files)
    assert batches == "3"


def test_fetch_of_node_uploads_a_form_and_a_stream(server, key, input_file):
    files = printed(server, key, program("node"), PROGRAMS / "upload.mjs", input_file)
    assert len(files) == 2
    assert all(content_of(server, key, file_id) == LARGE for file_id in files)


@pytest.mark.parametrize(
    "flags", [(), ("--http2",), ("-H", "Transfer-Encoding: chunked"), ("--http1.0",)], ids=str
)
def test_curl_uploads(server, key, input_file, flags):
    curl = program("curl")
    if "--http2" in flags and " HTTP2" not in subprocess.check_output([curl, "--version"], text=True):
        pytest.skip("this curl has no HTTP/2")
    form = ("-F", "purpose=batch", "-F", f"file=@{input_file}", "-H", f"Authorization: Bearer {key}")
    lines = printed(server, key, curl, "-sS", "-m", "60", *flags, *form, f"{server.url}/v1/files")
    file_id = "".join(lines).partition('"id":"')[2].partition('"')[0]
    assert content_of(server, key, file_id) == LARGE
