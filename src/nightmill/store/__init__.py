"""The store: one relational database with the state of files, uploads, batches, segments and projects.

Each noun has a module with one class of verbs (`files`, `batches`, `segments`, ...); `Store` has one
attribute for each. A verb's docstring, signature and SQL are in one place (see `verbs`). One set of SQL
serves SQLite and Postgres, and one conformance suite runs over both. Bytes belong to `blobs`, decisions to
`nightmill.core.batch`, `nightmill.core.limits` and `nightmill.core.concurrency`.

Rules that every verb keeps:

- A status is written by one statement, with the expected status in its WHERE. A verb that lost a race returns
  None or False; the caller reads again and decides again.
- A lease's `ttl_s` is added to the store's own clock; callers never compare clocks.
- A write under a lease names its token; a token that is not the newest changes nothing (see `leased_table`).
- `tally` of a batch is the sum over its segments, and moves in the same transaction.
- `by` is the actor of a change: such a change is recorded in the audit log, in the same transaction.
  None stands for a role that does its work, which is not recorded.
- An unreachable or locked database raises `UnavailableError`; nothing is half-written.
"""

from nightmill.store.batch_leases import BatchLease
from nightmill.store.batch_origins import BatchOrigin
from nightmill.store.batches import Backlog
from nightmill.store.idempotency_keys import Idempotency
from nightmill.store.line_reports import LineReport
from nightmill.store.migrate import migrate
from nightmill.store.slices import SliceLease
from nightmill.store.store import Store, open_store

__all__ = [
    "Backlog",
    "BatchLease",
    "BatchOrigin",
    "Idempotency",
    "LineReport",
    "SliceLease",
    "Store",
    "migrate",
    "open_store",
]
