"""The validation report over HTTP: streamed, of the own project, and kept for some time."""

import json
from dataclasses import replace

import pytest

from nightmill.core.batch import Event, LineError, Status
from tests.api.test_batches import create

BROKEN = (LineError("invalid_json_line", "This line is not parseable as valid JSON.", None, 1),)


@pytest.fixture
def rejected(server, client, input_file_id, project):
    """Makes a failed batch with a report, as intake leaves it."""

    def make(rows: bytes | None, errors=BROKEN):
        batch = create(client, input_file_id)
        store, blobs = server.context.store, server.context.blobs

        async def reject():
            lease = None
            while lease is None or lease.batch.id != batch.id:  # other tests leave batches behind
                lease = await store.batch_leases.lease((Status.VALIDATING,), "intake_1", ttl_s=60)
            key = None
            if rows is not None:
                key = f"lines/{batch.id}/report.1"
                writer = await blobs.open_writer(key)
                await writer.write(rows)
                await writer.commit()
            after = replace(lease.batch.after(Event.REJECTED, now=1), errors=errors, report_blob_key=key)
            assert await store.batch_leases.reject(lease, after)

        server.do(reject())
        return batch.id

    return make


def test_the_report_is_a_download_of_json_lines(server, key, rejected):
    batch_id = rejected(b'{"line": 1}\n{"line": 3}\n')
    answer = server.send("GET", f"/nightmill/v1/batches/{batch_id}/validation", key=key)
    assert answer.status == 200
    assert answer.body == b'{"line": 1}\n{"line": 3}\n'
    assert answer.headers["content-length"] == "24"
    assert f"{batch_id}_validation.jsonl" in answer.headers["content-disposition"]


def test_the_errors_of_a_file_that_could_not_be_read_are_the_report(server, key, rejected):
    batch_id = rejected(None, (LineError("invalid_request", "Cannot find file.", "file_id"),))
    answer = server.send("GET", f"/nightmill/v1/batches/{batch_id}/validation", key=key)
    (row,) = [json.loads(line) for line in answer.body.splitlines()]
    assert (row["line"], row["code"], row["field"]) == (None, "invalid_request", "file_id")


def test_a_batch_that_is_being_validated_has_no_report_yet(server, client, key, input_file_id):
    batch = create(client, input_file_id)
    answer = server.send("GET", f"/nightmill/v1/batches/{batch.id}/validation", key=key)
    assert answer.status == 409
    assert "still being validated" in answer.error["message"]


def test_a_deleted_report_and_a_foreign_batch_are_not_found(server, key, rejected):
    batch_id = rejected(b"{}\n")
    server.do(server.context.blobs.delete(f"lines/{batch_id}/report.1"))
    answer = server.send("GET", f"/nightmill/v1/batches/{batch_id}/validation", key=key)
    assert answer.status == 404
    assert "kept for 30 days" in answer.error["message"]
    assert server.send("GET", "/nightmill/v1/batches/batch_x/validation", key=key).status == 404
    other = server.new_key("project-of-another")
    assert server.send("GET", f"/nightmill/v1/batches/{batch_id}/validation", key=other).status == 404
