"""One upstream: send one request line, return an outcome.

port.py          the interfaces the worker knows
attempts.py      any upstream as one that tells its outcomes
connect.py       settings -> an open upstream
target.py        where requests go and what headers they carry
answer.py        what an HTTP answer means as an outcome
http1.py         the lean transport: pool, deadlines; connection.py is one connection of it
over_aiohttp.py  the second transport, for proxies
probe.py         the usual local servers
"""

from nightmill.upstream.attempts import attempts_of
from nightmill.upstream.connect import open_upstream
from nightmill.upstream.port import Attempts, Upstream
from nightmill.upstream.probe import FoundServer, find_local_servers

__all__ = ["Attempts", "FoundServer", "Upstream", "attempts_of", "find_local_servers", "open_upstream"]
