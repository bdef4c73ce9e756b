"""A holder that lost its segment still writes: what a follower was given is what stands in the end."""

import itertools
import json
from collections.abc import Iterator

import pytest

from nightmill.core.batch import Event, Tally
from nightmill.core.segment import SegmentReport
from nightmill.ids import WorkerId
from nightmill.parts import standing_records
from tests.api.conftest import Server, serving
from tests.api.followed import SETTINGS, FollowedBatch, Holder


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("takeover"), settings=SETTINGS) as server:
        yield server


def write(batch: FollowedBatch, holder: Holder, *ordinals: int, text: str) -> None:
    """Answers without a report, as a holder does whose reports no longer arrive."""

    async def append() -> None:
        for ordinal in ordinals:
            holder.writer.append(ordinal, batch.row(ordinal, text=text))
        await holder.writer.flush()

    batch.server.do(append())


def find(batch: FollowedBatch, holder: Holder):
    """What the holder finds of earlier tokens, before it pins."""
    lease, parts = holder.lease, batch.server.context.parts
    return batch.server.do(parts.find(lease.segment, below=lease.token, pinned=lease.pinned))


def pin(batch: FollowedBatch, holder: Holder, found) -> None:
    async def known() -> Tally:
        tally = Tally()
        async for record in standing_records(batch.server.context.parts, found):
            tally = tally.plus(record.tally)
        return tally

    holder.pinned = found
    holder.earlier = batch.server.do(known())
    segment = holder.lease.segment
    report = SegmentReport(segment.batch_id, segment.number, holder.lease.token, holder.earlier)
    pin_parts = batch.server.context.store.segments.pin_parts
    assert batch.server.do(pin_parts(holder.lease, found, report))


def take_over(batch: FollowedBatch) -> Holder:
    batch.server.do(batch.server.context.store.leases.release_all())
    return batch.lease()


class Follower:
    """A client that keeps every line and comes back with its last cursor, also with a new reader."""

    def __init__(self, batch: FollowedBatch) -> None:
        self.batch = batch
        self.cursor: str | None = None
        self.lines: list[dict] = []

    def look(self) -> None:
        query = {} if self.cursor is None else {"after": self.cursor}
        page = self.batch.page(**query).json()
        self.lines += page["data"]
        self.cursor = page["cursor"]


def output(batch: FollowedBatch) -> dict[str, dict]:
    client = batch.server.client()
    made = client.batches.retrieve(batch.id)
    rows = {}
    for file_id in filter(None, (made.output_file_id, made.error_file_id)):
        for line in client.files.content(file_id).content.splitlines():
            rows[json.loads(line)["custom_id"]] = json.loads(line)
    return rows


@pytest.mark.parametrize("looks", list(itertools.product([False, True], repeat=5)))
def test_a_late_answer_of_an_earlier_holder_is_never_given_in_place_of_the_one_that_stands(own, looks):
    """The first holder writes after the second one has found its part, before and after the pin."""
    batch = FollowedBatch.of(own, 3)
    follower = Follower(batch)
    look = iter(looks)

    def perhaps_look() -> None:
        if next(look):
            follower.look()

    first = batch.lease()
    write(batch, first, 0, text="first")
    batch.beat(first)
    perhaps_look()
    second = take_over(batch)
    found = find(batch, second)
    write(batch, first, 1, text="late")
    perhaps_look()
    pin(batch, second, found)
    perhaps_look()
    write(batch, first, 2, text="later")
    write(batch, second, 1, text="second")
    batch.beat(second)
    perhaps_look()
    write(batch, second, 2, text="second")
    batch.complete(second)
    perhaps_look()
    batch.finalize()
    follower.look()
    standing = output(batch)
    assert {entry["line"]["custom_id"]: entry["line"] for entry in follower.lines} == standing
    assert len(follower.lines) == 3
    texts = {name: row["response"]["body"]["choices"][0]["text"] for name, row in standing.items()}
    assert texts == {"line-0": "first", "line-1": "second", "line-2": "second"}


def test_a_line_is_not_given_while_the_batch_is_being_ended_unless_it_is_pinned(own):
    """The finalizer may have looked already; the line may count as cancelled."""
    batch = FollowedBatch.of(own, 3)
    follower = Follower(batch)
    holder = batch.lease()
    write(batch, holder, 0, text="first")
    batch.beat(holder)
    follower.look()
    assert len(follower.lines) == 1
    batch.move(Event.CANCEL_REQUESTED)
    own.do(own.context.store.leases.release_all())
    write(batch, holder, 1, text="late")
    follower.look()
    assert len(follower.lines) == 1
    batch.finalize()
    follower.look()
    standing = output(batch)
    assert {entry["line"]["custom_id"]: entry["line"] for entry in follower.lines} == standing


@pytest.mark.parametrize("reading", ["tail", "find"])
def test_a_segment_that_is_leased_again_during_the_look_waits_for_the_next_look(own, reading, monkeypatch):
    """The second holder finds the part before the first one writes more; only then the reader reads it."""
    batch = FollowedBatch.of(own, 3)
    first = batch.lease()
    write(batch, first, 0, text="first")
    batch.beat(first)
    store, parts = own.context.store, own.context.parts
    if reading == "find":
        own.do(store.leases.release_all())
    read = getattr(parts, reading)
    taken = []

    async def read_late(*args, **kwargs):
        if not taken:
            taken.append(None)
            await store.leases.release_all()
            (lease,) = await store.segments.lease(
                WorkerId("worker"), limit=0, ttl_s=600, preferred=[(batch.id, 1)]
            )
            taken.append((lease, await parts.find(lease.segment, below=lease.token, pinned=lease.pinned)))
            first.writer.append(1, batch.row(1, text="late"))
            await first.writer.flush()
        return await read(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(parts, reading, read_late)
        assert batch.page().json()["data"] == []
    lease, found = taken[1]
    second = Holder(lease, own.do(_opened(own, lease)))
    pin(batch, second, found)
    follower = Follower(batch)
    follower.look()
    assert [entry["line"]["custom_id"] for entry in follower.lines] == ["line-0"]


async def _opened(server, lease):
    return server.context.parts.open(lease.segment, lease.token)
