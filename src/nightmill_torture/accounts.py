"""Accounts of a run: what each fault may cost, and what it did cost.

After a fault, requests in flight and requests without a durable answer may be sent again. That is checked
request by request at the end (`repeats`). On one machine two counts are checked as well: the lines that were
sent and have no durable answer when all processes are dead, and the repeats in all. Both are bounded by the
attempts in flight and the answers of one commit, for each kill.
"""

from collections.abc import Sequence
from pathlib import Path
from time import monotonic, time
from typing import Final

from nightmill.failpoints import FAILPOINTS, Failpoint
from nightmill_torture.member import Member
from nightmill_torture.plan import (
    LEASE_TTL_S,
    Fault,
    Injection,
    is_of_parent,
    is_of_worker,
)
from nightmill_torture.proof import repeated
from nightmill_torture.record import Record, Request
from nightmill_torture.repeats import RepeatBound, unexplained
from nightmill_torture.report import Report
from nightmill_torture.storage import Storage
from nightmill_torture.stored import StoredAnswers
from nightmill_torture.upstream import SLOW_S

TOO_MANY_UNDONE: Final = "kills that left more undone than was in flight"
TOO_OFTEN: Final = "repeated above the bound"
_ORPHANS_S = 2.0
"""Workers whose parent was killed end within this time, beside the next server."""


class Accounts:
    """Compares what the storage holds with what the upstream was asked, while a run goes on.

    Args:
        reached: the folder in which a process leaves the name of the failpoint that killed it.
    """

    def __init__(
        self, report: Report, storage: Storage, record: Record, answers: StoredAnswers, *, reached: Path
    ) -> None:
        self.bound = RepeatBound()
        self._report = report
        self._plan = report.plan
        self._storage = storage
        self._record = record
        self._answers = answers
        self._reached = reached
        self._has_orphans = False
        self._unanswered = 0
        self._audited = 0
        self._may_be_undone = 0

    # --- starts of the only server -------------------------------------------------------------------

    @property
    def is_clean_start(self) -> bool:
        """Whether the next start finds unanswered lines and no orphans."""
        return self._unanswered > 0 and not self._has_orphans

    def has_reached(self, points: Sequence[Failpoint]) -> bool:
        return all((self._reached / name).exists() for name in points)

    def add_start(self, started: float, answered: float, *, is_clean: bool) -> None:
        """Adds the start of a server and its first answer to a poll; both are monotonic times."""
        self._report.answers_after_s.append(answered - started)
        request = self._record.first_request_after(started)
        if is_clean and request is not None:
            self._report.requests_after_s.append(request - started)
            self._report.delays_s.append(max(0.0, request - answered))

    # --- faults --------------------------------------------------------------------------------------

    def begin_fault(self, injection: Injection) -> None:
        """A fault that begins now. While an upstream is down, the server may be killed."""
        if injection.fault is Fault.UPSTREAM_KILLED and not self._plan.is_fleet:
            self._allow(self._plan.upstream_concurrency)

    async def add_fault(self, injection: Injection, victims: Sequence[Member], began: float) -> None:
        """A fault that began at that monotonic time and is over."""
        fault, now = injection.fault, monotonic()
        if not self._plan.is_fleet:
            self._add_failpoints(victims[0])
        if self._plan.may_repeat(fault):
            for victim in victims:
                if fault.action == "cut store":  # it sends on, and may lose its leases later, or never
                    self.bound.add_fault(victim.name, began, now + LEASE_TTL_S)
                elif fault.action == "freeze":
                    self.bound.add_fault(victim.name, began, began)
                    self.bound.add_fault(victim.name, now, now)  # it sends what it was about to send
                else:
                    self.bound.add_fault(victim.name, began, now + self._orphans_s(fault))
        if self._plan.is_fleet:
            return
        match fault:
            case Fault.SERVER_KILLED:
                await self._audit()
            case Fault.SERVER_ORPHANED:
                self._add_parent_death()
            case Fault.WORKER_KILLED:
                self._allow(self._per_worker)
            case _:
                pass

    def _orphans_s(self, fault: Fault) -> float:
        return _ORPHANS_S if fault is Fault.SERVER_ORPHANED else 0.0

    def _add_failpoints(self, server: Member) -> None:
        """Failpoints that killed a process since the last look, at the times their files were made."""
        for name in FAILPOINTS:
            path = self._reached / name
            if name in self._report.points or not path.exists():
                continue
            self._report.points.add(name)
            self._report.faults[Fault.FAILPOINT] += 1
            moment = monotonic() - (time() - path.stat().st_mtime)
            if is_of_parent(name):  # its workers end with the API process
                self._add_parent_death()
                self.bound.add_fault(server.name, moment, moment + _ORPHANS_S)
            elif is_of_worker(name):
                self._allow(self._per_worker)
                self.bound.add_fault(server.name, moment, moment)

    def _add_parent_death(self) -> None:
        self._allow(self._plan.concurrency)
        self._has_orphans = True
        self._unanswered = 0

    @property
    def _per_worker(self) -> int:
        return -(-self._plan.concurrency // self._plan.workers_per_member)

    def _allow(self, in_flight: int) -> None:
        """A dead worker may leave undone its attempts in flight and the answers of one commit.

        An answer waits for the write before its own, then for its interval, then for its own write.
        """
        commit_s = self._storage.commit_interval_s + 2 * self._storage.recent_write_s
        undone = in_flight + self._record.most_requests_in(commit_s)
        self._report.bound += undone
        self._may_be_undone += undone

    async def _audit(self) -> None:
        """All processes are dead: compares what is undone with what was in flight.

        Lines that earlier kills left undone and that were not sent again since count for those kills only.
        """
        report = self._report
        self._allow(self._plan.concurrency)
        self._record.take()
        markers = self._record.markers
        death = await self._answers.read_after_death(markers)
        undone = len(death.undone & set(markers[self._audited :]))
        report.most_undone = max(report.most_undone, undone)
        report.proof.check(TOO_MANY_UNDONE)
        if undone > self._may_be_undone:
            report.proof.breach(TOO_MANY_UNDONE, f"{undone} lines, not {self._may_be_undone}")
        self._may_be_undone, self._audited = 0, len(markers)
        self._has_orphans = False
        self._unanswered = death.unanswered

    # --- the end -------------------------------------------------------------------------------------

    def check_repeats(self, slow_lines: set[str]) -> None:
        """`slow_lines` are those that the upstream answers after `SLOW_S`."""
        report, requests = self._report, self._record.requests
        report.repeated = repeated(self._record.markers)
        report.durable_after_s = self._storage.commit_interval_s + 2 * self._storage.slowest_write_s

        def durable_after_s(request: Request) -> float:
            answer_s = SLOW_S if request.marker in slow_lines else self._plan.delay_s
            return answer_s + report.durable_after_s

        repeatable = self.bound.repeatable(requests, durable_after_s=durable_after_s)
        report.proof.check(TOO_OFTEN)
        for request in unexplained(requests, repeatable):
            report.proof.breach(TOO_OFTEN, f"{request.marker} by {request.sender}")
        if self._plan.is_fleet:
            report.bound = len(repeatable)
        elif report.repeated > report.bound:
            report.proof.breach(TOO_OFTEN, f"{report.repeated} requests, not {report.bound}")
