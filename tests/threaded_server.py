"""A small model server in threads, for tests that script its answers."""

from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class AnsweringHandler(BaseHTTPRequestHandler):
    """A handler that logs nothing and answers with JSON. `respond` answers a POST."""

    protocol_version = "HTTP/1.1"

    def respond(self) -> None:
        raise NotImplementedError

    def do_POST(self) -> None:
        self.respond()

    def read(self) -> bytes:
        """The body of the request."""
        return self.rfile.read(int(self.headers.get("content-length", 0)))

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def listening(handler: type[AnsweringHandler], *, backlog: int) -> ThreadingHTTPServer:
    """A server on a free port of loopback; the caller serves and closes it."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = backlog

    return Server(("127.0.0.1", 0), handler)
