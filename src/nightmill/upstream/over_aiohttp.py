"""The second transport, over aiohttp, for features that the lean transport lacks: proxies of the environment.

The guarantees are those of `http1`, except one: unrequested bytes on an idle connection are taken for the
next answer, and no setting of aiohttp prevents that. A request costs six to ten times as much CPU. Proxies
come from HTTP_PROXY, HTTPS_PROXY and NO_PROXY, which are read once, with credentials in the proxy's URL.
"""

import asyncio
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from types import SimpleNamespace
from urllib.request import getproxies, proxy_bypass

import aiohttp
from yarl import URL

from nightmill.core.outcome import Broken, Outcome, TimedOut, TooLong, Unreachable, sent_again
from nightmill.upstream.answer import GONE, KEPT_HEADERS, body_of_ok, outcome_of
from nightmill.upstream.http1 import IDLE_S, MODELS_TIMEOUT_S, reason_of
from nightmill.upstream.target import Target

_FIRST_FINAL_STATUS = 200
_LARGE_BYTES = 1 << 20


@dataclass(slots=True)
class _Trace:
    """What aiohttp reports about the connection of one request."""

    connected: bool = False
    reused: bool = False


@dataclass(frozen=True, slots=True)
class _Request:
    method: str
    url: URL
    body: bytes | None
    limit_bytes: int


