"""An upstream's setting in the store: what was changed at run time. No I/O."""

from dataclasses import dataclass
from enum import StrEnum


class UpstreamState(StrEnum):
    """What an operator wants of an upstream."""

    ACTIVE = "active"
    """Lines are sent."""
    PAUSED = "paused"
    """No attempt starts; lines for its models wait."""
    DRAINING = "draining"
    """No attempt starts, and other upstreams with the same models take its lines."""
    REMOVED = "removed"
    """As if the upstream were not in the settings."""

    @property
    def may_start(self) -> bool:
        """Whether attempts may start."""
        return self is UpstreamState.ACTIVE

    @property
    def is_open(self) -> bool:
        """Whether lines may wait for the upstream while others serve their model."""
        return self in {UpstreamState.ACTIVE, UpstreamState.PAUSED}


@dataclass(frozen=True, slots=True)
class UpstreamSetting:
    """One row: an upstream that was added, changed, paused, drained or removed at run time.

    Args:
        name: the upstream's name.
        document: the JSON of its settings, its key included; None for those of the settings file.
        state: what is wanted of the upstream.
        revision: grows by one with each change; a change names the revision that it replaces.
        changed_at: Unix seconds.
    """

    name: str
    document: str | None
    state: UpstreamState
    revision: int
    changed_at: float
