"""The processes of all machines that run roles: `GET /nightmill/v1/workers`.

The route needs an admin key. It shows what the processes have stored: who they are, what they hold, and what
the workers among them report of the upstreams.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec
from fastapi import APIRouter, Depends

from nightmill.api.auth import require_admin
from nightmill.api.context import Context
from nightmill.api.envelope import JsonResponse
from nightmill.core.process_info import is_silent
from nightmill.core.upstream_report import UpstreamReport
from nightmill.roles.offered_models import REPORT_AGE_S
from nightmill.store.upstreams import WorkerReport
from nightmill.store.workers import HeldLease, KnownProcess, LeaseKind

_MOST: Final = 1_000
_MOST_BATCHES: Final = 20
_Document = dict[str, Any]

router = APIRouter(
    prefix="/nightmill/v1/workers", include_in_schema=False, dependencies=[Depends(require_admin)]
)


@router.get("")
async def list_workers(context: Context) -> JsonResponse:
    """The processes that have not ended, by machine and id, with their leases; and the sums of all.

    A process whose parent still runs is gone from the list as soon as it has ended. One whose machine was
    lost is said to be silent after a minute and a half, and is gone some minutes later.
    """
    store = context.store
    processes = await store.workers.processes(most=_MOST)
    leases = await store.workers.leases(most=_MOST)
    reports = await store.upstreams.reports(max_age_s=REPORT_AGE_S)
    now = context.clock()
    data = workers_on_wire(processes, leases, reports, now=now)
    return JsonResponse({"object": "list", "data": data, "totals": totals_of(data)})


def workers_on_wire(
    processes: Sequence[KnownProcess],
    leases: Iterable[HeldLease],
    reports: Iterable[WorkerReport],
    *,
    now: float,
) -> list[_Document]:
    """One document for each process. One that holds a lease and never reported is listed too."""
    held: defaultdict[str, list[HeldLease]] = defaultdict(list)
    for lease in leases:
        held[lease.holder].append(lease)
    reported: defaultdict[str, list[UpstreamReport]] = defaultdict(list)
    for row in reports:
        reported[row.worker_id] += _read(row.document)
    known = {process.id: process for process in processes}
    silent = {
        lease.holder: KnownProcess(lease.holder, None, math.inf) for it in held.values() for lease in it
    }
    documents = [
        _worker(process, held.get(process.id, []), reported.get(process.id, []), now=now)
        for process in (silent | known).values()
    ]
    return sorted(documents, key=lambda it: (it["host"] or "", it["started_at"] or 0, it["id"]))


def totals_of(workers: Sequence[_Document]) -> _Document:
    """The sums over all processes."""
    names = ("in_flight", "waiting", "answered_per_s", "tokens_per_s", "segments", "lines", "answered")
    return {
        "machines": len({worker["host"] for worker in workers if worker["host"]}),
        "processes": len(workers),
        "silent": sum(worker["is_silent"] for worker in workers),
        **{name: round(sum(worker[name] for worker in workers), 2) for name in names},
    }


def _worker(
    process: KnownProcess, leases: Sequence[HeldLease], reports: Sequence[UpstreamReport], *, now: float
) -> _Document:
    info = process.info
    segments = [lease for lease in leases if lease.kind is LeaseKind.SEGMENTS]
    models = [model for report in reports for model in report.per_model]
    in_flight: defaultdict[str, int] = defaultdict(int)
    for report in reports:
        for lines in report.batches:
            in_flight[lines.batch_id] += lines.in_flight
    batches = sorted(leases, key=lambda lease: (-in_flight[lease.batch_id], -lease.lines, lease.batch_id))
    return {
        "object": "worker",
        "id": process.id,
        "host": None if info is None else info.host,
        "pid": None if info is None else info.pid,
        "roles": None if info is None else list(info.roles),
        "version": None if info is None else info.version,
        "started_at": None if info is None else info.started_at,
        "heard_at": None if math.isinf(process.silent_s) else now - process.silent_s,
        "is_silent": is_silent(process.silent_s),
        "in_flight": sum(report.in_flight for report in reports),
        "waiting": sum(report.waiting for report in reports),
        "answered_per_s": round(sum(model.answered_per_s for model in models), 2),
        "tokens_per_s": round(sum(model.tokens_per_s for model in models), 2),
        "stalled": next((report.stalled for report in reports if report.stalled is not None), None),
        "upstreams": [{"name": report.upstream, "in_flight": report.in_flight} for report in reports],
        "segments": sum(lease.count for lease in segments),
        "lines": sum(lease.lines for lease in segments),
        "answered": sum(lease.answered for lease in segments),
        "batches": len({lease.batch_id for lease in leases}),
        "leases": [
            {
                "batch_id": lease.batch_id,
                "kind": lease.kind.value,
                "status": lease.status,
                "count": lease.count,
                "lines": lease.lines,
                "answered": lease.answered,
                "in_flight": in_flight[lease.batch_id],
                "expires_at": now + lease.expires_in_s,
            }
            for lease in batches[:_MOST_BATCHES]
        ],
    }


def _read(document: str) -> list[UpstreamReport]:
    try:
        return [msgspec.json.decode(document, type=UpstreamReport)]
    except msgspec.MsgspecError:
        return []  # of a worker of another version
