"""Maintenance deletes what workers that are gone have left."""

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
