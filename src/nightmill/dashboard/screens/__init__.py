"""The screens of the dashboard, one module each; `SCREENS` registers their routes."""

from types import ModuleType
from typing import Final

from nightmill.dashboard.screens import (
    actions,
    batch,
    batches,
    files,
    line,
    new_batch,
    projects,
    sign_in,
    system,
    try_request,
    upstreams,
    webhooks,
    workers,
)

SCREENS: Final[tuple[ModuleType, ...]] = (
    sign_in,
    batches,
    actions,
    batch,
    line,
    new_batch,
    try_request,
    files,
    upstreams,
    workers,
    webhooks,
    projects,
    system,
)
