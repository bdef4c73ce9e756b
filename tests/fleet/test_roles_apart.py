"""API servers and worker hosts as separate processes, over one Postgres and one blob store."""

import signal

import pytest

from tests.fleet.conftest import begin, each_once, ended, until
from tests.terminal import Terminal

LINES = 120


def test_a_server_on_postgres_needs_no_other_setting(fleet):
    server = fleet.serve("--emulate")
    client = server.client()
    batch = ended(client, begin(client, LINES).id)
    assert batch.status == "completed"
    each_once(client, batch, LINES)
    assert server.end() == 0
    assert "Traceback" not in server.said


def test_one_batch_is_shared_by_all_workers_and_served_by_any_server(fleet, upstream):
    source = upstream(delay_s=0.1)
    first, second = (fleet.serve("--workers", "0") for _ in range(2))
    worker_hosts = [fleet.work("--upstream", source.url, "--concurrency", "4") for _ in range(2)]
    made = begin(first.client(), 2 * LINES)
    holders = set()

    def look() -> bool:
        found = fleet.sql("SELECT DISTINCT worker_id FROM segment WHERE state = 'leased'")
        holders.update(found.split())
        return len(holders) == 2

    until(look, pause_s=0.2)
    batch = ended(second.client(), made.id)
    assert batch.status == "completed"
    each_once(second.client(), batch, 2 * LINES)
    assert max(source.requests().values()) == 1
    for process in [first, second, *worker_hosts]:
        assert process.end() == 0, process.said
        assert "Traceback" not in process.said


def test_stopping_a_worker_host_repeats_no_line(fleet, upstream):
    source = upstream(delay_s=0.05)
    server = fleet.serve("--workers", "0")
    leaving = fleet.work("--upstream", source.url, "--concurrency", "8")
    made = begin(server.client(), LINES)
    until(lambda: len(source.requests()) > 10)
    staying = fleet.work("--upstream", source.url, "--concurrency", "8")
    assert leaving.end() == 0, leaving.said
    assert fleet.sql("SELECT count(*) FROM segment WHERE state = 'leased'") != ""
    batch = ended(server.client(), made.id)
    each_once(server.client(), batch, LINES)
    assert max(source.requests().values()) == 1
    assert staying.end() == 0


def test_the_roles_of_a_process_can_be_chosen(fleet, upstream):
    source = upstream()
    server = fleet.serve("--workers", "0")
    made = begin(server.client(), 5)
    fleet.work("--roles", "intake,finalizer,maintenance")
    until(lambda: server.client().batches.retrieve(made.id).status == "in_progress")
    fleet.work("--roles", "worker", "--upstream", source.url)
    assert ended(server.client(), made.id).status == "completed"


@pytest.mark.parametrize(
    ("words", "environment", "message"),
    [
        (("work", "--emulate"), {"NIGHTMILL_STORE": "sqlite:////tmp/x.sqlite"}, "other machines reach"),
        (("work", "--roles", "wroker"), {}, "no role 'wroker'"),
        (("work",), {}, "no upstream"),
        (("serve", "--workers", "0"), {"NIGHTMILL_STORE": "sqlite:////tmp/x.sqlite"}, "other processes must"),
        (("serve", "--emulate"), {"NIGHTMILL_STORE": "mysql://nobody@127.0.0.1/x"}, "can't live in 'mysql'"),
        (("serve", "--emulate"), {"NIGHTMILL_STORE": "postgresql://a:b@127.0.0.1:1/x"}, "can't be reached"),
        (
            ("serve", "--emulate"),
            {"NIGHTMILL_STORE": "postgresql://a:b@127.0.0.1:1/x?sslmode=sometimes"},
            "what it does not take",
        ),
    ],
)
def test_a_wrong_configuration_gives_a_one_line_error(fleet, words, environment, message):
    refused = fleet.start(*words, environment=environment)
    assert refused.process.wait(timeout=30) in (75, 78)
    lines = [line for line in refused.said.splitlines() if "EMULATED" not in line]
    assert lines[0].startswith("nightmill: ")
    assert message in lines[0]
    assert "a:b" not in refused.said
    assert "Traceback" not in refused.said


