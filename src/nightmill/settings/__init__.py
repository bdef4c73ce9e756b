"""Typed settings: `sections` says what can be set, `loading` where the values come from, `effective` which
upstreams are in effect after changes at run time.
"""

from nightmill.settings.emulator import EmulatorSettings, FaultSettings
from nightmill.settings.loading import (
    as_message,
    from_message,
    load,
    with_own_secrets,
    without_secrets,
)
from nightmill.settings.problems import PREFIX
from nightmill.settings.sections import (
    ApiSettings,
    BlobSettings,
    DashboardSettings,
    LimitSettings,
    ModelSettings,
    QuotaSettings,
    RayModelSettings,
    RaySettings,
    Settings,
    TraceSettings,
    WorkerSettings,
)
from nightmill.settings.upstreams import ANY_MODEL, DEFAULT_NAME, UpstreamSettings
from nightmill.settings.webhooks import WebhookSettings

__all__ = [
    "ANY_MODEL",
    "DEFAULT_NAME",
    "PREFIX",
    "ApiSettings",
    "BlobSettings",
    "DashboardSettings",
    "EmulatorSettings",
    "FaultSettings",
    "LimitSettings",
    "ModelSettings",
    "QuotaSettings",
    "RayModelSettings",
    "RaySettings",
    "Settings",
    "TraceSettings",
    "UpstreamSettings",
    "WebhookSettings",
    "WorkerSettings",
    "as_message",
    "from_message",
    "load",
    "with_own_secrets",
    "without_secrets",
]
