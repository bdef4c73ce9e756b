"""The screen "Workers": the processes of all machines, their leases, and what each works on."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from nightmill.dashboard.calls import path_of
from nightmill.dashboard.navigation import WORKERS
from nightmill.dashboard.pages import Screen
from nightmill.dashboard.visit import Visit, screen

_LEASES_SHOWN: Final = 3
_EVERY_S: Final = 4.0
_Document = dict[str, Any]


async def show(visit: Visit) -> Screen:
    found = await visit.api.get(path_of("nightmill", "v1", "workers"))
    versions = {worker["version"] for worker in found["data"] if worker["version"]}
    document = {
        "machines": by_machine(found["data"]),
        "totals": found["totals"],
        "has_several_versions": len(versions) > 1,
    }
    return Screen(
        template="workers.html", title="Workers", document=document, live=("rows",), every_s=_EVERY_S
    )


def by_machine(workers: Sequence[Mapping[str, Any]]) -> list[_Document]:
    """The processes of each machine; those that do not say where they run come last."""
    machines: dict[str | None, list[_Document]] = {}
    for worker in workers:
        machines.setdefault(worker["host"], []).append(
            {
                **worker,
                "leases": worker["leases"][:_LEASES_SHOWN],
                "more_batches": max(0, worker["batches"] - _LEASES_SHOWN),
            }
        )
    ordered = sorted(machines.items(), key=lambda it: (it[0] is None, it[0] or ""))
    return [
        {
            "host": host,
            "workers": of_host,
            "in_flight": sum(worker["in_flight"] for worker in of_host),
            "answered_per_s": round(sum(worker["answered_per_s"] for worker in of_host), 2),
        }
        for host, of_host in ordered
    ]


routes = (screen("/ui/workers", show, area=WORKERS),)
