"""What is said of a server that refuses, fails or is away: the cause, and what to do.

A text names each thing once: where the server has already said what to do, nothing is added.
"""

import re
import socket
import ssl
from collections.abc import Iterator
from typing import Any, Final, cast

from nightmill.cli.screen import clean

_LOCAL: Final = frozenset({"127.0.0.1", "localhost", "::1"})
_RESOURCE: Final = re.compile(r"/(?:batches|files|uploads|models)(?:/.*)?\Z")
"""Where the base URL ends and the path of a published request begins."""
_OWN: Final = re.compile(r"(?:/v1)?/nightmill/v1/.*\Z")
_NO_SUCH_PATH: Final = ("invalid url", "not found", "404 page not found")


def connection_error(error: Any) -> str:
    """The message for a server to which no connection could be made."""
    place, host = place_of(error), error.request.url.host
    causes = list(_causes(error))
    if not host:
        return f"OPENAI_BASE_URL is not a URL: {clean(str(error.request.url))}; write http://HOST:PORT/v1"
    if any(isinstance(cause, socket.gaierror) for cause in causes):
        return f"there is no host named {clean(host)}; check OPENAI_BASE_URL"
    if any(isinstance(cause, ssl.SSLCertVerificationError) for cause in causes):
        return f"the certificate of {place} is not trusted; name its authority in SSL_CERT_FILE"
    if any(isinstance(cause, ssl.SSLError) for cause in causes):
        return f"{place} does not answer with TLS; if it is a plain server, use http:// in OPENAI_BASE_URL"
    step = "start one with: nightmill serve --emulate" if host in _LOCAL else "check OPENAI_BASE_URL"
    return f"no server at {place}; {step}"


def refusal(error: Any) -> str:
    """The message for a status of 401, 403 or another 4xx."""
    said = _said_by(error)
    if error.status_code == 404 and (said is None or said.lower().startswith(_NO_SUCH_PATH)):
        return _no_such_path(error)
    if said is None:
        return _not_openai(error)
    return said


def refused_key(error: Any) -> str:
    """The message for a missing or wrong key."""
    said = _said_by(error)
    if said is None:
        return _not_openai(error)
    if "OPENAI_API_KEY" in said:
        return said
    if "nightmill keys create" in said:
        return f"{_open_end(said)}; then set OPENAI_API_KEY to it"
    return f"{_open_end(said)}; set OPENAI_API_KEY to a key of this server (nightmill keys create NAME)"


def passing_failure(error: Any) -> str:
    """The message for a failure after which the same command works later."""
    said = _said_by(error)
    if said is None:
        return f"{place_of(error)} answered {error.status_code}; try again"
    return said if "again" in said.lower() else f"{_open_end(said)}; try again"


def place_of(error: Any) -> str:
    url = error.request.url
    return f"{url.scheme}://{url.netloc.decode('ascii')}"


def _said_by(error: Any) -> str | None:
    body: object = error.body
    if isinstance(body, dict) and "message" in body:
        return clean(str(cast("dict[str, object]", body)["message"]))
    return None  # not OpenAI's envelope


def _no_such_path(error: Any) -> str:
    """The cause of a 404 for a path that the server does not have."""
    place, path = place_of(error), str(error.request.url.path)
    if _OWN.search(path):
        prefix = _OWN.sub("", path)
        return f"{place}{prefix} is not a nightmill server, and only those have what this command needs"
    base = _RESOURCE.sub("", path)
    if base.endswith("/v1"):
        return f"{place}{base} has no Batch API; name a server that has it in OPENAI_BASE_URL"
    if "/v1" in base:
        right = base[: base.index("/v1")] + "/v1"
        return f"the base URL {place}{base} goes on behind /v1; set OPENAI_BASE_URL={place}{right}"
    return f"the base URL {place}{base} does not end in /v1; set OPENAI_BASE_URL={place}{base}/v1"


def _not_openai(error: Any) -> str:
    return (
        f"{place_of(error)} answered {error.status_code} and is not an OpenAI server; check OPENAI_BASE_URL"
    )


def _open_end(sentence: str) -> str:
    return sentence.rstrip(". ")


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error, what caused it, and the arguments of these that are errors: clients keep the first there."""
    below: BaseException | None = error
    while below is not None:
        yield below
        yield from (value for value in below.args if isinstance(value, BaseException))
        below = below.__cause__ or below.__context__
