"""Leases and fences: how a worker holds a row, and how a late worker is kept from writing.

Segments, slices and batches (in `validating`, `finalizing` and `cancelling`) are leased the same way.

Model. A leased row carries the id of its worker, a time at which the lease expires by the store's clock, and
a token. Each new lease of the row adds one to the token; nothing ever lowers it.

    waiting --lease: token + 1--> leased --complete--> done
       ^                            |
       +--- release, or expiry -----+        renew: leased, expires later

Fence. Every write under a lease names the token in its WHERE and requires that the row is still leased. A
worker whose lease expired and was granted anew holds an old token: its writes match no row and change
nothing.

Failures. A worker that dies stops renewing; its lease expires and the row is leased again. A worker that is
frozen and wakes late finds its token outdated. A process that knows that a worker is dead, or that starts
while no worker can be alive, releases leases at once instead of waiting for their expiry. Clocks of workers
do not matter: only the store's clock is compared with the expiry.

The statements are built once for each table, at import.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Table, TextClause, Update, bindparam, update

from nightmill.store.clock import now
from nightmill.store.schema import LEASED, WAITING


@dataclass(frozen=True, slots=True, kw_only=True)
class LeasedTable:
    """The columns that make a lease, and the statements over them."""

    table: Table
    row: tuple[ColumnElement[bool], ...]
    """Selects one row by its parameters."""
    token: str = "token"  # noqa: S105 - a column
    worker_id: str = "worker_id"
    expires_at: str = "lease_expires_at"
    all_leased: tuple[ColumnElement[bool] | TextClause, ...]
    """Selects every leased row, in the words of a partial index."""

    @property
    def held(self) -> tuple[ColumnElement[bool], ...]:
        """Still leased, under the token `held_token`."""
        is_leased = self.table.c[self.worker_id].is_not(None)
        return (self.table.c[self.token] == bindparam("held_token"), is_leased)

    @property
    def fence(self) -> tuple[ColumnElement[bool], ...]:
        return (*self.row, *self.held)

    @property
    def released(self) -> dict[str, Any]:
        """The values of a row that is not leased."""
        return {**self._state(WAITING), self.worker_id: None, self.expires_at: None}

    def lease(self, rows: tuple[ColumnElement[bool], ...] | None = None) -> Update:
        """Leases the row, or `rows`, to `new_worker_id` for `ttl_s`."""
        return (
            update(self.table)
            .where(*(rows or self.row))
            .values(
                {
                    **self._state(LEASED),
                    self.token: self.table.c[self.token] + 1,
                    self.worker_id: bindparam("new_worker_id"),
                    self.expires_at: now() + bindparam("ttl_s"),
                }
            )
        )

    def renew(self) -> Update:
        """The lease expires `ttl_s` from now."""
        return update(self.table).where(*self.fence).values({self.expires_at: now() + bindparam("ttl_s")})

    def release(self) -> Update:
        return update(self.table).where(*self.fence).values(self.released)

    def release_all(self) -> Update:
        return update(self.table).where(*self.all_leased).values(self.released)

    def release_of_worker(self) -> Update:
        """Every lease of the worker `holder`."""
        return self.release_all().where(self.table.c[self.worker_id] == bindparam("holder"))

    def release_expired(self) -> Update:
        return self.release_all().where(self.table.c[self.expires_at] <= now())

    def _state(self, state: ColumnElement[str]) -> Mapping[str, Any]:
        """A batch has no state of its own for this: its status stays as it is."""
        return {"state": state} if "state" in self.table.c else {}
