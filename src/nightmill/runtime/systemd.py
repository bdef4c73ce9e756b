"""Reports to a process supervisor that this process is ready, by systemd's notification protocol.

`NOTIFY_SOCKET` names a datagram socket by a path, or by an abstract name that begins with `@`. systemd sets
the variable for a unit of `Type=notify` (sd_notify(3)). Without it nothing is sent, and errors are ignored.
"""

import contextlib
import os
import socket

_VARIABLE = "NOTIFY_SOCKET"
_TIMEOUT_S = 1.0


def notify_ready() -> None:
    """Sends READY=1 to the supervisor, if there is one."""
    address = os.environ.get(_VARIABLE)
    if not address:
        return
    if address.startswith("@"):
        address = f"\0{address[1:]}"
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as supervisor:
        supervisor.settimeout(_TIMEOUT_S)
        supervisor.sendto(b"READY=1", address)
