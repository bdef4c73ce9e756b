"""The POST itself, over aiohttp: to given addresses only, and without anything of the environment."""

import os
import socket
import ssl
from collections.abc import Mapping, Sequence
from typing import Final

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from nightmill.webhooks.sender import NoAnswerError

_MOST_HEADER_BYTES: Final = 8_190
_SKIPPED: Final = ("Accept", "Accept-Encoding", "User-Agent")


async def status_of_post(
    url: URL, body: bytes, *, headers: Mapping[str, str], addresses: Sequence[str], tls: ssl.SSLContext
) -> int:
    """The status of the answer, whose body is not read.

    Args:
        addresses: where the connection may go; if the URL names an address, it goes there.

    Raises:
        NoAnswerError: no answer came.
    """
    connector = aiohttp.TCPConnector(
        resolver=_Fixed(url.host or "", addresses), force_close=True, ssl=tls, use_dns_cache=False
    )
    try:
        async with (
            aiohttp.ClientSession(
                connector=connector,
                cookie_jar=aiohttp.DummyCookieJar(),
                skip_auto_headers=_SKIPPED,
                trust_env=False,
                timeout=aiohttp.ClientTimeout(total=None),
                max_line_size=_MOST_HEADER_BYTES,
                max_field_size=_MOST_HEADER_BYTES,
            ) as session,
            session.post(url, data=body, headers=headers, allow_redirects=False) as response,
        ):
            status = response.status
            response.close()  # the body is of no interest, and may have no end
            return status
    except (aiohttp.ClientError, OSError, ValueError) as failure:
        raise NoAnswerError(_reason_of(failure)) from None


class _Fixed(AbstractResolver):
    """Answers with the addresses that were checked, and for no other host."""

    def __init__(self, host: str, addresses: Sequence[str]) -> None:
        self._host = host
        self._addresses = addresses

    async def resolve(
        self,
        host: str,
        port: int = 0,
        family: socket.AddressFamily = socket.AF_INET,  # noqa: ARG002 - of the interface
    ) -> list[ResolveResult]:
        if host.lower() != self._host.lower():
            raise OSError(f"{host} was not checked")
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=socket.IPPROTO_TCP,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for address in self._addresses
        ]

    async def close(self) -> None:
        pass


def _reason_of(failure: Exception) -> str:
    """A few words of our own: the library's messages repeat the URL."""
    match failure:
        case aiohttp.ClientConnectorCertificateError():
            return "its TLS certificate is not valid for the host"
        case aiohttp.ClientSSLError():
            return "no TLS connection"
        case aiohttp.ClientConnectorError():
            number = failure.os_error.errno
            return f"no connection ({os.strerror(number)})" if number else "no connection"
        case aiohttp.ServerDisconnectedError() | OSError():
            return "the connection was closed before an answer came"
        case _:
            return "the answer is not HTTP/1.1"
