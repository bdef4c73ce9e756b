"""Maintenance deletes what workers that are gone have left, and adds up counts."""

from nightmill.core.batch import Status
from nightmill.core.steering import BatchFilter
from nightmill.ids import WorkerId
from tests.roles.conftest import Mill


async def test_maintenance_deletes_the_reports_of_workers_that_are_gone(mill: Mill):
    await mill.store.upstreams.report(WorkerId("gone"), {"gpu": "{}"})
    await mill.store.database.write(
        lambda connection: connection.exec_driver_sql(
            "UPDATE upstream_report SET reported_at = reported_at - 3600"
        )
    )
    await mill.store.upstreams.report(WorkerId("alive"), {"gpu": "{}"})
    await mill.maintenance().turn()
    (left,) = await mill.store.upstreams.reports(max_age_s=1e9)
    assert left.worker_id == "alive"


async def aged(mill: Mill, age_s: int):
    """A batch that failed validation so long ago."""
    batch = await mill.batch_of(b"{\n")
    await mill.intake().turn()
    await mill.store.database.write(
        lambda connection: connection.exec_driver_sql(
            f"UPDATE batch SET failed_at = failed_at - {age_s} WHERE id = '{batch.id}'"
        )
    )
    return batch


def keeping_rows(mill: Mill, kept_s: int) -> Mill:
    retention = mill.settings.retention.model_copy(update={"rows_kept_s": kept_s})
    mill.settings = mill.settings.model_copy(update={"retention": retention})
    return mill


async def test_rows_of_batches_that_ended_long_ago_are_removed_as_the_settings_say(mill: Mill):
    old, young = await aged(mill, 8 * 86_400), await aged(mill, 6 * 86_400)
    await keeping_rows(mill, 7 * 86_400).maintenance().turn()
    assert await mill.store.batches.get(old.project_id, old.id) is None
    assert await mill.store.batches.get(young.project_id, young.id) is not None


async def test_rows_are_kept_for_ever_by_default(mill: Mill):
    old = await aged(mill, 1_000 * 86_400)
    await mill.maintenance().turn()
    assert await mill.store.batches.get(old.project_id, old.id) is not None


async def test_maintenance_adds_up_the_counts_of_batches(mill: Mill):
    await aged(mill, 0)
    await mill.maintenance().turn()
    assert await mill.store.batch_counts.fold() == 0
    (group,) = await mill.store.batch_counts.groups(None, BatchFilter())
    assert (group.status, group.count) == (Status.FAILED, 1)
