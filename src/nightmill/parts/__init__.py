"""Durable answers: where an answer to a request line is kept from its arrival until the batch ends.

The model. No row of the database holds a request or an answer. A batch is answered segment by segment, and
a worker may answer the lines of a segment while it holds the segment's lease. The lease has a token that
grows by one with each holder. Under each (batch, segment, token) there is at most one *part*, unless a backup
was restored: an append-only run of records, one per answered line, in the order in which the answers arrived.
A part is a file in the data folder (`folder`) or a row of objects in a bucket (`objects`); both hold the same
bytes (`record`).

    dispatcher -- append --> PartWriter -- take --> sink: folder, or bucket
                             (one per lease)         | write, sync
    worker <-- durable_tally, pinned -- settle <-----'
      | heartbeat, pin, complete
    store: tally, and pinned parts (key, length) of each segment
      |
    finalizer, move, check -- counted_parts, standing_records --> one answer per line

Writing. `append` only queues a record and costs no I/O, task or future. The sink commits the records of the
last few milliseconds together: in a folder one write and one fdatasync per file for all answers of the
interval, in a bucket one put. Only after the commit do the records count in `durable_tally` and
`pinned`, and only what counts is reported to the store. The worker stops sending while too many bytes are
queued or a write fails (`is_full`, `room`, `stalled`).

The fence. A holder whose lease has passed to another worker may still write, because a stopped process does
not know the time. Two rules keep these writes without effect. The store accepts reports only under the newest
token. And the new holder *pins* the parts it finds: it records key and durable length of each in the store
before it sends a line. Bytes behind a pinned length are never read. A line may be sent twice, but of two
answers the first stands, in the order of reading: pinned parts in the order in which they were pinned, then
others from the newest token to the oldest. An older part that is not pinned arrived after the newer holder
had looked for it. `reader` makes that decision for every program that reads answers.

Failures.
- The process dies: records that were not durable are lost, and their lines are sent again. A torn record at
  the end of a part is cut off by its length and checksum. The next holder finds the parts of all earlier
  tokens, pins them and sends only the lines without an answer.
- The power fails: a length counts only after the bytes, the file's name and the folder's name are synced. A
  reader syncs a part that another process wrote before it pins the part.
- The disk is full or read-only, or the bucket cannot be reached: the same bytes are written again at the same
  place until the write succeeds. No answer is lost, and sending pauses meanwhile.
- A database restored from a backup gives out old tokens again: a part that exists already under a token is
  left as it is, and the writer makes another copy of the name.
- Pinned bytes cannot be read back: reading raises DamageError. `nightmill check --repair` pins what is whole,
  and the other lines are sent again.

A client that follows a batch reads parts that are still written (`tail`). `api.result_reader` has the reason
why what it gives away stands.

The store's leases decide who may write, and the finalizer decides in which order lines are published.
"""

from nightmill.parts.folder import FolderParts
from nightmill.parts.protocol import Parts
from nightmill.parts.reader import FirstAnswers, counted_parts, standing_records
from nightmill.parts.record import PartRecord, PartTail, TextPlace
from nightmill.parts.writer import PartWriter

__all__ = [
    "FirstAnswers",
    "FolderParts",
    "PartRecord",
    "PartTail",
    "PartWriter",
    "Parts",
    "TextPlace",
    "counted_parts",
    "standing_records",
]
