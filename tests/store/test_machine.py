"""A Hypothesis state machine: roles stall, crash, report late and race, on two stores over one database.

The model records only which lease is held. After every step it checks that the tally of a batch equals the
sum of its segments, tokens only grow, a lost lease changes nothing, and no batch is published twice.
"""

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from nightmill.core.batch import Batch, Event, Status, Tally, Usage
from nightmill.core.file import File, Purpose
from nightmill.core.segment import PinnedPart, SegmentReport
from nightmill.core.slice import JoinedPiece, JoinedSlice, cut_slices
from nightmill.store import open_store
from nightmill.store.batch_leases import BatchLeases
from nightmill.store.batches import Batches
from nightmill.store.leases import Leases
from nightmill.store.segments import Segments
from nightmill.store.slices import Slices
from tests.slow import examples
from tests.store.conftest import stopping
from tests.store_doubles import even_segments

TTL_S = 30.0
CANCELLABLE = (Status.VALIDATING, Status.IN_PROGRESS)
stores = st.integers(0, 1)
picks = st.integers(0, 1_000)


class Died(Exception):  # noqa: N818 - it is an event, not an error
    """The process died in the middle of a transaction."""


def write_uncommitted_changes(connection) -> None:
    """Changes rows of every kind and dies before the commit."""
    Segments.lease(connection, "ghost", limit=100, ttl_s=TTL_S)
    Segments.release_expired(connection)
    BatchLeases.lease(connection, list(Status), "ghost", ttl_s=TTL_S)
    Leases.release_all(connection)
    Slices.lease(connection, "ghost", ttl_s=TTL_S)
    for batch in Batches.settled(connection):
        Batches.move(connection, batch.after(Event.SETTLED, now=0), expected=batch.status)
    raise Died