def test_ctrl_c_in_a_terminal_stops_a_worker_host_without_a_traceback(fleet, tmp_path):
    environment = fleet.environment | {"NIGHTMILL_STORE": fleet.store}
    host = Terminal("work", "--emulate", folder=tmp_path, environment=environment)
    try:
        host.until("EMULATED")
        host.press_ctrl_c()
        assert host.end() == 0
        assert "stopping: waiting for lines and requests in flight, at most 30 s\n" in host.shown
        assert host.shown.endswith(
            "nightmill stopped; other processes, or the next start, go on with its work\n"
        )
        assert "Traceback" not in host.shown
    finally:
        host.close()


def test_the_url_may_contain_parameters_of_libpq(fleet):
    url = f"{fleet.store}?sslmode=prefer&application_name=nightmill"
    server = fleet.serve("--workers", "0", environment={"NIGHTMILL_STORE": url})
    assert list(server.client().batches.list()) == []
    assert "nightmill" in fleet.sql("SELECT DISTINCT application_name FROM pg_stat_activity")
    refused = fleet.start("serve", "--workers", "0", environment={"NIGHTMILL_STORE": url + "&sslmod=x"})
    assert refused.process.wait(timeout=30) == 78
    assert "what it does not take" in refused.said
    assert server.end() == 0


def test_a_database_that_does_not_exist_gives_a_one_line_error(fleet):
    refused = fleet.start("serve", "--workers", "0", environment={"NIGHTMILL_STORE": f"{fleet.store}_not"})
    assert refused.process.wait(timeout=30) == 78
    assert refused.said.startswith("nightmill: the store's Postgres refuses the login")
    assert len(refused.said.splitlines()) == 1


@pytest.mark.parametrize(
    ("version", "message"),
    [("0000", "run 'nightmill migrate --before'"), ("9999", "newer than this nightmill knows")],
)
@pytest.mark.parametrize("words", [("serve", "--workers", "0"), ("work", "--emulate")])
def test_a_database_with_another_schema_is_refused_and_left_unchanged(migrated, version, message, words):
    migrated.sql(f"UPDATE alembic_version SET version_num = '{version}'")
    migrated.sql(f"UPDATE schema_compatibility SET oldest = '{version}'")
    refused = migrated.start(*words)
    assert refused.process.wait(timeout=30) == 78
    assert message in refused.said.splitlines()[-1]
    assert migrated.sql("SELECT version_num FROM alembic_version") == version


def test_a_clock_that_differs_from_the_database_clock_is_refused(migrated):
    name = migrated.store.rsplit("/", 1)[1]
    migrated.sql(f"ALTER DATABASE {name} SET search_path = public, pg_catalog")
    migrated.sql(
        "CREATE FUNCTION public.now() RETURNS timestamptz LANGUAGE sql STABLE"
        " AS $$ SELECT clock_timestamp() - interval '1 hour' $$"
    )
    refused = migrated.start("serve", "--workers", "0")
    assert refused.process.wait(timeout=30) == 78
    assert "clock and the store's are 3600 s apart" in refused.said


def test_migrate_creates_the_schema_and_reports_it(fleet):
    for _ in range(2):
        migrating = fleet.start("migrate")
        assert migrating.process.wait(timeout=30) == 0, migrating.said
        assert "schema is" in migrating.said
    assert fleet.serve("--workers", "0").end() == 0


def test_when_a_whole_worker_host_is_killed_the_others_take_over_its_work(fleet, upstream):
    source = upstream(delay_s=0.05)
    server = fleet.serve("--workers", "0")
    dying = fleet.work("--upstream", source.url, "--concurrency", "8")
    made = begin(server.client(), LINES)
    until(lambda: len(source.requests()) > 10)
    fleet.work("--upstream", source.url, "--concurrency", "8")
    dying.kill()
    batch = ended(server.client(), made.id)
    each_once(server.client(), batch, LINES)
    assert sum(source.requests().values()) <= LINES + 8 + 8


def test_a_worker_host_that_freezes_and_resumes_late_changes_nothing(fleet, upstream):
    source = upstream(delay_s=0.05)
    server = fleet.serve("--workers", "0")
    frozen = fleet.work("--upstream", source.url, "--concurrency", "8")
    made = begin(server.client(), LINES)
    until(lambda: len(source.requests()) > 10)
    fleet.work("--upstream", source.url, "--concurrency", "8")
    frozen.send(signal.SIGSTOP)
    batch = ended(server.client(), made.id)
    frozen.send(signal.SIGCONT)
    each_once(server.client(), batch, LINES)
    assert frozen.end() == 0
    each_once(server.client(), server.client().batches.retrieve(made.id), LINES)
