"""An S3 server for the tests: moto behind a proxy that injects faults on request.

`python tests/s3_server.py` prints its port and serves until its standard input ends. `S3Server` starts one.
"""

import json
import re
import secrets
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Deed = Literal["slow down", "deny", "cut", "lose the answer", "half", "hide", "ignore conditions", "gone"]
_EMPTY = (
    b'<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
    b"<Name>x</Name><Prefix></Prefix><KeyCount>0</KeyCount><MaxKeys>1000</MaxKeys>"
    b"<IsTruncated>false</IsTruncated></ListBucketResult>"
)


@dataclass
class Order:
    """A fault for the next `times` requests whose method and path (with query) match."""

    deed: Deed
    method: str = ".*"
    path: str = ".*"
    times: int = 1_000_000


class FaultProxy:
    """WSGI application: forwards requests to moto, or injects a fault."""

    def __init__(self, app: Callable[..., Iterable[bytes]]) -> None:
        self._app = app
        self._lock = threading.Lock()
        self._orders: list[Order] = []
        self._log: list[str] = []

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        path = environ["PATH_INFO"] + ("?" + environ["QUERY_STRING"] if environ["QUERY_STRING"] else "")
        method = environ["REQUEST_METHOD"]
        if path.startswith("/_gate"):
            return self._control(environ, start)
        with self._lock:
            encryption = [environ[name] for name in sorted(environ) if "SERVER_SIDE_ENCRYPTION" in name]
            self._log.append(" ".join([method, path, *encryption]))
            order = next((order for order in self._orders if self._fits(order, method, path)), None)
            if order is not None:
                order.times -= 1
        match order.deed if order else None:
            case "slow down":
                environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
                return _error(start, "503 Slow Down", "SlowDown")
            case "deny":
                environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
                return _error(start, "403 Forbidden", "AccessDenied")
            case "gone":
                environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
                return _error(start, "404 Not Found", "NoSuchUpload")
            case "cut":
                _cut(environ)
                return []
            case "lose the answer":
                b"".join(self._app(environ, lambda *_: None))
                _cut(environ)
                return []
            case "half":
                body = b"".join(self._app(environ, start))
                return _half(body, environ)
            case "hide":
                start("200 OK", [("content-type", "application/xml"), ("content-length", str(len(_EMPTY)))])
                return [_EMPTY]
            case "ignore conditions":
                environ.pop("HTTP_IF_NONE_MATCH", None)
                return self._app(environ, start)
            case None:
                return self._app(environ, start)

    @staticmethod
    def _fits(order: Order, method: str, path: str) -> bool:
        return bool(order.times > 0 and re.fullmatch(order.method, method) and re.search(order.path, path))

    def _control(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        asked = json.loads(environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0)) or b"null")
        with self._lock:
            if asked is not None:
                self._orders = [Order(**order) for order in asked]
                self._log = []
            body = json.dumps(self._log).encode()
        start("200 OK", [("content-type", "application/json"), ("content-length", str(len(body)))])
        return [body]


def _error(start: Callable[..., Any], status: str, code: str) -> Iterable[bytes]:
    body = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>on order</Message></Error>'.encode()
    start(status, [("content-type", "application/xml"), ("content-length", str(len(body)))])
    return [body]


def _cut(environ: dict[str, Any]) -> None:
    environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)


def _half(body: bytes, environ: dict[str, Any]) -> Iterator[bytes]:
    yield body[: len(body) // 2]
    _cut(environ)


def main() -> None:
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        def log(self, *_: Any) -> None:
            return

    app = DomainDispatcherApplication(create_backend_app)
    server = make_server("127.0.0.1", 0, FaultProxy(app), threaded=True, request_handler=Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.port, flush=True)
    sys.stdin.read()


@dataclass
class S3Server:
    """A running server. Every test uses a new bucket; injected faults affect all buckets."""

    port: int
    process: subprocess.Popen[bytes]
    requests: list[str] = field(default_factory=list)

    @classmethod
    def start(cls) -> "S3Server":
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", str(Path(__file__))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert process.stdout is not None
        return cls(int(process.stdout.readline()), process)

    def stop(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(timeout=60)
        self.process.stdout.close()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def make_bucket(self) -> str:
        name = f"bucket-{secrets.token_hex(6)}"
        self._ask("PUT", f"/{name}")
        return name

    def remove_bucket(self, name: str) -> None:
        self._ask("DELETE", f"/{name}")

    def settings(self, bucket: str) -> dict[str, Any]:
        """The settings section `blobs` for a prefix in the bucket."""
        return {
            "url": f"s3://{bucket}/some/prefix",
            "endpoint": self.endpoint,
            "access_key_id": "key",
            "secret_access_key": "secret",
            "allow_http": True,
            "retry_s": 1.0,
            "timeout_s": 30.0,
            "multipart_part_bytes": 5 << 20,
        }

    def order(self, *orders: Order) -> None:
        """Replaces the injected faults (the first match applies) and clears the list of seen requests."""
        self._ask("POST", "/_gate", json.dumps([vars(order) for order in orders]).encode())

    def seen(self, bucket: str) -> list[str]:
        """Method, path and encryption headers of every request to the bucket since the last call of `order`.

        Requests of an earlier test may still arrive. They concern another bucket.
        """
        seen: list[str] = json.loads(self._ask("GET", "/_gate"))
        return [request for request in seen if re.match(rf"\S+ /{bucket}(?=[/? ]|$)", request)]

    def unfinished_uploads(self, bucket: str) -> int:
        return self._ask("GET", f"/{bucket}?uploads").count(b"<UploadId>")

    def _ask(self, method: str, path: str, body: bytes | None = None) -> bytes:
        request = urllib.request.Request(self.endpoint + path, data=body, method=method)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.read()


if __name__ == "__main__":
    main()
