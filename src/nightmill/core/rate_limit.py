"""An upstream's rate limits: requests and tokens per minute, as token buckets. No I/O."""

_MINUTE_S = 60.0

_BURST_S = 1.0

_ROUNDING = 1e-6


class Rate:
    """So much per minute, as a bucket that starts empty: a restart grants nothing anew.

    In any minute at most the limit passes, and one more for each worker.
    """

    __slots__ = ("_level", "_per_minute", "_since")

    def __init__(self, per_minute: int) -> None:
        self._per_minute = per_minute
        self._level = 0.0
        self._since: float | None = None

    def wait_s(self, now: float, *, share: float) -> float:
        """How long until one may pass; 0 when it may now, or when there is no limit."""
        if not self._per_minute:
            return 0.0
        per_s = share * self._per_minute * (1 - _BURST_S / _MINUTE_S) / _MINUTE_S
        if self._since is not None:
            fullest = max(1.0, per_s * _BURST_S)
            self._level = min(fullest, self._level + (now - self._since) * per_s)
        self._since = now
        if self._level >= 1.0 - _ROUNDING:
            return 0.0
        return (1.0 - self._level) / per_s if per_s else 1.0

    def spend(self, amount: float) -> None:
        """What passed. It may be known only afterwards, so the level may fall below nothing."""
        if self._per_minute:
            self._level -= amount
