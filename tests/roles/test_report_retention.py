"""The validation report stays while it is wanted, and is deleted some time after the end of its batch."""

import time

from nightmill.core.batch import Status
from nightmill.roles.orphan_blobs import OrphanSweep
from nightmill.store import open_store
from nightmill.store.blob_references import REPORT_KEPT_S
from tests.roles.conftest import Mill, request_line


async def test_a_report_is_no_orphan_and_is_unused_only_thirty_days_after_the_end(mill: Mill) -> None:
    batch = await mill.batch_of(request_line("a") + b"{\n")
    await mill.intake().turn()
    batch = await mill.now(batch)
    assert batch.status is Status.FAILED
    key = batch.report_blob_key
    assert key is not None
    sweep = OrphanSweep(store=mill.store, blobs=mill.blobs, monotonic=time.monotonic)
    await sweep.sweep()
    await sweep.sweep()
    assert await mill.blobs.size_bytes(key)

    for late_s, unused in ((REPORT_KEPT_S - 60, []), (REPORT_KEPT_S + 60, [key])):
        later = open_store(mill.settings.store_url, clock=lambda late_s=late_s: time.time() + late_s)
        assert [it for it in await later.blob_references.unused() if it == key] == unused
        if unused:
            await later.blob_references.remove(unused)
        await later.close()
    assert (await mill.now(batch)).report_blob_key is None
