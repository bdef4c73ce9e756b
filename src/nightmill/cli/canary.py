"""`nightmill canary`: how the first lines of a batch go."""

from nightmill.cli.batches import BaseUrl, BatchId, server
from nightmill.cli.screen import Json, out_fields, out_json


def canary(batch_id: BatchId, base_url: BaseUrl = None, as_json: Json = False) -> None:
    """Show how the canary of a batch goes, and what it decided."""
    with server(base_url) as client:
        found = client.input.canary(batch_id)
    if as_json:
        out_json(found)
        return
    answered = None
    if found["completed"] is not None:
        done = found["completed"] + found["failed"]
        answered = f"{done} of {found['lines']}, {found['failed']} failed"
    out_fields(
        [
            ("id", found["id"]),
            ("status", found["status"]),
            ("canary", found["state"]),
            ("answered", answered),
            ("may fail", f"{found['max_failed'] * 100:g}%"),
            ("stopped", found["stop_reason"]),
        ]
    )
