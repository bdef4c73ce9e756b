"""The internals of uvicorn that `nightmill.api.connection` uses."""

import asyncio
import inspect
import logging
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httptools
import pytest
import uvicorn
from packaging.requirements import Requirement
from uvicorn.protocols.http import flow_control, httptools_impl
from uvicorn.server import ServerState

from nightmill.api.connection import http_config
from nightmill.settings import ApiSettings

ROOT = Path(__file__).resolve().parents[2]
REQUEST = b"POST /x HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\n"
OVERRIDDEN = {
    "connection_made": ["transport"],
    "connection_lost": ["exc"],
    "data_received": ["data"],
    "eof_received": [],
    "pause_writing": [],
    "resume_writing": [],
    "on_message_begin": [],
    "on_header": ["name", "value"],
    "on_headers_complete": [],
    "on_body": ["body"],
    "on_message_complete": [],
    "on_response_complete": [],
    "send_400_response": ["msg"],
    "_unset_keepalive_if_required": [],
}


class Transport(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__()
        self.is_reading_paused = False

    def get_extra_info(self, name: str, default: Any = None) -> Any:  # noqa: ARG002 - no address
        return default

    def is_closing(self) -> bool:
        return False

    def write(self, data: Any) -> None:
        pass

    def close(self) -> None:
        pass

    def pause_reading(self) -> None:
        self.is_reading_paused = True

    def resume_reading(self) -> None:
        self.is_reading_paused = False


async def app(scope: Any, receive: Any, send: Any) -> None:
    await asyncio.Event().wait()


@pytest.fixture
async def protocol():
    config = uvicorn.Config(app, http="httptools", ws="none", lifespan="off", log_config=None)
    protocol = httptools_impl.HttpToolsProtocol(config, ServerState(), {})
    yield protocol
    for task in tuple(protocol.tasks):
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def test_the_installed_uvicorn_is_within_the_bound_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (bound,) = (text for text in project["dependencies"] if text.startswith("uvicorn"))
    assert any(specifier.operator == "<" for specifier in Requirement(bound).specifier)
    assert Requirement(bound).specifier.contains(version("uvicorn"))


@pytest.mark.parametrize(("name", "parameters"), OVERRIDDEN.items())
def test_an_overridden_method_has_its_known_parameters(name, parameters):
    method = getattr(httptools_impl.HttpToolsProtocol, name)
    assert list(inspect.signature(method).parameters) == ["self", *parameters]


def test_the_module_has_its_known_constants():
    assert httptools_impl.STATUS_LINE[431].startswith(b"HTTP/1.1 431 ")
    assert flow_control.HIGH_WATER_LIMIT == httptools_impl.HIGH_WATER_LIMIT > 0


async def test_a_new_connection_has_no_cycle_and_is_in_the_set_of_connections(protocol):
    assert protocol.cycle is None
    transport = Transport()
    protocol.connection_made(transport)
    assert protocol.transport is transport
    assert protocol in protocol.connections
    assert not protocol.pipeline
    assert protocol.loop is asyncio.get_running_loop()


async def test_a_request_makes_a_cycle_whose_fields_are_known(protocol):
    protocol.connection_made(Transport())
    protocol.data_received(REQUEST)
    cycle = protocol.cycle
    assert dict(protocol.headers) == {b"host": b"x", b"content-length": b"5"}
    assert cycle.scope is protocol.scope
    assert isinstance(cycle.body, bytearray)
    assert (cycle.more_body, cycle.keep_alive) == (True, True)
    assert (cycle.response_started, cycle.response_complete, cycle.disconnected) == (False, False, False)
    assert not protocol.parser.should_upgrade()


async def test_a_replaced_body_is_received_once_and_reset(protocol):
    """The fast path stores `bytes` in place of the buffer; `receive` must only copy and replace it."""
    protocol.connection_made(Transport())
    protocol.data_received(REQUEST)
    cycle = protocol.cycle
    cycle.body = b"12345"
    cycle.message_event.set()
    message = await cycle.receive()
    assert (message["body"], message["more_body"]) == (b"12345", True)
    assert cycle.body == b""


async def test_a_new_parser_takes_the_next_request(protocol):
    """The fast path ends a body itself: it calls `on_message_complete` and replaces the parser."""
    protocol.connection_made(Transport())
    protocol.data_received(REQUEST)
    first = protocol.cycle
    protocol.parser = type(protocol.parser)(protocol)
    protocol.parser.set_dangerous_leniencies(lenient_data_after_close=True)
    protocol.on_message_complete()
    assert first.more_body is False
    protocol.data_received(b"GET /y HTTP/1.1\r\nhost: x\r\n\r\n")
    assert protocol.cycle is not first
    assert [cycle for cycle, _ in protocol.pipeline] == [protocol.cycle]


async def test_the_parser_stops_at_an_upgrade_and_tells_where_its_head_ends(protocol):
    """`_parse` gives the head without the header `upgrade` and the rest of the bytes to a new parser."""
    protocol.connection_made(Transport())
    head = REQUEST.replace(b"host: x", b"connection: upgrade\r\nupgrade: h2c")
    with pytest.raises(httptools.HttpParserUpgrade) as caught:
        protocol.parser.feed_data(head + b"12345")
    assert caught.value.args == (len(head),)
    assert protocol.parser.should_upgrade()
    assert (protocol.parser.get_method(), protocol.parser.get_http_version()) == (b"POST", "1.1")
    assert (protocol.url, protocol.headers[1]) == (b"/x", (b"upgrade", b"h2c"))


async def test_the_parser_raises_the_error_of_a_callback_as_context(protocol, monkeypatch):
    def on_headers_complete() -> None:
        raise LookupError

    monkeypatch.setattr(protocol, "on_headers_complete", on_headers_complete)
    protocol.connection_made(Transport())
    protocol.parser = type(protocol.parser)(protocol)
    with pytest.raises(httptools.HttpParserError) as caught:
        protocol.parser.feed_data(REQUEST)
    assert isinstance(caught.value.__context__, LookupError)
    with pytest.raises(httptools.HttpParserError) as caught:
        type(protocol.parser)(protocol).feed_data(b"nonsense\r\n\r\n")
    assert caught.value.__context__ is None


async def test_a_connection_without_tls_has_the_scheme_http(protocol):
    protocol.connection_made(Transport())
    assert protocol.scheme == "http"


async def test_an_expected_100_continue_is_decided_before_the_cycle_is_made(protocol):
    protocol.connection_made(Transport())
    protocol.data_received(REQUEST.replace(b"host: x", b"expect: 100-continue"))
    assert protocol.expect_100_continue
    assert protocol.cycle.waiting_for_100_continue


async def test_the_flow_pauses_and_resumes_the_transport(protocol):
    transport = Transport()
    protocol.connection_made(transport)
    protocol.flow.pause_reading()
    assert transport.is_reading_paused
    protocol.flow.resume_reading()
    assert not transport.is_reading_paused


def test_a_request_that_a_stop_cancels_leaves_no_traceback_in_the_log(caplog):
    http_config(app, ApiSettings())
    log = logging.getLogger("uvicorn.error")
    for error in (asyncio.CancelledError(), ValueError("a defect")):
        log.error("Exception in ASGI application\n", exc_info=error)
    assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [ValueError]
    assert '"uvicorn.error"' in inspect.getsource(uvicorn.config)
