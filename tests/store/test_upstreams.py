"""Upstreams that are changed at run time: a change names the revision it replaces; reports age by the
store's clock.
"""

import asyncio

from nightmill.core.audit import Actor, AuditAction
from nightmill.core.upstream_setting import UpstreamSetting, UpstreamState
from nightmill.ids import WorkerId
from nightmill.store import open_store
from nightmill.store.row_copy import copy_rows

ACTIVE, PAUSED, REMOVED = UpstreamState.ACTIVE, UpstreamState.PAUSED, UpstreamState.REMOVED
OPERATOR = Actor("operator")


async def test_an_added_upstream_is_read_back_with_its_first_revision(world, store, other_store):
    made = await store.upstreams.put("gpu", document="{}", state=ACTIVE, revision=None)
    assert made == UpstreamSetting("gpu", "{}", ACTIVE, 1, world.clock())
    assert await other_store.upstreams.settings() == [made]


async def test_an_upstream_is_added_only_once(world, store):
    await store.upstreams.put("gpu", document="{}", state=ACTIVE, revision=None)
    assert await store.upstreams.put("gpu", document=None, state=PAUSED, revision=None) is None
    (found,) = await store.upstreams.settings()
    assert (found.document, found.state) == ("{}", ACTIVE)


async def test_a_change_replaces_only_the_revision_that_it_names(world, store):
    await store.upstreams.put("gpu", document="{}", state=ACTIVE, revision=None)
    world.clock.step(5)
    changed = await store.upstreams.put("gpu", document=None, state=PAUSED, revision=1)
    assert changed == UpstreamSetting("gpu", None, PAUSED, 2, world.clock())
    assert await store.upstreams.put("gpu", document=None, state=REMOVED, revision=1) is None
    assert await store.upstreams.settings() == [changed]


async def test_a_change_of_an_upstream_without_a_setting_is_refused(world, store):
    assert await store.upstreams.put("gpu", document=None, state=PAUSED, revision=1) is None
    assert await store.upstreams.settings() == []


async def test_of_changes_at_the_same_time_one_wins(world, store, other_store):
    await store.upstreams.put("gpu", document=None, state=ACTIVE, revision=None)
    made = await asyncio.gather(
        *(
            (store, other_store)[number % 2].upstreams.put(
                "gpu", document=str(number), state=ACTIVE, revision=1
            )
            for number in range(6)
        )
    )
    (won,) = [setting for setting in made if setting is not None]
    assert await store.upstreams.settings() == [won]
    assert won.revision == 2


async def test_a_forgotten_setting_is_gone_and_only_its_newest_revision_can_be_forgotten(world, store):
    await store.upstreams.put("gpu", document=None, state=PAUSED, revision=None)
    await store.upstreams.put("gpu", document=None, state=ACTIVE, revision=1)
    assert not await store.upstreams.forget("gpu", 1)
    assert await store.upstreams.forget("gpu", 2)
    assert await store.upstreams.settings() == []
    assert not await store.upstreams.forget("gpu", 2)


async def test_changes_are_in_the_audit_log_without_the_document(world, store):
    await store.upstreams.put(
        "gpu",
        document='{"api_key": "secret"}',
        state=ACTIVE,
        revision=None,
        action=AuditAction.UPSTREAM_ADDED,
        by=OPERATOR,
    )
    await store.upstreams.put("gpu", document=None, state=ACTIVE, revision=7, by=OPERATOR)  # refused
    await store.upstreams.forget("gpu", 1, by=OPERATOR)
    entries = (await store.audit.list()).items
    seen = [(entry.action, entry.subject_id, entry.by, entry.detail) for entry in entries]
    assert seen[:2] == [
        ("upstream.reset", "gpu", OPERATOR, None),
        ("upstream.added", "gpu", OPERATOR, "revision 1"),
    ]
    assert "secret" not in repr(entries)
    assert sum(entry.action.startswith("upstream.") for entry in entries) == 2


async def test_a_worker_replaces_its_own_reports_only(world, store, other_store):
    await store.upstreams.report(world.worker, {"gpu": "old", "cpu": "kept"})
    await other_store.upstreams.report(world.other_worker, {"gpu": "other"})
    world.clock.step(1)
    await store.upstreams.report(world.worker, {"gpu": "new"})
    at = world.clock()
    assert await store.upstreams.reports(max_age_s=60) == [
        ("cpu", world.worker, "kept", at - 1),
        ("gpu", world.worker, "new", at),
        ("gpu", world.other_worker, "other", at - 1),
    ]


async def test_a_worker_with_nothing_to_report_changes_nothing(world, store):
    await store.upstreams.report(world.worker, {})
    assert await store.upstreams.reports(max_age_s=60) == []


async def test_old_reports_are_neither_read_nor_kept(world, store):
    await store.upstreams.report(world.worker, {"gpu": "old"})
    world.clock.step(30)
    await store.upstreams.report(world.other_worker, {"gpu": "young"})
    (report,) = await store.upstreams.reports(max_age_s=30)
    assert report.document == "young"
    assert await store.upstreams.delete_old_reports(max_age_s=30) == 1
    assert [report.document for report in await store.upstreams.reports(max_age_s=1_000)] == ["young"]


async def test_reports_of_a_dead_worker_go_with_its_leases(world, store):
    for worker in ("a", "b", "c"):
        await store.upstreams.report(WorkerId(worker), {"gpu": worker})
    await store.leases.release_of_worker(WorkerId("a"))
    assert [report.document for report in await store.upstreams.reports(max_age_s=60)] == ["b", "c"]
    await store.leases.release_all()
    assert await store.upstreams.reports(max_age_s=60) == []


async def test_a_move_to_postgres_takes_the_settings_along_and_leaves_the_reports(
    sqlite_databases, postgres_databases
):
    (source_url, clock), (target_url, _) = sqlite_databases.fresh(), postgres_databases.fresh()
    source, target = open_store(source_url, clock=clock), open_store(target_url)
    try:
        made = await source.upstreams.put("gpu", document="{}", state=PAUSED, revision=None)
        await source.upstreams.report(WorkerId("w"), {"gpu": "of an ended worker"})
        counts = await copy_rows(source_url, target_url, {})
        assert counts["upstream_setting"] == 1
        assert await target.upstreams.settings() == [made]
        assert await target.upstreams.reports(max_age_s=1e9) == []
    finally:
        await source.close()
        await target.close()
