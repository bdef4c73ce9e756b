"""`nightmill serve` is killed, drained and restarted, and observed from outside."""

import asyncio
import socket
import subprocess
import sys
import time
from contextlib import suppress

import pytest

from nightmill.core.batch import Event, Status
from nightmill_torture.plan import Part
from nightmill_torture.processes import living
from nightmill_torture.proof import Variety
from tests.crash.conftest import LIMIT_S, MakeStand, Stand
from tests.roles.conftest import Mill, request_lines


async def begun(stand: Stand, *, lines: int = 300, answered: int = 20) -> None:
    """Starts a server and a batch, and waits until some lines are answered."""
    stand.serve()
    await stand.until_it_answers()
    await stand.load._make(Variety.PLAIN, lines=lines)
    (batch,) = stand.load.expected
    await stand.until(
        lambda: (
            (seen := stand.watch.seen.get(batch.batch_id)) is not None and sum(seen.counts[1:]) >= answered
        )
    )


async def test_batches_in_every_status_continue_after_a_restart_with_unchanged_timestamps(
    mill: Mill, stand_of: MakeStand
) -> None:
    batches = [await mill.accepted(request_lines(40)) for _ in range(3)]
    overdue = await mill.now(batches[1])
    moved = overdue.after(Event.LAPSED, now=time.time() - 100)
    assert await mill.store.batches.move(moved, expected=overdue.status)
    await mill.cancel(batches[2])
    batches.append(await mill.batch_of(request_lines(40)))
    before = [await mill.now(batch) for batch in batches]
    assert [batch.status for batch in before] == ["in_progress", "finalizing", "cancelling", "validating"]
    # Every segment and batch is leased to a process that is dead now.
    (lease,) = await mill.store.segments.lease(mill.finalizer()._worker_id, limit=1, ttl_s=600)
    for status in (Status.FINALIZING, Status.CANCELLING, Status.VALIDATING):
        assert await mill.store.batch_leases.lease((status,), mill.finalizer()._worker_id, ttl_s=600)
    stand = await stand_of(delay_s=0.0)
    stand.serve()
    await stand.until_it_answers()
    async with asyncio.timeout(
        LIMIT_S
    ):  # a tenth of the time after which the leases of dead processes expire
        ended = [await stand.watch.end_of(batch.id) for batch in batches]
    assert [seen.status for seen in ended] == ["completed", "expired", "cancelled", "completed"]
    for seen, old in zip(ended, before, strict=True):
        for name, stamp in seen.stamps.items():
            assert getattr(old, name) in (None, stamp), (old.status, name)
    assert lease.token == 1


async def test_a_partly_received_upload_is_deleted_at_the_next_start(stand_of: MakeStand) -> None:
    stand = await stand_of()
    stand.serve()
    await stand.until_it_answers()
    unfinished = stand.data / "blobs" / "tmp"
    with socket.create_connection(("127.0.0.1", stand.port)) as client:
        head = (
            b"POST /v1/files HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9000000\r\n"
            b"Content-Type: multipart/form-data; boundary=b\r\n\r\n"
            b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
            b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n'
        )
        client.sendall(head + bytes(1 << 20) * 3)
        await stand.until(lambda: list(unfinished.iterdir()))
        await stand.server.kill("all")
    assert list(unfinished.iterdir())
    stand.serve()
    await stand.until_it_answers()
    assert list(unfinished.iterdir()) == []
    assert [file async for file in stand.client.files.list()] == []


