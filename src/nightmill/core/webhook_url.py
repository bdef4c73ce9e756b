"""Which URLs and addresses webhooks may be sent to. No I/O.

A user of the API names the URL, and the server that sends may reach machines that the user can't. So an
address that is not public is refused unless the operator allows its network, and it is checked for each
connection: a name may resolve to another address every time.
"""

from collections.abc import Iterable, Sequence
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from typing import Final, TypeAlias
from urllib.parse import urlsplit

Address: TypeAlias = IPv4Address | IPv6Address
Network: TypeAlias = IPv4Network | IPv6Network

LONGEST_URL: Final = 2_048
_PORTS: Final = {"https": 443, "http": 80}
# Addresses of clouds' metadata services that are not in a private network.
_METADATA: Final = frozenset({ip_address("168.63.129.16")})
_NAT64: Final = ip_network("64:ff9b::/96")
# Named here too, because versions of Python differ in which of them are not global.
_NOT_PUBLIC: Final[Sequence[Network]] = tuple(
    ip_network(text)
    for text in ("0.0.0.0/8", "100.64.0.0/10", "192.0.0.0/24", "198.18.0.0/15", "64:ff9b:1::/48", "fec0::/10")
)
_COMPATIBLE: Final = ip_network("::/96")


class RefusedUrlError(ValueError):
    """Why nothing is sent to a URL. The message names neither path nor query, which may hold a key."""


def place_of(url: str) -> str:
    """Scheme, host and port of a valid URL, for logs and messages."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def checked_url(url: str, *, allow_http: bool) -> tuple[str, int]:
    """The host and the port of the URL.

    Raises:
        RefusedUrlError: it is no URL for webhooks.
    """
    if len(url) > LONGEST_URL:
        raise RefusedUrlError(f"it is longer than {LONGEST_URL} characters")
    if not url.isascii() or any(letter <= " " or letter in "\\\x7f" for letter in url):
        raise RefusedUrlError("it has a space, a backslash, a control character or a letter beyond ASCII")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise RefusedUrlError("it is not a URL such as https://example.com/hook") from None
    if parts.scheme not in _PORTS or not host:
        raise RefusedUrlError("it must begin with https:// and name a host")
    if parts.username is not None or parts.password is not None:
        raise RefusedUrlError("it has a user name or a password; put a token into the path instead")
    if parts.fragment:
        raise RefusedUrlError("it has a fragment (#...), which is never sent")
    if parts.scheme == "http" and not allow_http:
        raise RefusedUrlError("it must begin with https:// (the setting webhooks.allow_http allows http)")
    if port == 0:
        raise RefusedUrlError("its port is 0")
    return host, port or _PORTS[parts.scheme]


def networks_of(texts: Iterable[str]) -> tuple[Network, ...]:
    """Raises ValueError for a text that is neither a network such as `10.0.0.0/8` nor an address."""
    return tuple(ip_network(text, strict=True) for text in texts)


def refusal_of(text: str, *, allowed: Sequence[Network] = ()) -> str | None:
    """Why nothing is sent to an address; None if it is public or in an allowed network.

    Args:
        text: as the resolver of names returns it; IPv6 may have a zone.
    """
    try:
        address = ip_address(text)
    except ValueError:
        return "is not an IP address"
    carried = _carried(address)
    for one in (address, *carried):
        if any(one in network for network in allowed if network.version == one.version):
            return None
    return next((reason for one in (*carried, address) if (reason := _reason(one))), None)


def _carried(address: Address) -> tuple[IPv4Address, ...]:
    """The IPv4 addresses that an IPv6 address leads to: mapped, compatible, translated or tunnelled."""
    if isinstance(address, IPv4Address):
        return ()
    last = IPv4Address(int(address) & 0xFFFF_FFFF)
    if address.ipv4_mapped is not None:
        return (address.ipv4_mapped,)
    if address in _NAT64:
        return (last,)
    if address in _COMPATIBLE and int(address) > 1:
        return (last,)
    if address.sixtofour is not None:
        return (address.sixtofour,)
    if address.teredo is not None:
        return address.teredo
    return ()


def _reason(address: Address) -> str | None:
    if address.is_loopback:
        return "is a loopback address"
    if address.is_link_local:
        return "is a link-local address, as of metadata services"
    if address in _METADATA:
        return "is the address of a metadata service"
    if address.is_unspecified:
        return "is the unspecified address"
    if address.is_multicast:
        return "is a multicast address"
    mapped = isinstance(address, IPv6Address) and (address.ipv4_mapped is not None or address in _NAT64)
    if mapped:
        return None
    is_listed = any(address in network for network in _NOT_PUBLIC if network.version == address.version)
    is_public = address.is_global and not address.is_reserved and not is_listed
    return None if is_public else "is a private or reserved address"
