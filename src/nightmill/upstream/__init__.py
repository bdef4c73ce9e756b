"""Sends one request line to an upstream and returns its outcome.

port.py          the interfaces that the worker uses
registry.py      the named upstreams of one worker process
attempts.py      adapts an upstream without callbacks to one that calls back
connect.py       settings -> an open upstream
target.py        where requests go and which headers they carry
answer.py        the outcome that an HTTP answer stands for
rate_headers.py  what the headers of an answer say about the upstream's rate limits
http1.py         the lean transport: connections and deadlines; connection.py is one connection
over_aiohttp.py  the second transport, for proxies
probe.py         looks for the usual local servers
gauges.py        the load that an engine publishes on its metrics page
diagnosis.py     tries an upstream and says what is wrong; advice.py has the sentences
"""

from nightmill.upstream.attempts import attempts_of
from nightmill.upstream.connect import open_upstream
from nightmill.upstream.port import Attempts, Upstream
from nightmill.upstream.probe import FoundServer, find_local_servers

__all__ = ["Attempts", "FoundServer", "Upstream", "attempts_of", "find_local_servers", "open_upstream"]
