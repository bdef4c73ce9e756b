"""One upstream: send one request line, return an outcome.

port.py          the interface the worker knows
connect.py       settings -> an open upstream
target.py        where requests go and what headers they carry
answer.py        what an HTTP answer means as an outcome
http1.py         the lean transport: pool, deadlines; connection.py is one connection of it
over_aiohttp.py  the second transport, for proxies
probe.py         the usual local servers
"""

from nightmill.upstream.connect import open_upstream
from nightmill.upstream.port import Upstream
from nightmill.upstream.probe import FoundServer, find_local_servers

__all__ = ["FoundServer", "Upstream", "find_local_servers", "open_upstream"]
