"""What an operator may write as the base URL of an upstream, and the URL that is meant. No I/O.

`localhost:11434` means `http://localhost:11434`. A text that can't be a base URL is refused with the reason,
before anything is started for it. The path is not completed: a URL without one means `/v1`.
"""

import re
from ipaddress import ip_address
from typing import Final
from urllib.parse import SplitResult, urlsplit

from nightmill.core.loopback import is_loopback

_PATH: Final = re.compile(r"[!$%&'()*+,\-./0-9:;=@A-Z_a-z~]*")
_QUERY: Final = re.compile(r"[!$%&'()*+,\-./0-9:;=?@A-Z_a-z~]*")
_SCHEMES: Final = frozenset({"http", "https"})
_TLS_PORT: Final = 443
_PLAIN_PORT: Final = 80
_LAST_PORT: Final = 65_535
_REPEATED_PORT_CHARACTERS: Final = 8
_ANY_ADDRESS: Final = frozenset({"0.0.0.0", "::"})  # noqa: S104 - compared, not bound
_EXAMPLE: Final = "it must look like http://host:port/v1 or https://host/v1"


def base_url(given: str) -> str:
    """The URL with its scheme.

    Without one, a name with a dot and without a port, as a provider has, means https; all others http.

    Raises:
        ValueError: the text can't be a base URL. The reason does not repeat the text, which may hold a key.
    """
    url = _with_scheme(given.strip())
    try:
        parts = urlsplit(url)
        host = parts.hostname
    except ValueError as error:
        raise ValueError(f"it is not a URL: {error}") from None
    _port_of(parts)
    if parts.scheme not in _SCHEMES or not host:
        raise ValueError(_EXAMPLE)
    if parts.username is not None or parts.password is not None:
        raise ValueError("it holds a user name or password; use upstream.api_key or upstream.headers")
    if parts.fragment:
        raise ValueError("it holds a '#'; use the URL up to and with /v1")
    if not _PATH.fullmatch(parts.path) or not _QUERY.fullmatch(parts.query):
        raise ValueError("it holds characters a path can't have; percent-encode them")
    if not _can_be_looked_up(host):
        raise ValueError("it holds a host name that can't be looked up")
    return url


def is_own_address(url: str, *, host: str, port: int) -> bool:
    """Whether a base URL surely leads to the server that listens on `host` and `port`."""
    parts = urlsplit(url)
    asked = parts.hostname or ""
    if (parts.port or (_TLS_PORT if parts.scheme == "https" else _PLAIN_PORT)) != port:
        return False
    if asked == host or asked in _ANY_ADDRESS:
        return True
    return is_loopback(asked) and (
        host in _ANY_ADDRESS or (is_loopback(host) and "localhost" in {asked, host})
    )


def _with_scheme(text: str) -> str:
    if "://" in text:
        return text
    try:
        parts = urlsplit(f"//{text}")
        host = parts.hostname or ""
    except ValueError:
        raise ValueError(_EXAMPLE) from None
    port = _port_of(parts)
    is_address = _is_address(host)
    if host in _SCHEMES or not (port is not None or is_address or "." in host or host == "localhost"):
        raise ValueError(_EXAMPLE)
    is_provider = port is None and not is_address and host != "localhost"
    return f"https://{text}" if is_provider or port == _TLS_PORT else f"http://{text}"


def _port_of(parts: SplitResult) -> int | None:
    """The port, or None without one.

    Raises:
        ValueError: it is no port. A short one is repeated; a long text may be a key.
    """
    text = parts.netloc.rpartition("@")[2].rpartition("]")[2].partition(":")[2]
    if ":" in text or not parts.hostname:
        raise ValueError(_EXAMPLE)
    if not text:
        return None
    is_short = len(text) <= _REPEATED_PORT_CHARACTERS
    if is_short and text.isascii() and text.isdigit() and 0 < int(text) <= _LAST_PORT:
        return int(text)
    given = f", not {text!r}" if is_short else ""
    raise ValueError(f"the port of the URL must be a number from 1 to {_LAST_PORT}{given}")


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _can_be_looked_up(host: str) -> bool:
    try:
        return ":" in host or bool(host.encode("idna"))
    except UnicodeError:
        return False
