"""With a hundred thousand batches every frequent statement must use an index, also for its order."""

from contextlib import closing

import pytest
from sqlalchemy.dialects import sqlite

from nightmill.core.batch import Status
from nightmill.core.steering import BatchFilter
from nightmill.store import (
    answered_segments,
    audit,
    batch_leases,
    batch_watch,
    batches,
    file_uses,
    files,
    open_batches,
    projects,
    segments,
    upstream_samples,
    upstreams,
    webhook_deliveries,
    webhooks,
    workers,
)
from nightmill.store.batch_matches import Matches
from nightmill.store.batches import BATCH_COLUMNS
from nightmill.store.clock import CLOCK_FUNCTION
from nightmill.store.schema import batch
from nightmill.store.sqlite import sqlite_library

_PARAMETERS = {
    "segment_limit": 1,
    "batch_limit": 9,
    "near_limit": 8,
    "after_project": "",
    "project_limit": 8,
    "passed_over": ["batch_1"],
    "by_worker_id": "worker_1",
    "sequences": [1, 2],
    "of_batch_ids": ["batch_1"],
    "page_rows": 21,
    "blob_limit": 10,
    "expired_limit": 10,
    "statuses": ["validating"],
    "batch_ids": ["batch_1"],
}


@pytest.fixture(params=["sqlite"])
def kind(request) -> str:
    """Only SQLite: the plans of Postgres depend on statistics, which an empty database does not have."""
    return request.param


def _plan(world, statement) -> list[str]:
    compiled = statement.compile(dialect=sqlite.dialect())
    required = {name: _PARAMETERS.get(name) for name, it in compiled.binds.items() if it.required}
    expanded = compiled.construct_expanded_state(required)
    path = world.url.removeprefix("sqlite:///")
    with closing(sqlite_library().module.connect(path)) as connection:
        connection.create_function(CLOCK_FUNCTION, 0, lambda: 1.0, deterministic=True)
        return [
            row[3]
            for row in connection.execute(
                f"EXPLAIN QUERY PLAN {expanded.statement}", expanded.positional_parameters
            )
        ]


def test_leasing_reads_only_the_first_batches_and_their_first_segments(world):
    assert _plan(world, segments._BATCHES) == [
        "SCAN batch USING INDEX batch_in_progress",
        "CORRELATED SCALAR SUBQUERY 1",
        "SEARCH segment USING COVERING INDEX segment_waiting (batch_id=? AND number<?)",
        "CORRELATED SCALAR SUBQUERY 2",
        "SEARCH segment USING COVERING INDEX segment_leased (batch_id=?)",
    ]
    plan = _plan(world, segments._NEXT)
    assert plan[0] == "SEARCH segment USING COVERING INDEX segment_waiting (batch_id=? AND number<?)"
    assert "TEMP B-TREE" not in " ".join(plan)
    plan = _plan(world, segments._LEASE)
    assert plan[0] == "SEARCH segment USING PRIMARY KEY (batch_id=? AND number=?)"


