"""Where requests go and which headers they carry. No I/O.

Checks the operator's URL, key and headers once. Guarantee: nothing that a client of the Batch API sends can
choose the host, add a header or leave the base path.
"""

import re
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from nightmill.core.upstream_url import base_url
from nightmill.errors import SetupError
from nightmill.settings import UpstreamSettings

_ENDPOINT = re.compile(r"/v1((?:/[A-Za-z0-9_-][A-Za-z0-9_.-]*)+)")
_HEADER_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_HEADER_VALUE = re.compile(r"[\x21-\x7e](?:[\t\x20-\x7e]*[\x21-\x7e])?")
_OWN_HEADERS = frozenset(
    {
        "accept-encoding",
        "connection",
        "content-length",
        "content-type",
        "expect",
        "host",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)


@dataclass(frozen=True, slots=True)
class Target:
    """A checked base URL and the headers of every request, except those that each transport writes itself."""

    scheme: str
    host: str
    port: int
    prefix: str
    query: str
    headers: tuple[tuple[str, str], ...] = field(repr=False)  # holds the key

    @property
    def is_secure(self) -> bool:
        return self.scheme == "https"

    @property
    def authority(self) -> str:
        """The Host header."""
        host = self.host.partition("%")[0]
        host = f"[{host}]" if ":" in host else host
        return host if self.port == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    def path_of(self, endpoint: str) -> str:
        """'/v1/embeddings' below the base path, which stands for the '/v1'."""
        found = _ENDPOINT.fullmatch(endpoint)
        if found is None:
            raise ValueError(f"not an endpoint: {endpoint!r}")
        return f"{self.prefix}{found[1]}{self.query}"


_DEFAULT_PORTS = {"http": 80, "https": 443}


def target_of(url: str, settings: UpstreamSettings) -> Target:
    """Checks the settings of an upstream.

    A URL without a path means `/v1`. `settings.url` is not read.

    Raises:
        SetupError: something can't be used; the message names the setting and never holds the key.
    """
    try:
        parts = urlsplit(base_url(url))
    except ValueError as error:
        raise SetupError(f"upstream.url: {error}") from None
    host = parts.hostname or ""
    return Target(
        scheme=parts.scheme,
        host=host if ":" in host else host.encode("idna").decode("ascii"),
        port=_DEFAULT_PORTS[parts.scheme] if parts.port is None else parts.port,
        prefix=parts.path.rstrip("/") or "/v1",
        query=f"?{parts.query}" if parts.query else "",
        headers=tuple(_headers(settings).items()),
    )


def _headers(settings: UpstreamSettings) -> dict[str, str]:
    merged = {"user-agent": "nightmill", "accept": "application/json"}
    if settings.api_key is not None:
        api_key = settings.api_key.get_secret_value()
        if not _HEADER_VALUE.fullmatch(api_key):
            raise SetupError("upstream.api_key is empty or holds characters a header can't carry")
        merged["authorization"] = f"Bearer {api_key}"
    for name, value in settings.headers.items():
        if not _HEADER_NAME.fullmatch(name):
            raise SetupError(f"upstream.headers: {name!r} is not a header name")
        if name.lower() in _OWN_HEADERS:
            raise SetupError(f"upstream.headers: {name!r} is written by nightmill itself")
        if not _HEADER_VALUE.fullmatch(value):
            raise SetupError(
                f"upstream.headers: the value of {name!r} is empty or holds characters a header can't carry"
            )
        merged[name.lower()] = value
    return merged
