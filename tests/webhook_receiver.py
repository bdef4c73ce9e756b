"""A receiver of webhooks that fails, redirects, hangs and breaks on order."""

import ssl
import threading
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from openai import OpenAI

from tests.threaded_server import AnsweringHandler, listening

HANG = "hang"
REDIRECT = "redirect"
CLOSE = "close"
ENDLESS = "endless"
_OFFICIAL = OpenAI(api_key="sk-none")
WAIT_S = 60.0
"""Generous because a shared machine may stall; no test measures it."""


@dataclass(frozen=True)
class Received:
    path: str
    headers: Mapping[str, str]
    body: str

    def unwrapped(self, secret: str):
        """What `openai.webhooks.unwrap` makes of it; raises when the signature is wrong."""
        return _OFFICIAL.webhooks.unwrap(self.body, self.headers, secret=secret)


@dataclass
class Receiver:
    """What came, and what is answered.

    Args:
        orders: the next answers, each a status or one of the words above; then `usual`.
    """

    port: int = 0
    orders: list[int | str] = field(default_factory=list)
    usual: int | str = 200
    received: list[Received] = field(default_factory=list)
    in_flight: dict[str, int] = field(default_factory=dict)
    most_in_flight: dict[str, int] = field(default_factory=dict)
    let_go: threading.Event = field(default_factory=threading.Event)
    changed: threading.Condition = field(default_factory=threading.Condition)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def until(self, is_met: Callable[["Receiver"], bool]) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: is_met(self), WAIT_S), self.received

    def until_count(self, count: int) -> list[Received]:
        self.until(lambda one: len(one.received) >= count)
        return list(self.received)

    def order_for(self, received: Received) -> int | str:
        """Notes what came, and takes the next order."""
        with self.changed:
            self.received.append(received)
            key = received.headers.get("webhook-id", "")
            self.in_flight[key] = self.in_flight.get(key, 0) + 1
            self.most_in_flight[key] = max(self.most_in_flight.get(key, 0), self.in_flight[key])
            self.changed.notify_all()
            if received.path.startswith("/slow"):
                return HANG
            return self.orders.pop(0) if self.orders else self.usual

    def is_answered(self, received: Received) -> None:
        with self.changed:
            self.in_flight[received.headers.get("webhook-id", "")] -= 1
            self.changed.notify_all()


@contextmanager
def receiving(tls: ssl.SSLContext | None = None) -> Generator[Receiver]:
    receiver = Receiver()

    class Handler(AnsweringHandler):
        def respond(self) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            received = Received(self.path, headers, self.read().decode())
            order = receiver.order_for(received)
            try:
                self.obey(order)
            finally:
                receiver.is_answered(received)

        def obey(self, order: int | str) -> None:
            match order:
                case int():
                    self.answer(order, b"{}")
                case "redirect":
                    self.answer(302, b"", {"location": f"{receiver.url}/elsewhere"})
                case "hang":
                    receiver.let_go.wait(WAIT_S)
                    self.close_connection = True
                case "endless":
                    self.send_response(200)
                    self.send_header("content-type", "text/plain")
                    self.end_headers()
                    try:
                        while not receiver.let_go.is_set():
                            self.wfile.write(bytes(65_536))
                    except OSError:
                        self.close_connection = True
                case _:
                    self.close_connection = True

    server = listening(Handler, backlog=64)
    receiver.port = server.server_port
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield receiver
    finally:
        receiver.let_go.set()
        server.shutdown()
        server.server_close()
        thread.join()
