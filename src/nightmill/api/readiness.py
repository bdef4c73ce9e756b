"""What keeps this server from answering lines, in words, as far as the server and the store know. No HTTP.

`/ready` shows it. Problems of a fleet come from what workers report to the store, those of this machine from
its own processes.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from nightmill.api.context import ApiContext
from nightmill.core.upstream_report import UpstreamReport, merged
from nightmill.errors import UnavailableError
from nightmill.roles.offered_models import read_reports
from nightmill.telemetry import UpstreamHeld, held_text

START_GRACE_S: Final = 20.0
"""After the start of a server, while its workers may not have reported yet."""
NO_WORKER: Final = "no worker has reported on an upstream lately, so no line is answered"
_MIB: Final = 1 << 20


async def problems_of(context: ApiContext, *, running_s: float) -> list[str]:
    """All problems, one sentence each; empty if lines are answered.

    Args:
        running_s: for how long the server has been running.
    """
    reports = await read_reports(context.store)
    found = dict.fromkeys(_of_processes(context, reports))
    if not reports and running_s >= START_GRACE_S:
        found[NO_WORKER] = None
    if (disk := await _disk_problem(context)) is not None:
        found[disk] = None
    return list(found)


def _of_processes(context: ApiContext, reports: Mapping[str, Sequence[UpstreamReport]]) -> Iterator[str]:
    """What processes report; those of this machine also name what they hold."""
    trouble = context.trouble()
    if trouble is not None:
        yield trouble
    known = {(event.upstream, event.model) for event in context.held()}
    for event in _held_in_fleet(reports):
        if (event.upstream, event.model) not in known:
            yield held_text(event)


def _held_in_fleet(reports: Mapping[str, Sequence[UpstreamReport]]) -> Iterator[UpstreamHeld]:
    for name, of_workers in reports.items():
        for entry in merged(of_workers).per_model:
            if (held := entry.held) is not None:
                until = held.since if held.until is None else held.until
                yield UpstreamHeld(name, entry.model, held.reason, held.since, until, held.needs_operator)


async def _disk_problem(context: ApiContext) -> str | None:
    try:
        free_bytes = await context.blobs.free_bytes()
    except UnavailableError as error:
        return str(error)
    reserved_bytes = context.settings.retention.free_bytes
    if free_bytes is None or free_bytes >= 2 * reserved_bytes:
        return None
    return (
        f"the disk of the data folder is nearly full: {free_bytes // _MIB} MiB are free, and with less than"
        f" {reserved_bytes // _MIB} MiB (retention.free_bytes) nothing is written"
    )
