"""The areas of the dashboard, in the order of its navigation."""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Area:
    """An entry of the navigation.

    Args:
        name: of the area, as screens name it.
        path: of its first page below the root.
        needs_admin: whether only an admin key may see it.
    """

    name: str
    path: str
    needs_admin: bool = False


BATCHES: Final = Area("Batches", "./")
NEW_BATCH: Final = Area("New batch", "ui/new")
TRY: Final = Area("Try", "ui/try")
FILES: Final = Area("Files", "ui/files")
UPSTREAMS: Final = Area("Upstreams", "ui/upstreams", needs_admin=True)
WORKERS: Final = Area("Workers", "ui/workers", needs_admin=True)
WEBHOOKS: Final = Area("Webhooks", "ui/webhooks")
KEYS: Final = Area("Keys and projects", "ui/projects", needs_admin=True)
SYSTEM: Final = Area("System", "ui/system", needs_admin=True)
AREAS: Final = (BATCHES, NEW_BATCH, TRY, FILES, UPSTREAMS, WORKERS, WEBHOOKS, KEYS, SYSTEM)
