"""Leases of every kind at once: what a process does that knows that workers are dead."""

from sqlalchemy import Connection

from nightmill.ids import WorkerId
from nightmill.store import batches, counts, grants, segments, slices, upstreams, webhook_deliveries
from nightmill.store.verbs import Verbs, write

_TABLES = (segments.LEASES, batches.LEASES, slices.LEASES)
_RELEASE_ALL = tuple(table.release_all() for table in _TABLES)
_RELEASE_OF_WORKER = tuple(table.release_of_worker() for table in _TABLES)


class Leases(Verbs):
    """Leases of segments, batches and slices, and the grants and reports of their holders."""

    @write
    @staticmethod
    def release_all(connection: Connection) -> int:
        """Releases the leases and grants of every worker, and deletes their reports. Returns how many leases.

        Only for a process that knows that no worker is alive: it starts and holds the lock on the data
        folder.
        """
        grants.release_all_grants(connection)
        upstreams.delete_all_reports(connection)
        webhook_deliveries.release_all(connection)
        counts.end_all_processes(connection)
        return release_all_leases(connection)

    @write
    @staticmethod
    def release_of_worker(connection: Connection, worker_id: WorkerId) -> int:
        """Releases the leases and grants of one worker, and deletes its reports. Returns how many leases.

        Only for a process that knows that the worker is dead.
        """
        grants.release_grants_of(connection, worker_id)
        upstreams.delete_reports_of(connection, worker_id)
        webhook_deliveries.release_of(connection, worker_id)
        counts.end_process(connection, worker_id)
        return sum(
            connection.execute(statement, {"holder": worker_id}).rowcount for statement in _RELEASE_OF_WORKER
        )


def release_all_leases(connection: Connection) -> int:
    return sum(connection.execute(statement).rowcount for statement in _RELEASE_ALL)
