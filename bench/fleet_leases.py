"""One worker of the micro-benchmark of leases: `python fleet_leases.py URL WHAT SECONDS NUMBER AMOUNT`.

WHAT is `lease` (repeatedly lease AMOUNT segments and complete them), `beat` (renew AMOUNT leases) or `grant`
(request slots of a concurrency limit that AMOUNT other workers share). The worker opens the store as
nightmill does, prints `ready`, waits for a line on stdin, runs for SECONDS, and prints a JSON object.
"""

import asyncio
import json
import resource
import sys
import time
from collections.abc import Awaitable, Callable

from nightmill.core.batch import Tally, Usage
from nightmill.core.concurrency import SlotRequest
from nightmill.core.segment import Lease, PinnedPart, SegmentReport
from nightmill.ids import WorkerId
from nightmill.store import Store, open_store

_TTL_S = 600.0
UPSTREAM = "http://127.0.0.1/v1"
CONCURRENCY_LIMIT = 4_000


def _report(lease: Lease, answered: int) -> SegmentReport:
    segment = lease.segment
    tally = Tally(answered, 0, Usage(10 * answered, 0, 10 * answered, 0, 20 * answered))
    return SegmentReport(segment.batch_id, segment.number, lease.token, tally)


def _leasing(store: Store, worker_id: WorkerId, amount: int) -> Callable[[], Awaitable[int]]:
    async def turn() -> int:
        leases = await store.segments.lease(worker_id, limit=amount, ttl_s=_TTL_S)
        for lease in leases:
            segment = lease.segment
            part = PinnedPart(f"{segment.batch_id}/{segment.number}.1.part", 500_000)
            if not await store.segments.complete(lease, _report(lease, segment.count), [part]):
                raise RuntimeError(f"the lease of {segment.batch_id} {segment.number} was lost")
        return len(leases)

    return turn


async def _beating(store: Store, worker_id: WorkerId, amount: int) -> Callable[[], Awaitable[int]]:
    leases = await store.segments.lease(worker_id, limit=amount, ttl_s=_TTL_S)
    answered = 0

    async def turn() -> int:
        nonlocal answered
        answered += 1
        reports = [_report(lease, min(answered, lease.segment.count)) for lease in leases]
        reply = await store.segments.renew(worker_id, reports, ttl_s=_TTL_S)
        if reply.lost:
            raise RuntimeError("a lease was lost")
        return 1

    return turn


def _asking(store: Store, worker_id: WorkerId) -> Callable[[], Awaitable[int]]:
    held = 0

    async def turn() -> int:
        nonlocal held
        request = SlotRequest(
            upstream=UPSTREAM,
            worker_id=worker_id,
            concurrency_limit=CONCURRENCY_LIMIT,
            held=held,
            wanted=1_000,
        )
        grant = await store.grants.request(request, ttl_s=_TTL_S)
        held = min(grant.slots, grant.target)
        return 1

    return turn


async def _main() -> None:
    url, what, seconds, number, amount = sys.argv[1:6]
    store = open_store(url)
    worker_id = WorkerId(f"worker-{number}")
    try:
        if what == "lease":
            turn = _leasing(store, worker_id, int(amount))
        elif what == "beat":
            turn = await _beating(store, worker_id, int(amount))
        else:
            turn = _asking(store, worker_id)
        await store.ping()
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        times: list[float] = []
        done, cpu_s = 0, _cpu_s()
        began = at = time.perf_counter()
        while at - began < float(seconds):
            done += await turn()
            before, at = at, time.perf_counter()
            times.append(at - before)
        cpu_s = _cpu_s() - cpu_s
        times.sort()
        result = {"done": done, "wall_s": at - began, "cpu_s": cpu_s, "turns": len(times)}
        result |= {"p50_ms": times[len(times) // 2] * 1e3, "p99_ms": times[int(len(times) * 0.99)] * 1e3}
        print(json.dumps(result), flush=True)
    finally:
        await store.close()


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_main())
