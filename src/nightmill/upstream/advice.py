"""Sentences about what an upstream answers, or why it gives no answer, and what to do. No I/O.

A sentence holds a status and an error code of an answer, and nothing else that the server sent.
"""

from typing import assert_never

from nightmill.core.failure import AnswerError, FailureKind, kind_of
from nightmill.core.outcome import Answered, Broken, Outcome, TimedOut, TooLong, Unreachable
from nightmill.upstream.http1 import NOT_TRUSTED, REFUSED, UNKNOWN_HOST

_FORBIDDEN = 403
_TOO_MANY = 429
_NO_PATH = frozenset({404, 405})


def advice_on(error: AnswerError, *, has_key: bool) -> str:
    """What an answer without a result says, and what to do.

    Args:
        has_key: whether the request had a key.
    """
    said = f"{error.status} {error.code}" if error.code else f"{error.status}"
    kind = kind_of(error)
    match kind:
        case FailureKind.ACCESS:
            return _on_access(error, said, has_key=has_key)
        case FailureKind.ACCOUNT:
            return f"The account has no credit left ({said}): add credit, or raise its limit at the provider."
        case FailureKind.LOAD if error.status == _TOO_MANY:
            return f"The server limits the rate ({said}): try again later, or lower the concurrency."
        case FailureKind.LOAD:
            return f"The server is starting or has too much to do ({said}): try again later."
        case FailureKind.LATE:
            return f"The server gives no answer in time ({said}): see whether it is loaded or still starting."
        case FailureKind.REQUEST:
            return f"The server refuses the request ({said}): see whether it has this model and endpoint."
        case FailureKind.FAULT | FailureKind.UNREACHABLE:
            return f"The server fails ({said}): its log has the reason."
        case _:
            assert_never(kind)


def _on_access(error: AnswerError, said: str, *, has_key: bool) -> str:
    if 300 <= error.status < 400:
        return (
            f"The server redirects ({said}), and redirects are not followed: set url to the address to "
            "which it redirects, which often begins with https://."
        )
    if error.status in _NO_PATH:
        return (
            f"The server does not know the path ({said}): url must be the base of the API, which usually "
            "ends in /v1."
        )
    if not has_key:
        return f"The server wants a key ({said}): set api_key."
    if error.status == _FORBIDDEN:
        return f"The server does not let the key in ({said}): check api_key and what the key may use."
    return f"The server refuses the key ({said}): check api_key."


def advice_on_silence(outcome: Outcome, *, host: str, port: int) -> str:
    """Why there is no answer, and what to do.

    Args:
        outcome: any outcome but `Answered`.
        host: of the URL; so is `port`.
    """
    match outcome:
        case Unreachable(reason):
            return _on_no_connection(reason, host, port)
        case Broken(reason):
            return f"There is no usable answer: {reason}. See whether another service listens at port {port}."
        case TimedOut(timeout_s):
            return (
                f"The server takes the connection and gives no answer within {timeout_s:g} s: see whether it "
                "is still loading its model."
            )
        case TooLong(limit_bytes):
            return f"The answer is longer than {limit_bytes} bytes: see whether url is that of the API."
        case Answered():
            raise ValueError("an answer is not silence")
        case _:
            assert_never(outcome)


def _on_no_connection(reason: str, host: str, port: int) -> str:
    if reason.startswith(UNKNOWN_HOST):
        return f"The host name {host} can't be looked up: check its spelling in url and the name server."
    if reason.startswith(REFUSED):
        return f"{host} refuses the connection at port {port}: start the server, or correct the port in url."
    if not reason.startswith(NOT_TRUSTED):
        return f"{host} can't be reached at port {port}: {reason}. Check host, port and firewall."
    if "expired" in reason:
        return "The TLS certificate of the server has expired: renew it on the server."
    if "not yet valid" in reason:
        return "The TLS certificate of the server is not yet valid: check the clocks of both machines."
    if "mismatch" in reason:
        return f"The TLS certificate of the server is not for {host}: use the name in the certificate in url."
    return (
        f"{reason[0].upper()}{reason[1:]}. Add the authority that issued it to the trusted ones of this "
        "machine (SSL_CERT_FILE names a file of them), or set tls_verify to false."
    )
