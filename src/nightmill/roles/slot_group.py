"""The attempts of one upstream that share a concurrency limit: those of all its models, or of one model."""

from collections.abc import Iterable, Sequence
from typing import Final

from nightmill.core.batch import Usage
from nightmill.core.concurrency import Slots
from nightmill.core.counts import UpstreamCounts
from nightmill.core.engine_gauges import EngineGauges
from nightmill.core.failure import Failure, FailureKind
from nightmill.core.health import LineRecord
from nightmill.upstream.registry import UpstreamRuntime


class SlotGroup:
    """Attempts that share slots, in one worker.

    Args:
        slots: the worker's grant.
        model: the model whose attempts these are, None for all models of the upstream.

    Attributes:
        in_flight: attempts in flight, cheap requests included.
        settled: lines that were settled.
        tokens: output tokens of their answers.
    """

    __slots__ = (
        "_rate_count",
        "_rate_since",
        "_settled_ahead",
        "in_flight",
        "model",
        "settled",
        "slots",
        "tokens",
    )

    def __init__(self, slots: Slots, model: str | None = None) -> None:
        self.slots = slots
        self.model = model
        self.in_flight = 0
        self.settled = 0
        self.tokens = 0
        self._rate_since = 0.0
        self._rate_count = 0
        self._settled_ahead = 0

    def room(self, now: float) -> int:
        """How many attempts may start now."""
        return self.slots.limit(now) - self.in_flight

    def note_starts(self, count: int) -> None:
        """Notes attempts that start."""
        self.in_flight += count

    def note_end(self, count: int = 1) -> None:
        """Notes that attempts have ended."""
        self.in_flight -= count

    def note_settled(self) -> None:
        """Notes a line that was settled without a result."""
        self.settled += 1

    def count_answers(
        self, durations_s: Sequence[float], usages: Iterable[Usage], counts: UpstreamCounts
    ) -> None:
        """Notes answered lines here and in the counts of the upstream; see `UpstreamCounts.note_answers`."""
        busy_s, tokens = counts.note_answers(durations_s, usages)
        self.note_answers(len(durations_s), tokens=tokens, busy_s=busy_s)

    def note_answers(self, count: int, *, tokens: int, busy_s: float) -> None:
        """Notes answered lines; arguments as for `Slots.note_answers`."""
        self.settled += count
        self.tokens += tokens
        self.slots.note_answers(count, tokens=tokens, busy_s=busy_s)

    def note_overload(
        self, failure: Failure, record: LineRecord, *, started_at: float, are_lines_refused: bool
    ) -> None:
        """Notes a refusal for load or a time-out for an adaptive limit, unless the line is the cause.

        Args:
            record: the failures of the line, this one included.
            are_lines_refused: see `Health.lines_are_refused`.
        """
        if failure.kind is FailureKind.LOAD and not are_lines_refused:
            self.slots.note_refused(started_at)
        elif failure.kind is FailureKind.LATE and not record.is_explained:
            self.slots.note_timed_out(started_at)

    def lines_ahead(self, now: float, *, ahead_s: float) -> int:
        """How many lines the worker should keep leased: twice the granted slots, or twice the lines that are
        settled in `ahead_s`, whichever is more."""
        elapsed_s = now - self._rate_since
        if elapsed_s > ahead_s:
            self._settled_ahead = int((self.settled - self._rate_count) / elapsed_s * ahead_s)
            self._rate_since, self._rate_count = now, self.settled
        return 2 * max(1, self.slots.limit(now), self._settled_ahead)


class SlotGroups:
    """The groups of one upstream: one for each model with a limit of its own, and one for all others."""

    __slots__ = ("_gauges", "_groups")

    def __init__(self) -> None:
        self._groups: dict[str | None, SlotGroup] = {}
        self._gauges: EngineGauges | None = None

    @property
    def groups(self) -> list[SlotGroup]:
        return list(self._groups.values())

    def of(self, runtime: UpstreamRuntime, model: str | None) -> SlotGroup:
        """The attempts that share slots with those of a model that lines name."""
        sent = runtime.sent_model(model)
        key = sent if sent in runtime.limited_models else None
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = SlotGroup(runtime.slots_of(key), key)
            group.slots.use_share(runtime.load_share)
        return group

    @property
    def share(self) -> float:
        """This worker's part of the upstream's rate limits, from 0 to 1."""
        return max(group.slots.share for group in self._groups.values())

    def note_ends(self, groups: Sequence[SlotGroup]) -> None:
        """Notes that attempts have ended, by their groups."""
        if len(self._groups) == 1:
            groups[0].note_end(len(groups))
            return
        for group in groups:
            group.note_end()

    def note_gauges(self, gauges: EngineGauges | None) -> None:
        """Notes a new reading of the engine's gauges."""
        self._gauges = gauges

    def take_gauges(self, group: SlotGroup) -> EngineGauges | None:
        """The newest reading that was not taken before, for the slots of a group.

        The gauges count the requests for all models, so they say nothing about one of several groups.
        """
        if any(other.in_flight for other in self._groups.values() if other is not group):
            return None
        gauges, self._gauges = self._gauges, None
        return gauges


NO_GROUP: Final = SlotGroup(Slots("", concurrency_limit=1, ttl_s=0.0, ask_every_s=0.0))
"""Of lines that were never sent."""
