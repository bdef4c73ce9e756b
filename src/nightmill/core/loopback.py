"""Which addresses only this machine can reach. No I/O.

The API, the recovery at a start, the name of an upstream and the address of a Ray cluster depend on it, so it
lies below all of them.
"""

from ipaddress import ip_address


def is_loopback(host: str) -> bool:
    """Whether a host name or IP address surely names this machine's loopback interface.

    Only the name `localhost` counts; no other name is looked up.
    """
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