class StoreMachine(RuleBasedStateMachine):
    databases: Any  # set by the test

    @initialize()
    def open(self) -> None:
        url, self.clock = self.databases.fresh()
        self.runner = asyncio.Runner()
        self.url = url
        self.stores = [open_store(self.url, clock=self.clock) for _ in range(2)]
        self.statuses: dict[str, Status] = {}
        self.leases = []
        self.holders: dict[tuple[str, int], tuple[int, float]] = {}
        self.tokens: dict[tuple[str, int], int] = {}
        self.batch_leases = []
        self.batch_holders: dict[str, tuple[int, float]] = {}
        self.published: set[str] = set()
        self.cut: dict[str, dict[int, tuple[int, float] | None]] = {}  # holders of slices that are not joined
        self.slice_leases = []

    def teardown(self) -> None:
        if hasattr(self, "runner"):
            for store in self.stores:
                self.runner.run(store.close())
            self.runner.close()

    # --- the model ---

    def holds(self, lease) -> bool:
        token, _ = self.holders.get((lease.segment.batch_id, lease.segment.number), (0, 0.0))
        return token == lease.token

    def holds_batch(self, lease) -> bool:
        token, _ = self.batch_holders.get(lease.batch.id, (0, 0.0))
        return token == lease.token and self.statuses[lease.batch.id] is lease.batch.status

    def holds_slice(self, lease) -> bool:
        token, _ = self.cut.get(lease.slice.batch_id, {}).get(lease.slice.number) or (0, 0.0)
        return token == lease.token

    def moved(self, batch_id: str, status: Status) -> None:
        self.statuses[batch_id] = status
        self.batch_holders.pop(batch_id, None)

    def remove_holders(self, batch_id: str | None = None, *, lapsed: bool = False) -> int:
        gone = [
            key
            for key, (_, ends) in self.holders.items()
            if batch_id in (None, key[0]) and (not lapsed or ends <= self.clock.now)
        ]
        for key in gone:
            del self.holders[key]
        return len(gone)

    def read(self, batch_id: str) -> Batch:
        return self.runner.run(self.stores[0].batches.get("p", batch_id))

    # --- what happens ---

    @rule(store=stores)
    def create(self, store: int) -> None:
        number = len(self.statuses)
        made = Batch(
            id=f"batch_{number}",
            project_id="p",
            endpoint="/v1/embeddings",
            input_file_id="file-in",
            input_blob_key="files/in",
            completion_window="24h",
            created_at=int(self.clock.now),
            expires_at=int(self.clock.now) + 86_400,
        )
        assert self.runner.run(self.stores[store].batches.create(made)) == made
        self.statuses[made.id] = Status.VALIDATING

    @rule(store=stores, wants_last=st.booleans())
    def lease_batch(self, store: int, wants_last: bool) -> None:
        statuses = (Status.FINALIZING, Status.CANCELLING) if wants_last else (Status.VALIDATING,)
        lease = self.runner.run(self.stores[store].batch_leases.lease(statuses, "role", ttl_s=TTL_S))
        free = [
            batch_id
            for batch_id, status in self.statuses.items()
            if status in statuses
            and not self.cut.get(batch_id)
            and self.batch_holders.get(batch_id, (0, 0.0))[1] <= self.clock.now
            and not any(
                key[0] == batch_id and ends > self.clock.now for key, (_, ends) in self.holders.items()
            )
        ]
        assert (lease.batch.id if lease else None) == (free[0] if free else None)
        if lease is not None:
            earlier = [it.token for it in self.batch_leases if it.batch.id == lease.batch.id]
            assert lease.token > max(earlier, default=0)
            assert lease.is_sliced == (lease.batch.id in self.cut)
            self.remove_holders(lease.batch.id)
            self.batch_leases.append(lease)
            self.batch_holders[lease.batch.id] = (lease.token, self.clock.now + TTL_S)

    @precondition(lambda self: self.batch_leases)
    @rule(store=stores, pick=picks, total=st.integers(1, 7))
    def end_batch_lease(self, store: int, pick: int, total: int) -> None:
        """Accepts or publishes a batch, with a valid lease or a lost one."""
        lease = self.batch_leases[-1 - pick % len(self.batch_leases)]
        is_valid = self.holds_batch(lease)
        one, batch = self.stores[store], lease.batch
        match batch.status:
            case Status.VALIDATING:
                after = replace(batch.after(Event.ACCEPTED, now=self.clock.now), total=total)
                segments = even_segments(batch.id, total=total, lines_per_segment=3)
                accepting = one.batch_leases.accept(lease, after, index_blob_key="index", segments=segments)
                done = self.runner.run(accepting) == after
            case _:
                is_cancelled = batch.status is Status.CANCELLING
                after = batch.after(Event.CANCELLED if is_cancelled else Event.EXPIRED, now=self.clock.now)
                output = File(
                    f"file-{batch.id}",
                    "p",
                    Purpose.BATCH_OUTPUT,
                    "out.jsonl",
                    1,
                    int(self.clock.now),
                    None,
                    "key",
                )
                done = self.runner.run(one.batch_leases.publish(lease, after, files=[output]))
                if done:
                    self.cut.pop(batch.id, None)
                    assert batch.id not in self.published
                    self.published.add(batch.id)
        assert done == is_valid
        if done:
            self.moved(batch.id, after.status)

    @precondition(lambda self: self.batch_leases)
    @rule(store=stores, pick=picks, keeps=st.booleans())
    def renew_or_release_batch_lease(self, store: int, pick: int, keeps: bool) -> None:
        lease = self.batch_leases[-1 - pick % len(self.batch_leases)]
        is_valid = self.holds_batch(lease)
        if keeps:
            assert self.runner.run(self.stores[store].batch_leases.renew(lease)) == is_valid
            if is_valid:
                self.batch_holders[lease.batch.id] = (lease.token, self.clock.now + TTL_S)
            return
        self.runner.run(self.stores[store].batch_leases.release(lease))
        if is_valid:
            del self.batch_holders[lease.batch.id]

    @precondition(lambda self: self.batch_leases)
    @rule(store=stores, pick=picks, count=st.integers(1, 3))
    def cut_into_slices(self, store: int, pick: int, count: int) -> None:
        lease = self.batch_leases[-1 - pick % len(self.batch_leases)]
        batch_id = lease.batch.id
        if lease.batch.status is Status.VALIDATING or lease.is_sliced:
            return
        is_valid = self.holds_batch(lease)
        pieces = list(cut_slices(batch_id, segments=count, segments_per_slice=1))
        assert self.runner.run(self.stores[store].slices.cut(lease, pieces)) == is_valid
        if is_valid:
            del self.batch_holders[batch_id]
            self.cut[batch_id] = dict.fromkeys(range(count))

    @rule(store=stores)
    def lease_slice(self, store: int) -> None:
        free = {
            (batch_id, number)
            for batch_id, numbers in self.cut.items()
            for number, holder in numbers.items()
            if holder is None or holder[1] <= self.clock.now
        }
        lease = self.runner.run(self.stores[store].slices.lease("finalizer", ttl_s=TTL_S))
        assert (lease is None) == (not free)
        if lease is not None:
            key = (lease.slice.batch_id, lease.slice.number)
            assert key in free
            assert lease.batch.status is self.statuses[key[0]]
            earlier = [it.token for it in self.slice_leases if it.slice == lease.slice]
            assert lease.token == max(earlier, default=0) + 1
            self.cut[key[0]][key[1]] = (lease.token, self.clock.now + TTL_S)
            self.slice_leases.append(lease)

    @precondition(lambda self: self.slice_leases)
    @rule(store=stores, pick=picks, verb=st.sampled_from(["keep", "release", "complete", "complete"]))
    def report_slice(self, store: int, pick: int, verb: str) -> None:
        """The holder of a slice lease reports, in time or long after the lease was lost."""
        lease = self.slice_leases[-1 - pick % len(self.slice_leases)]
        one, it, is_valid = self.stores[store], lease.slice, self.holds_slice(lease)
        match verb:
            case "keep":
                assert self.runner.run(one.slices.renew(lease)) == is_valid
                if is_valid:
                    self.cut[it.batch_id][it.number] = (lease.token, self.clock.now + TTL_S)
            case "release":
                self.runner.run(one.slices.release(lease))
                if is_valid:
                    self.cut[it.batch_id][it.number] = None
            case _:
                piece = JoinedPiece(f"{it.batch_id}.{it.number}.{lease.token}", 5)
                joined = JoinedSlice(it, piece, None, 3, 0, Tally(3))
                assert self.runner.run(one.slices.complete(lease, joined)) == is_valid
                if is_valid:
                    assert joined in self.runner.run(one.slices.joined(it.batch_id))
                    del self.cut[it.batch_id][it.number]

    @rule(store=stores, limit=st.integers(1, 3))
    def lease(self, store: int, limit: int) -> None:
        leases = self.runner.run(self.stores[store].segments.lease("worker", limit=limit, ttl_s=TTL_S))
        for lease in leases:
            key = (lease.segment.batch_id, lease.segment.number)
            assert key not in self.holders, "two leases for one segment"
            assert self.statuses[key[0]] is Status.IN_PROGRESS
            self.holders[key] = (lease.token, self.clock.now + TTL_S)
            self.leases.append(lease)

    @precondition(lambda self: self.leases)
    @rule(
        store=stores,
        pick=picks,
        answered=st.integers(0, 3),
        verb=st.sampled_from(["beat", "pin", "complete", "release"]),
    )
    def report_segment(self, store: int, pick: int, answered: int, verb: str) -> None:
        """The holder of a segment lease reports, in time or long after the lease was lost."""
        lease = self.leases[-1 - pick % len(self.leases)]
        one, segment = self.stores[store], lease.segment
        key = (segment.batch_id, segment.number)
        answered = segment.count if verb == "complete" else min(answered, segment.count)
        tally = Tally(answered, 0, Usage(answered, 0, answered, 0, 2 * answered))
        report = SegmentReport(segment.batch_id, segment.number, lease.token, tally)
        part = PinnedPart(f"{key}/{lease.token}", 10 * answered)
        is_valid = self.holds(lease)
        match verb:
            case "beat":
                reply = self.runner.run(one.segments.renew("worker", [report], ttl_s=TTL_S))
                assert (key not in reply.lost) == is_valid
                status = self.statuses[segment.batch_id]
                assert stopping(reply).get(segment.batch_id, Status.IN_PROGRESS) is status
                if is_valid:
                    self.holders[key] = (lease.token, self.clock.now + TTL_S)
            case "pin":
                assert self.runner.run(one.segments.pin_parts(lease, [part], report)) == is_valid
            case "complete":
                assert self.runner.run(one.segments.complete(lease, report, [part])) == is_valid
            case _:
                assert self.runner.run(one.segments.release(lease, report, [part])) == is_valid
        if is_valid and verb in ("complete", "release"):
            del self.holders[key]

    @precondition(lambda self: self.statuses)
    @rule(store=stores, pick=picks, event=st.sampled_from([Event.CANCEL_REQUESTED, Event.LAPSED]))
    def stop(self, store: int, pick: int, event: Event) -> None:
        batch_id = list(self.statuses)[pick % len(self.statuses)]
        batch = self.read(batch_id)
        expected = (Status.IN_PROGRESS,) if event is Event.LAPSED else CANCELLABLE
        if batch.status not in expected:
            return
        after = batch.after(event, now=self.clock.now)
        assert self.runner.run(self.stores[store].batches.move(after, expected=batch.status))
        assert not self.runner.run(self.stores[1 - store].batches.move(after, expected=batch.status))
        self.moved(batch_id, after.status)

    @rule(store=stores)
    def settle(self, store: int) -> None:
        for batch in self.runner.run(self.stores[store].batches.settled()):
            assert batch.tally.answered == batch.total
            after = batch.after(Event.SETTLED, now=self.clock.now)
            assert self.runner.run(self.stores[store].batches.move(after, expected=batch.status))
            self.moved(batch.id, after.status)

    @rule(store=stores)
    def reap(self, store: int) -> None:
        assert self.runner.run(self.stores[store].segments.release_expired()) == self.remove_holders(
            lapsed=True
        )

    @rule(seconds=st.sampled_from([1.0, 29.0, 31.0]))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule(store=stores)
    def restart(self, store: int) -> None:
        freed = self.remove_holders() + len(self.batch_holders)
        self.batch_holders.clear()
        for numbers in self.cut.values():
            freed += sum(holder is not None for holder in numbers.values())
            numbers.update(dict.fromkeys(numbers))
        assert self.runner.run(self.stores[store].leases.release_all()) == freed

    @rule(store=stores, in_a_transaction=st.booleans())
    def crash(self, store: int, in_a_transaction: bool) -> None:
        """A process dies, between two transactions or within one, and another opens the database."""
        dying = self.stores[store]
        if in_a_transaction:
            with pytest.raises(Died):
                self.runner.run(dying.database.write(write_uncommitted_changes))
        self.runner.run(dying.close())
        self.stores[store] = open_store(self.url, clock=self.clock)

    # --- what always holds ---

    @invariant()
    def project_usage_matches_its_rows(self) -> None:
        if not hasattr(self, "runner"):
            return
        used = self.runner.run(self.stores[0].projects.consumption("p"))
        assert used.open.batches == sum(not status.is_terminal for status in self.statuses.values())
        assert used.stored_bytes == len(self.published)
        rows = self.runner.run(self.stores[1].usage.totals(["project"]))
        assert sum(row.batches for row in rows) == len(self.published)

    @invariant()
    def batch_tally_matches_its_segments(self) -> None:
        for batch_id, status in getattr(self, "statuses", {}).items():
            batch = self.read(batch_id)
            assert batch.status is status
            results = self.runner.run(self.stores[1].segments.results(batch_id))
            counted = Tally()
            for result in results:
                counted = counted.plus(result.tally)
                key = (batch_id, result.segment.number)
                assert result.token >= self.tokens.get(key, 0), "a token decreased"
                self.tokens[key] = result.token
            if batch.status.is_terminal:
                assert results == []
            else:
                assert counted == batch.tally


def test_no_order_of_events_breaks_an_invariant(kind, databases):
    StoreMachine.databases = databases
    run_state_machine_as_test(
        StoreMachine,
        settings=settings(
            max_examples=examples(30 if kind == "sqlite" else 12),
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )
