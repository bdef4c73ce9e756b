"""Settings -> an open upstream. Opening makes no connection; the first attempt shows whether the upstream is
up.
"""

import ssl

from nightmill.errors import SetupError
from nightmill.settings import UpstreamSettings
from nightmill.upstream.http1 import LeanUpstream
from nightmill.upstream.port import Upstream
from nightmill.upstream.target import Target, target_of


def open_upstream(settings: UpstreamSettings, *, url: str) -> Upstream:
    """The upstream at `url`, over the transport that the settings name. The caller closes it.

    Args:
        settings: key, headers, limits, transport; their `url` is not read.
        url: the base URL, which stands for the '/v1' of each endpoint; without a path it means '/v1'.

    Raises:
        SetupError: the URL, key or headers can't be used.
    """
    return open_target(target_of(url, settings), settings)


def check_upstream(settings: UpstreamSettings, *, url: str) -> None:
    """Checks what can be checked without a connection.

    Raises:
        SetupError: as `open_upstream`.
    """
    _tls(target_of(url, settings), settings)


def open_target(target: Target, settings: UpstreamSettings) -> Upstream:
    """As `open_upstream`, for a base URL that is checked already."""
    tls = _tls(target, settings)
    match settings.transport:
        case "lean":
            return LeanUpstream(
                target,
                tls=tls,
                connect_timeout_s=settings.connect_timeout_s,
                max_answer_bytes=settings.max_answer_bytes,
            )
        case "aiohttp":
            from nightmill.upstream.over_aiohttp import (  # noqa: PLC0415 - slow to import, seldom used
                AiohttpUpstream,
            )

            return AiohttpUpstream(
                target,
                tls=tls,
                connect_timeout_s=settings.connect_timeout_s,
                max_answer_bytes=settings.max_answer_bytes,
            )


def _tls(target: Target, settings: UpstreamSettings) -> ssl.SSLContext | None:
    if not target.is_secure:
        return None
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    try:
        if settings.tls_ca is not None:
            context.load_verify_locations(settings.tls_ca)
        if settings.tls_certificate is not None:
            context.load_cert_chain(settings.tls_certificate, settings.tls_key)
    except (OSError, ssl.SSLError) as error:
        reason = error.strerror or type(error).__name__
        raise SetupError(
            f"the TLS files of upstream {settings.name!r} can't be used ({reason}); check tls_ca,"
            " tls_certificate and tls_key: each must be a PEM file"
        ) from None
    if not settings.tls_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