class AiohttpUpstream:
    """An upstream over aiohttp. Bound to the event loop of its first request. Arguments as `LeanUpstream`."""

    def __init__(
        self,
        target: Target,
        *,
        tls: ssl.SSLContext | None,
        connect_timeout_s: float,
        max_answer_bytes: int,
        idle_s: float = IDLE_S,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._target = target
        self._tls = tls
        self._connect_timeout_s = connect_timeout_s
        self._max_answer_bytes = max_answer_bytes
        self._idle_s = idle_s
        self._wall_clock = wall_clock
        self._sessions: tuple[aiohttp.ClientSession, aiohttp.ClientSession] | None = None
        self._closed = False

    async def send(self, endpoint: str, body: bytes, *, timeout_s: float) -> Outcome:
        path = self._target.path_of(endpoint)
        limit_bytes = self._max_answer_bytes
        return await self._exchange("POST", path, body, timeout_s=timeout_s, limit_bytes=limit_bytes)

    async def models(self) -> bytes | None:
        path = self._target.path_of("/v1/models")
        outcome = await self.get(path, timeout_s=MODELS_TIMEOUT_S, max_answer_bytes=self._max_answer_bytes)
        return body_of_ok(outcome)

    async def get(self, path: str, *, timeout_s: float, max_answer_bytes: int) -> Outcome:
        return await self._exchange("GET", path, None, timeout_s=timeout_s, limit_bytes=max_answer_bytes)

    async def close(self) -> None:
        self._closed = True
        if self._sessions is not None:
            for session in self._sessions:
                await session.close()

    async def _exchange(
        self, method: str, path: str, body: bytes | None, *, timeout_s: float, limit_bytes: int
    ) -> Outcome:
        url = URL(f"{self._target.scheme}://{self._target.authority}{path}", encoded=True)
        if self._closed:
            return Unreachable("the upstream was closed by nightmill")
        pooled, single_use = self._sessions or self._open_sessions()
        request = _Request(method, url, body, limit_bytes)
        trace = _Trace()
        outcome: Outcome | None = None
        is_again = False
        try:
            async with asyncio.timeout(timeout_s):
                outcome = await self._attempt(pooled, request, trace)
                if outcome is None and not self._closed:
                    is_again = True
                    outcome = await self._attempt(single_use, request, _Trace(connected=True))
        except TimeoutError:
            if not trace.connected:
                return Unreachable("no connection within the attempt's time")
            outcome = TimedOut(timeout_s)
        if not is_again:
            return outcome or GONE
        return sent_again(outcome or GONE, first=GONE)

    async def _attempt(
        self, session: aiohttp.ClientSession, request: _Request, trace: _Trace
    ) -> Outcome | None:
        """The outcome; None if a reused connection was closed before a byte of the answer arrived."""
        answering = False
        try:
            async with session.request(
                request.method,
                request.url,
                data=_payload(request.body),
                allow_redirects=False,
                trace_request_ctx=trace,
            ) as response:
                answering = True
                return await self._read(response, request.limit_bytes)
        except aiohttp.ConnectionTimeoutError:
            return Unreachable(f"no connection within {self._connect_timeout_s:g} s")
        except aiohttp.ClientConnectorCertificateError as error:
            cause = error.certificate_error
            return Unreachable(reason_of(cause) if isinstance(cause, OSError) else "TLS certificate mismatch")
        except aiohttp.ClientConnectorError as error:
            return Unreachable(reason_of(error.os_error))
        except aiohttp.ClientHttpProxyError as error:
            return Unreachable(f"the proxy answers {error.status}")
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
            partial = isinstance(error, aiohttp.ServerDisconnectedError) and not isinstance(
                error.message, str
            )
            if trace.reused and not answering and not partial:
                return None
            place = "in the middle of the answer" if answering or partial else "before an answer came"
            return Broken(f"the connection was closed {place}")
        except aiohttp.ClientPayloadError:
            return Broken("the connection was closed in the middle of the answer")
        except aiohttp.ClientError:
            return Broken("the answer is not HTTP/1.1")

    async def _read(self, response: aiohttp.ClientResponse, limit_bytes: int) -> Outcome:
        if response.status < _FIRST_FINAL_STATUS:
            response.close()
            return Broken("the answer is not HTTP/1.1")
        size_bytes = response.content_length or 0
        body = BytesIO()  # to join a list of chunks would need the memory of two answers
        while size_bytes <= limit_bytes:
            chunk = await response.content.readany()
            if not chunk:
                break
            size_bytes = body.tell() + body.write(chunk)
        else:
            response.close()
            return TooLong(limit_bytes)
        kept = {name.lower(): value for name, value in response.raw_headers if name.lower() in KEPT_HEADERS}
        return outcome_of(
            response.status,
            body.getvalue(),
            headers=kept,
            max_bytes=limit_bytes,
            now=self._wall_clock(),
        )

    def _open_sessions(self) -> tuple[aiohttp.ClientSession, aiohttp.ClientSession]:
        self._sessions = (
            self._session(self._connector_of_many()),
            # The second attempt after a stale connection must not meet the next stale one.
            self._session(aiohttp.TCPConnector(limit=0, force_close=True, ssl=self._tls or True)),
        )
        return self._sessions

    def _connector_of_many(self) -> aiohttp.TCPConnector:
        return aiohttp.TCPConnector(limit=0, keepalive_timeout=self._idle_s, ssl=self._tls or True)

    def _session(self, connector: aiohttp.TCPConnector) -> aiohttp.ClientSession:
        trace = aiohttp.TraceConfig()
        trace.on_connection_reuseconn.append(_on_reused)
        trace.on_connection_create_end.append(_on_created)
        return aiohttp.ClientSession(
            connector=connector,
            headers={**dict(self._target.headers), "content-type": "application/json"},
            skip_auto_headers=("accept-encoding",),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            proxy=_proxy_for(self._target),
            trace_configs=[trace],
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._connect_timeout_s),
        )


def _proxy_for(target: Target) -> str | None:
    """The proxy that the environment names. `trust_env` of aiohttp would read it for each request."""
    return None if proxy_bypass(target.host) else getproxies().get(target.scheme)


def _payload(body: bytes | None) -> bytes | BytesIO | None:
    """The body for aiohttp, which writes a file in pieces, and warns of large bytes written in one call."""
    return BytesIO(body) if body is not None and len(body) > _LARGE_BYTES else body


async def _on_reused(
    session: aiohttp.ClientSession,  # noqa: ARG001 - the interface's
    context: SimpleNamespace,
    params: aiohttp.TraceConnectionReuseconnParams,  # noqa: ARG001 - the interface's
) -> None:
    trace: _Trace = context.trace_request_ctx
    trace.connected = trace.reused = True


async def _on_created(
    session: aiohttp.ClientSession,  # noqa: ARG001 - the interface's
    context: SimpleNamespace,
    params: aiohttp.TraceConnectionCreateEndParams,  # noqa: ARG001 - the interface's
) -> None:
    trace: _Trace = context.trace_request_ctx
    trace.connected = True
