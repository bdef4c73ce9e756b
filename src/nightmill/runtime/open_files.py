"""As many open files as the system lets a process have without asking.

The usual soft limit of 1,024 is for programs that still use select(); it is less than `api.max_connections`.
"""

import contextlib

try:
    import resource
except ImportError:  # Windows has no such limit
    resource = None

_MOST = 65_536


def raise_open_file_limit() -> None:
    if resource is None:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST if hard == resource.RLIM_INFINITY else min(hard, _MOST)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    with contextlib.suppress(ValueError, OSError):  # macOS has a lower limit than it says
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