@pytest.mark.parametrize(
    ("statement", "index"),
    [
        (batches._ONE_BATCH, "sqlite_autoindex_batch_1 (id=?)"),
        (batches._PAGE, "batch_by_age (project_id=?)"),
        (batches._NEXT_PAGE, "batch_by_age (project_id=? AND created_at<?)"),
        (batches._OVERDUE, "batch_by_deadline (expires_at<?)"),
        (batches._OVERDUE_PAUSED, "batch_paused (expires_at<?)"),
        (batches._TERMS, "sqlite_autoindex_batch_1 (id=?)"),
        (batches._SETTLED, "batch_settled"),
        (batch_leases._CANDIDATE, "batch_leasable"),
        (segments._PREFERRED, "sqlite_autoindex_batch_1 (id=?)"),
        (segments._RELEASE_EXPIRED, "segment_leased"),
        (segments._HELD_BY_WORKER, "segment_held (worker_id=?)"),
        (segments._HELD_BY_LEASE, "PRIMARY KEY (batch_id=? AND number=?)"),
        (answered_segments._ANSWERED, "PRIMARY KEY (batch_id=? AND number>? AND number<?)"),
        (answered_segments._STANDS, "PRIMARY KEY (batch_id=? AND number=?)"),
        (files._ONE, "sqlite_autoindex_file_1 (id=?)"),
        (files._EXPIRED, "file_by_expiry (expires_at<?)"),
        (files._EXPIRED_PROJECTS, "file_by_expiry (expires_at<?)"),
        (files._DELETE, "sqlite_autoindex_file_1 (id=?)"),
        (file_uses._READERS, "batch_by_input (input_file_id=?)"),
        (file_uses._WRITERS, "sqlite_autoindex_batch_1 (id=?)"),
        (projects._OPEN, "batch_open (project_id=?)"),
        (audit._DELETE_OLD, "audit_by_age (at<?)"),
        (webhooks._LISTENERS, "webhook_endpoint_by_age (project_id=?)"),
        (webhook_deliveries._RELEASE_ALL, "webhook_delivery_pending"),
        (webhook_deliveries._OF_ENDPOINT, "webhook_delivery_by_endpoint (endpoint_id=?)"),
        (webhook_deliveries._OLD, "webhook_delivery_ended (created_at<?)"),
        (upstreams._DELETE_OLD, "upstream_report_by_time (reported_at<?)"),
        (upstream_samples._OF, "sqlite_autoindex_upstream_sample_1 (upstream=? AND at>?)"),
        (upstream_samples._THIN, "upstream_sample_by_time (at<?)"),
        (upstream_samples._FORGET, "upstream_sample_by_time (at<?)"),
    ],
)
def test_a_frequent_statement_uses_its_index(world, statement, index):
    plan = _plan(world, statement)
    assert plan[0].endswith(index)
    assert "TEMP B-TREE" not in " ".join(plan)


@pytest.mark.parametrize("statement", [webhook_deliveries._ANY_DUE, webhook_deliveries._CANDIDATES])
def test_a_courier_reads_only_deliveries_that_are_due(world, statement):
    reads = [step for step in _plan(world, statement) if "webhook_delivery" in step]
    assert reads == ["SEARCH webhook_delivery USING INDEX webhook_delivery_pending (next_at<?)"]


def test_the_backlog_is_counted_without_reading_waiting_segments(world):
    seen = [step for step in _plan(world, batches._SEGMENTS) if "SUBQUERY" not in step]
    assert seen == [
        "SCAN CONSTANT ROW",
        "SCAN batch USING INDEX batch_in_progress",
        "SCAN segment USING COVERING INDEX segment_leased",
        "SEARCH batch USING INDEX sqlite_autoindex_batch_1 (id=?)",
        "SCAN segment USING COVERING INDEX segment_leased",
    ]