async def test_a_second_server_on_the_same_folder_is_refused_and_names_the_first_process(
    stand_of: MakeStand,
) -> None:
    stand = await stand_of()
    stand.serve()
    await stand.until_it_answers()
    second = await asyncio.to_thread(
        subprocess.run,
        [
            *(sys.executable, "-m", "nightmill", "serve", "--upstream", stand.url),
            *("--port", "0", "--folder", str(stand.data)),
        ],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert second.returncode == 78
    holder = next(iter(stand.server._groups))
    (said,) = second.stderr.splitlines()
    assert f"{stand.data} is in use by process {holder}; stop that one or choose another" in said
    assert "Traceback" not in second.stderr


async def test_orphaned_children_of_a_killed_server_do_not_disturb_the_next_server(
    stand_of: MakeStand,
) -> None:
    stand = await stand_of(workers=2, delay_s=0.1)
    await begun(stand)
    orphans = [one for one in stand.server.processes if one.command.startswith(("worker:", "intake:"))]
    assert len(orphans) == 3
    await stand.server.kill("parent")
    stand.serve()
    await stand.until_it_answers()
    orphan_ids = {one.process_id for one in orphans}
    await stand.until(lambda: not orphan_ids & {one.process_id for one in stand.server.processes})
    proof = await stand.prove()
    assert proof.is_kept, proof.examples
    assert stand.repeated <= 8 + 8, "more lines were sent again than were in flight"


@pytest.mark.parametrize("part", ["worker", "background"])
async def test_a_dead_child_is_replaced_and_what_it_held_is_free_at_once(
    stand_of: MakeStand, part: Part
) -> None:
    stand = await stand_of(NIGHTMILL_WORKER__LEASE_TTL_S="600")
    await begun(stand)
    assert await stand.server.kill(part)
    proof = await stand.prove()
    assert proof.is_kept, proof.examples
    assert stand.repeated <= 8 + 8


async def test_a_drain_loses_and_repeats_no_line_and_answers_polls_until_it_ends(
    stand_of: MakeStand,
) -> None:
    stand = await stand_of(workers=2, delay_s=0.5, NIGHTMILL_API__DRAIN_S="600")
    await begun(stand, lines=100)
    polls = stand.watch.polls
    stand.server.terminate()
    while stand.server.is_alive:
        workers = [one for one in stand.server.processes if "worker:" in one.command]
        if workers:
            polls = stand.watch.polls
        await asyncio.sleep(0.02)
    assert await stand.server.has_ended(within_s=LIMIT_S) == 0
    assert polls > 3
    assert living({next(iter(stand.server._groups))}) == []
    undone = len(set(stand.record.markers))
    stand.serve()
    proof = await stand.prove()
    assert proof.is_kept, proof.examples
    assert undone < 100
    assert stand.repeated == 0


async def test_a_second_signal_ends_a_drain_immediately(stand_of: MakeStand) -> None:
    stand = await stand_of(delay_s=600.0, NIGHTMILL_API__DRAIN_S="600")
    stand.serve()
    await stand.until_it_answers()
    await stand.load._make(Variety.PLAIN, lines=20)
    await stand.until(lambda: stand.record.markers)
    stand.server.terminate()
    assert await stand.server.has_ended(within_s=0.5) is None
    stand.server.terminate()
    assert await stand.server.has_ended(within_s=LIMIT_S) is not None


async def connected(port: int) -> socket.socket:
    async with asyncio.timeout(LIMIT_S):
        while True:
            with suppress(ConnectionRefusedError):
                return socket.create_connection(("127.0.0.1", port), timeout=LIMIT_S)
            await asyncio.sleep(0.005)


async def test_connections_to_a_starting_server_wait_and_are_not_refused(stand_of: MakeStand) -> None:
    """The server listens before it loads, so a client that polls during a restart gets a late answer."""
    stand = await stand_of()
    stand.serve()
    with await connected(stand.port) as client:
        connected_s = time.monotonic() - stand.server.started
        client.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        answer = await asyncio.to_thread(client.recv, 1024)
        answered_s = time.monotonic() - stand.server.started
    assert answer.startswith(b"HTTP/1.1 200")
    # A server that listened only after it had loaded would answer at once. Loading takes some tenths of a
    # second of computation, and more on a busy machine.
    assert answered_s - connected_s > 0.1
