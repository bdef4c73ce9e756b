"""Hypothesis plays roles that stall, crash, come late and race, on two stores over one database.

The model knows only who holds what. What it checks after every step: a batch counts what its segments count,
tokens only grow, whoever does not hold a lease or duty changes nothing, and no batch is published twice.
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
from nightmill.core.segment import PinnedPart, Report, cut_segments
from nightmill.core.slice import JoinedPiece, JoinedSlice, cut_slices
from nightmill.store import batches, duties, open_store, segments, slices

TTL_S = 30.0
CANCELLABLE = (Status.VALIDATING, Status.IN_PROGRESS)
stores = st.integers(0, 1)
picks = st.integers(0, 1_000)


class Died(Exception):  # noqa: N818 - it is an event, not an error
    """The process is gone."""


def half_of_everything(connection) -> None:
    """Moves all there is to move, and dies before it could commit."""
    segments.lease_segments(connection, "ghost", 100, TTL_S)
    segments.reap_segments(connection)
    duties.lease_duty(connection, list(Status), "ghost", TTL_S)
    duties.release_all_duties(connection)
    slices.lease_slice(connection, "ghost", TTL_S)
    for batch in batches.settled_batches(connection):
        batches.move_batch(connection, batch.after(Event.SETTLED, now=0), batch.status)
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
        self.duties = []
        self.duty_holders: dict[str, tuple[int, float]] = {}
        self.published: set[str] = set()
        self.cut: dict[str, dict[int, tuple[int, float] | None]] = {}  # who holds what is not joined
        self.slice_duties = []

    def teardown(self) -> None:
        if hasattr(self, "runner"):
            for store in self.stores:
                self.runner.run(store.close())
            self.runner.close()

    # --- the model ---

    def holds(self, lease) -> bool:
        token, _ = self.holders.get((lease.segment.batch_id, lease.segment.number), (0, 0.0))
        return token == lease.token

    def holds_duty(self, duty) -> bool:
        token, _ = self.duty_holders.get(duty.batch.id, (0, 0.0))
        return token == duty.token and self.statuses[duty.batch.id] is duty.batch.status

    def holds_slice(self, duty) -> bool:
        token, _ = self.cut.get(duty.slice.batch_id, {}).get(duty.slice.number) or (0, 0.0)
        return token == duty.token

    def moved(self, batch_id: str, status: Status) -> None:
        self.statuses[batch_id] = status
        self.duty_holders.pop(batch_id, None)

    def drop_holders(self, batch_id: str | None = None, *, lapsed: bool = False) -> int:
        gone = [
            key
            for key, (_, ends) in self.holders.items()
            if batch_id in (None, key[0]) and (not lapsed or ends <= self.clock.now)
        ]
        for key in gone:
            del self.holders[key]
        return len(gone)

    def read(self, batch_id: str) -> Batch:
        return self.runner.run(self.stores[0].batch("p", batch_id))

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
        assert self.runner.run(self.stores[store].create_batch(made)) == made
        self.statuses[made.id] = Status.VALIDATING

    @rule(store=stores, wants_last=st.booleans())
    def lease_duty(self, store: int, wants_last: bool) -> None:
        statuses = (Status.FINALIZING, Status.CANCELLING) if wants_last else (Status.VALIDATING,)
        duty = self.runner.run(self.stores[store].lease_duty(statuses, "role", ttl_s=TTL_S))
        free = [
            batch_id
            for batch_id, status in self.statuses.items()
            if status in statuses
            and not self.cut.get(batch_id)
            and self.duty_holders.get(batch_id, (0, 0.0))[1] <= self.clock.now
            and not any(
                key[0] == batch_id and ends > self.clock.now for key, (_, ends) in self.holders.items()
            )
        ]
        assert (duty.batch.id if duty else None) == (free[0] if free else None)
        if duty is not None:
            earlier = [it.token for it in self.duties if it.batch.id == duty.batch.id]
            assert duty.token > max(earlier, default=0)
            assert duty.is_sliced == (duty.batch.id in self.cut)
            self.drop_holders(duty.batch.id)
            self.duties.append(duty)
            self.duty_holders[duty.batch.id] = (duty.token, self.clock.now + TTL_S)

    @precondition(lambda self: self.duties)
    @rule(store=stores, pick=picks, total=st.integers(1, 7))
    def end_duty(self, store: int, pick: int, total: int) -> None:
        """Accepts or publishes, by right or too late."""
        duty = self.duties[-1 - pick % len(self.duties)]
        is_right = self.holds_duty(duty)
        one, batch = self.stores[store], duty.batch
        match batch.status:
            case Status.VALIDATING:
                after = replace(batch.after(Event.ACCEPTED, now=self.clock.now), total=total)
                segments = list(cut_segments(batch.id, total=total, lines_per_segment=3))
                accepting = one.accept_batch(duty, after, index_blob_key="index", segments=segments)
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
                done = self.runner.run(one.publish_batch(duty, after, files=[output]))
                if done:
                    self.cut.pop(batch.id, None)
                    assert batch.id not in self.published
                    self.published.add(batch.id)
        assert done == is_right
        if done:
            self.moved(batch.id, after.status)

    @precondition(lambda self: self.duties)
    @rule(store=stores, pick=picks, keeps=st.booleans())
    def keep_or_release_duty(self, store: int, pick: int, keeps: bool) -> None:
        duty = self.duties[-1 - pick % len(self.duties)]
        is_right = self.holds_duty(duty)
        if keeps:
            assert self.runner.run(self.stores[store].keep_duty(duty)) == is_right
            if is_right:
                self.duty_holders[duty.batch.id] = (duty.token, self.clock.now + TTL_S)
            return
        self.runner.run(self.stores[store].release_duty(duty))
        if is_right:
            del self.duty_holders[duty.batch.id]

    @precondition(lambda self: self.duties)
    @rule(store=stores, pick=picks, count=st.integers(1, 3))
    def cut_into_slices(self, store: int, pick: int, count: int) -> None:
        duty = self.duties[-1 - pick % len(self.duties)]
        batch_id = duty.batch.id
        if duty.batch.status is Status.VALIDATING or duty.is_sliced:
            return
        is_right = self.holds_duty(duty)
        pieces = list(cut_slices(batch_id, segments=count, segments_per_slice=1))
        assert self.runner.run(self.stores[store].cut_slices(duty, pieces)) == is_right
        if is_right:
            del self.duty_holders[batch_id]
            self.cut[batch_id] = dict.fromkeys(range(count))

    @rule(store=stores)
    def lease_slice(self, store: int) -> None:
        free = {
            (batch_id, number)
            for batch_id, numbers in self.cut.items()
            for number, holder in numbers.items()
            if holder is None or holder[1] <= self.clock.now
        }
        duty = self.runner.run(self.stores[store].lease_slice("finalizer", ttl_s=TTL_S))
        assert (duty is None) == (not free)
        if duty is not None:
            key = (duty.slice.batch_id, duty.slice.number)
            assert key in free
            assert duty.batch.status is self.statuses[key[0]]
            earlier = [it.token for it in self.slice_duties if it.slice == duty.slice]
            assert duty.token == max(earlier, default=0) + 1
            self.cut[key[0]][key[1]] = (duty.token, self.clock.now + TTL_S)
            self.slice_duties.append(duty)

    @precondition(lambda self: self.slice_duties)
    @rule(store=stores, pick=picks, verb=st.sampled_from(["keep", "release", "complete", "complete"]))
    def speak_of_a_slice(self, store: int, pick: int, verb: str) -> None:
        """Whoever joins a slice, in time or long after it lost it."""
        duty = self.slice_duties[-1 - pick % len(self.slice_duties)]
        one, it, is_right = self.stores[store], duty.slice, self.holds_slice(duty)
        match verb:
            case "keep":
                assert self.runner.run(one.keep_slice(duty)) == is_right
                if is_right:
                    self.cut[it.batch_id][it.number] = (duty.token, self.clock.now + TTL_S)
            case "release":
                self.runner.run(one.release_slice(duty))
                if is_right:
                    self.cut[it.batch_id][it.number] = None
            case _:
                piece = JoinedPiece(f"{it.batch_id}.{it.number}.{duty.token}", 5)
                joined = JoinedSlice(it, piece, None, 3, 0, Tally(3))
                assert self.runner.run(one.complete_slice(duty, joined)) == is_right
                if is_right:
                    assert joined in self.runner.run(one.joined_slices(it.batch_id))
                    del self.cut[it.batch_id][it.number]

    @rule(store=stores, limit=st.integers(1, 3))
    def lease(self, store: int, limit: int) -> None:
        leases = self.runner.run(self.stores[store].lease_segments("worker", limit=limit, ttl_s=TTL_S))
        for lease in leases:
            key = (lease.segment.batch_id, lease.segment.number)
            assert key not in self.holders, "two hold one segment"
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
    def speak(self, store: int, pick: int, answered: int, verb: str) -> None:
        """A holder reports, in time or long after it lost its lease."""
        lease = self.leases[-1 - pick % len(self.leases)]
        one, segment = self.stores[store], lease.segment
        key = (segment.batch_id, segment.number)
        answered = segment.count if verb == "complete" else min(answered, segment.count)
        tally = Tally(answered, 0, Usage(answered, 0, answered, 0, 2 * answered))
        report = Report(segment.batch_id, segment.number, lease.token, tally)
        part = PinnedPart(f"{key}/{lease.token}", 10 * answered)
        is_right = self.holds(lease)
        match verb:
            case "beat":
                reply = self.runner.run(one.beat("worker", [report], ttl_s=TTL_S))
                assert (key not in reply.lost) == is_right
                status = self.statuses[segment.batch_id]
                assert reply.stopping.get(segment.batch_id, Status.IN_PROGRESS) is status
                if is_right:
                    self.holders[key] = (lease.token, self.clock.now + TTL_S)
            case "pin":
                assert self.runner.run(one.pin_parts(lease, [part], report)) == is_right
            case "complete":
                assert self.runner.run(one.complete_segment(lease, report, [part])) == is_right
            case _:
                assert self.runner.run(one.release_segment(lease, report, [part])) == is_right
        if is_right and verb in ("complete", "release"):
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
        assert self.runner.run(self.stores[store].move_batch(after, expected=batch.status))
        assert not self.runner.run(self.stores[1 - store].move_batch(after, expected=batch.status))
        self.moved(batch_id, after.status)

    @rule(store=stores)
    def settle(self, store: int) -> None:
        for batch in self.runner.run(self.stores[store].settled_batches()):
            assert batch.tally.answered == batch.total
            after = batch.after(Event.SETTLED, now=self.clock.now)
            assert self.runner.run(self.stores[store].move_batch(after, expected=batch.status))
            self.moved(batch.id, after.status)

    @rule(store=stores)
    def reap(self, store: int) -> None:
        assert self.runner.run(self.stores[store].reap_segments()) == self.drop_holders(lapsed=True)

    @rule(seconds=st.sampled_from([1.0, 29.0, 31.0]))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule(store=stores)
    def start_again(self, store: int) -> None:
        freed = self.drop_holders() + len(self.duty_holders)
        self.duty_holders.clear()
        for numbers in self.cut.values():
            freed += sum(holder is not None for holder in numbers.values())
            numbers.update(dict.fromkeys(numbers))
        assert self.runner.run(self.stores[store].release_all_leases()) == freed

    @rule(store=stores, in_a_transaction=st.booleans())
    def crash(self, store: int, in_a_transaction: bool) -> None:
        """A process dies, between two transactions or within one, and another opens the database."""
        dying = self.stores[store]
        if in_a_transaction:
            with pytest.raises(Died):
                self.runner.run(dying._database.write(half_of_everything))
        self.runner.run(dying.close())
        self.stores[store] = open_store(self.url, clock=self.clock)

    # --- what always holds ---

    @invariant()
    def a_project_counts_what_it_has(self) -> None:
        if not hasattr(self, "runner"):
            return
        used = self.runner.run(self.stores[0].consumption("p"))
        assert used.open.batches == sum(not status.is_terminal for status in self.statuses.values())
        assert used.stored_bytes == len(self.published)
        rows = self.runner.run(self.stores[1].usage(["project"]))
        assert sum(row.batches for row in rows) == len(self.published)

    @invariant()
    def a_batch_counts_what_its_segments_count(self) -> None:
        for batch_id, status in getattr(self, "statuses", {}).items():
            batch = self.read(batch_id)
            assert batch.status is status
            results = self.runner.run(self.stores[1].segment_results(batch_id))
            counted = Tally()
            for result in results:
                counted = counted.plus(result.tally)
                key = (batch_id, result.segment.number)
                assert result.token >= self.tokens.get(key, 0), "a token went back"
                self.tokens[key] = result.token
            if batch.status.is_terminal:
                assert results == []
            else:
                assert counted == batch.tally


def test_no_order_of_events_breaks_a_promise(kind, databases):
    StoreMachine.databases = databases
    run_state_machine_as_test(
        StoreMachine,
        settings=settings(
            max_examples=25 if kind == "sqlite" else 8,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )
