"""One POST of a webhook, to an address that was checked for this very connection.

The host is resolved here, each address is checked, and the connection goes to those addresses only, while
TLS still verifies the host's name. So an answer of the name server that changes between check and connection
changes nothing. Redirects are not followed, the body of the answer is not read, and the environment's proxies
and `.netrc` are not used.
"""

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Final, TypeAlias

from yarl import URL

from nightmill.core.webhook import DeliveryAttempt
from nightmill.core.webhook_url import RefusedUrlError, checked_url, networks_of, refusal_of
from nightmill.settings import WebhookSettings

Resolve: TypeAlias = Callable[[str, int], Sequence[str]]
"""The addresses of a host, as text. Blocks. Raises OSError if there are none."""

_LOOKUPS_AT_ONCE: Final = 8
_LOOKUP_S: Final = 5.0


class NoAnswerError(Exception):
    """Why there is no status, in a few words that name no URL."""


def addresses_of(host: str, port: int) -> Sequence[str]:
    """Asks the resolver of this machine."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class WebhookSender:
    """Checks URLs, and posts to them.

    Args:
        tls: verifies the receivers' certificates; by default against the authorities of this machine.
        monotonic: seconds, for durations.
    """

    def __init__(
        self,
        settings: WebhookSettings,
        *,
        resolve: Resolve = addresses_of,
        tls: ssl.SSLContext | None = None,
        monotonic: Callable[[], float],
    ) -> None:
        self._allowed = networks_of(settings.allow_private)
        self._allow_http = settings.allow_http
        self._timeout_s = settings.timeout_s
        self._resolve = resolve
        self._given_tls = tls
        self._monotonic = monotonic

    @cached_property
    def _lookups(self) -> ThreadPoolExecutor:
        # Threads of its own, so that a name server that hangs holds up nothing else in the process.
        return ThreadPoolExecutor(_LOOKUPS_AT_ONCE, thread_name_prefix="webhook-lookup")

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        return self._given_tls or ssl.create_default_context()

    async def check(self, url: str) -> None:
        """Raises RefusedUrlError when nothing would be sent to the URL, and says why."""
        _, host, port = self._target(url)
        await self._checked_addresses(host, port)

    async def post(
        self, url: str, payload: str, headers: Mapping[str, str], *, now: float
    ) -> DeliveryAttempt:
        """The attempt: a status, or an error that names no more of the URL than its host.

        Args:
            now: Unix seconds, the time of the attempt.
        """
        begun = self._monotonic()
        status, error = None, None
        try:
            async with asyncio.timeout(self._timeout_s):
                status = await self._status(url, payload, headers)
        except TimeoutError:
            error = f"no answer within {self._timeout_s:g} s"
        except RefusedUrlError as refused:
            error = f"the URL is refused: {refused}"
        except NoAnswerError as failure:
            error = str(failure)
        duration_s = round(self._monotonic() - begun, 3)
        return DeliveryAttempt(at=now, duration_s=duration_s, status_code=status, error=error)

    def close(self) -> None:
        if "_lookups" in self.__dict__:
            self._lookups.shutdown(wait=False, cancel_futures=True)

    async def _status(self, url: str, payload: str, headers: Mapping[str, str]) -> int:
        target, host, port = self._target(url)
        addresses = await self._checked_addresses(host, port)
        from nightmill.webhooks.over_aiohttp import status_of_post  # noqa: PLC0415 - slow to import

        return await status_of_post(
            target, payload.encode(), headers=headers, addresses=addresses, tls=self._tls
        )

    def _target(self, url: str) -> tuple[URL, str, int]:
        """The URL as it is sent to, with its host and port, on which both readers of URLs must agree."""
        host, port = checked_url(url, allow_http=self._allow_http)
        try:
            target = URL(url, encoded=True)
            if (target.host or "").lower() == host.lower() and target.port == port:
                return target, host, port
        except ValueError:
            pass
        raise RefusedUrlError("its host is written in a way that programs read differently")

    async def _checked_addresses(self, host: str, port: int) -> Sequence[str]:
        loop = asyncio.get_running_loop()
        looking: Awaitable[Sequence[str]] = loop.run_in_executor(self._lookups, self._resolve, host, port)
        try:
            async with asyncio.timeout(_LOOKUP_S):
                addresses = await looking
        except (OSError, UnicodeError):  # TimeoutError is an OSError
            raise RefusedUrlError(f"the host {host} can't be resolved") from None
        if not addresses:
            raise RefusedUrlError(f"the host {host} has no address")
        for address in addresses:
            if (reason := refusal_of(address, allowed=self._allowed)) is not None:
                message = (
                    f"{host} {reason}" if host == address else f"{host} resolves to {address}, which {reason}"
                )
                raise RefusedUrlError(f"{message} (the setting webhooks.allow_private allows networks)")
        return addresses
