"""The settings of what is kept for how long, the audit log and the rows of batches, and of free disk space.

The times of files are in `sections.LimitSettings`, since clients may choose others; those of webhook
deliveries are in `webhooks`.
"""

from typing import Annotated

from pydantic import Field, model_validator

from nightmill.core.usage import DAY_S
from nightmill.settings.upstreams import Section


class AuditSettings(Section):
    """The log of who did what (`nightmill audit`)."""

    ttl_s: Annotated[int, Field(ge=0)] = 365 * DAY_S
    """Age in seconds at which an entry is removed; 0 keeps all. Entries of a project under legal hold stay.
    """
    downloads: bool = False
    """Log each download of a file too. A download then needs a writable store."""


class RetentionSettings(Section):
    """How often maintenance runs, how long rows are kept, and how much disk space stays free."""

    sweep_s: Annotated[float, Field(gt=0)] = 5.0
    """Seconds between two searches for lapsed leases, overdue batches and expired files."""
    free_bytes: Annotated[int, Field(ge=0)] = 256 << 20
    """Uploads are refused and batches pause when less disk space than this is free."""
    rows_kept_s: Annotated[int, Field(ge=0)] = 0
    """Age in seconds at which the row of an ended batch whose files are gone is removed, and that of a
    deleted file; at least a day. 0 keeps all, a few kB for a batch (docs/disk.md). `nightmill prune`
    removes them by hand. The totals of `nightmill usage` stay."""

    @model_validator(mode="after")
    def _check(self) -> "RetentionSettings":
        if 0 < self.rows_kept_s < DAY_S:
            raise ValueError(f"rows_kept_s must be 0 or at least {DAY_S}, which is a day")
        return self