def test_candidates_are_found_without_reading_all_open_batches(world):
    is_leased = "SEARCH segment USING COVERING INDEX segment_leased (batch_id=?)"
    has_waiting = "SEARCH segment USING COVERING INDEX segment_waiting (batch_id=? AND number<?)"
    plan = _plan(world, open_batches._NEAR)
    assert plan[0] == "SEARCH batch USING INDEX batch_by_deadline (expires_at>? AND expires_at<?)"
    assert (plan[2], plan[4]) == (has_waiting, is_leased)
    assert "TEMP B-TREE" not in " ".join(plan)
    plan = _plan(world, open_batches._PROJECTS)
    reads = [step for step in plan if step.startswith("SEARCH")]
    assert reads == [
        *["SEARCH batch USING INDEX batch_by_project (project_id>?)"] * 2,
        "SEARCH batch USING INDEX batch_by_priority (project_id>? AND project_id<?)",
        has_waiting,
        is_leased,
        "SEARCH batch USING INDEX batch_by_project (project_id>? AND project_id<?)",
        has_waiting,
        is_leased,
        "SEARCH batch USING INDEX batch_by_size (project_id>? AND project_id<?)",
        has_waiting,
        is_leased,
    ]
    assert "TEMP B-TREE" not in " ".join(plan)
    reads = [step for step in _plan(world, open_batches._MODELS) if step.startswith("SEARCH")]
    assert reads == [
        *["SEARCH batch USING INDEX batch_by_model (model>?)"] * 2,
        "SEARCH batch USING INDEX batch_by_model (model>? AND model<?)",
        has_waiting,
        is_leased,
    ]
    plan = _plan(world, open_batches._OF_SEVERAL_MODELS)
    assert plan[0] == "SEARCH batch USING INDEX batch_by_model (model=?)"
    assert "TEMP B-TREE" not in " ".join(plan)
    by_id = ["SEARCH batch USING INDEX sqlite_autoindex_batch_1 (id=?)"]
    assert _plan(world, open_batches._PRIORITIES) == by_id
    assert _plan(world, open_batches._BY_SEQUENCE) == ["SEARCH batch USING INTEGER PRIMARY KEY (rowid=?)"]


@pytest.mark.parametrize(
    ("statement", "index"),
    [
        (batch_watch._RUNNING_IDS, "segment_leased"),
        (batch_watch._NEXT, "batch_in_progress (sequence>?)"),
        (batch_watch._PAUSES, "batch_event_by_batch (batch_id=?)"),
        (batch_watch._SAMPLES, "sqlite_autoindex_batch_sample_1 (batch_id=?)"),
        (batch_watch._THIN, "sqlite_autoindex_batch_sample_1 (batch_id=? AND at<?)"),
        (batch_watch._SAMPLED, "sqlite_autoindex_batch_sample_1 (batch_id>?)"),
        (batch_watch._REPORTED, "sqlite_autoindex_batch_report_1 (batch_id>?)"),
    ],
)
def test_the_observer_reads_by_an_index_in_its_order(world, statement, index):
    plan = _plan(world, statement)
    assert index in plan[0]
    assert "TEMP B-TREE" not in " ".join(plan)


@pytest.mark.parametrize("project", ["proj_a", None])
@pytest.mark.parametrize(
    ("wanted", "read"),
    [
        (BatchFilter(), "batch_by"),
        (BatchFilter(statuses=frozenset({Status.FAILED}), model="a", created_after=1), "batch_by"),
        (BatchFilter(text="tickets"), "batch_text"),
        (BatchFilter(metadata={"team": "a"}, endpoint="/v1/embeddings"), "batch_text"),
    ],
)
async def test_a_list_reads_what_it_compares_in_its_order(world, store, wanted, read, project):
    def plan(connection) -> list[str]:
        return _plan(world, Matches(connection, project, wanted).newest(*BATCH_COLUMNS).limit(20))

    found = await store.database.read(plan)
    assert read in found[0]
    assert "TEMP B-TREE" not in " ".join(found)


@pytest.mark.parametrize("wanted", [BatchFilter(id_prefix="batch_3f"), BatchFilter(text="batch_3f")])
async def test_the_beginning_of_an_id_is_a_range_of_an_index(world, store, wanted):
    await store.batches.create(world.batch(id="batch_3f2a"))

    def plan(connection) -> list[str]:
        return _plan(world, Matches(connection, world.project, wanted).newest(batch.c.id))

    found = await store.database.read(plan)
    assert found[0].endswith("sqlite_autoindex_batch_1 (id>? AND id<?)")


def test_the_fleet_is_read_from_the_indexes_of_what_is_leased(world):
    reads = [
        step
        for statement in (workers._SEGMENTS, workers._BATCHES, workers._SLICES)
        for step in _plan(world, statement)
        if step.startswith(("SCAN", "SEARCH")) and "INDEX" in step
    ]
    assert [step.split("INDEX ")[1] for step in reads] == ["segment_leased", "batch_leasable", "slice_open"]
