"""The migrations create exactly the tables of `schema`, and leave databases of newer releases unchanged."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, text

from nightmill.errors import SetupError, UnavailableError
from nightmill.store import migrate, migrations, open_store
from nightmill.store.migrate import metadata, upgrade
from nightmill.store.readiness import make_ready
from nightmill.store.steps import COMPATIBILITY_TABLE, SCHEMA_VERSION, STEPS, process_name


def _schema(engine) -> set[str]:
    """Every table and index as SQLite stores it; white space and the order of columns are ignored."""
    with engine.connect() as connection:
        rows = connection.execute(text("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL")).scalars()
        return {" | ".join(sorted(_pieces(" ".join(row.split())))) for row in rows}


def _pieces(declared: str) -> Iterator[str]:
    """Split at the outermost parentheses and at the commas directly inside them."""
    depth, piece = 0, ""
    for letter in declared:
        depth += (letter == "(") - (letter == ")")
        if (letter, depth) in ((",", 1), ("(", 1), (")", 0)):
            yield piece.strip()
            piece = ""
        else:
            piece += letter
    yield piece.strip()


async def test_the_migrations_create_exactly_the_schema(tmp_path):
    migrated = create_engine(f"sqlite:///{tmp_path / 'migrated.sqlite'}")
    with migrated.begin() as connection:
        upgrade(connection, to=SCHEMA_VERSION)
    await migrate(f"sqlite:///{tmp_path / 'declared.sqlite'}")
    declared = create_engine(f"sqlite:///{tmp_path / 'declared.sqlite'}")
    assert _schema(migrated) == _schema(declared)
    with migrated.connect() as connection:
        context = MigrationContext.configure(connection)
        assert compare_metadata(context, metadata) == []
        assert context.get_current_revision() == SCHEMA_VERSION
    migrated.dispose()
    declared.dispose()


async def test_repeated_and_concurrent_migrations_have_the_effect_of_one(tmp_path):
    url = f"sqlite:///{tmp_path / 'nightmill.sqlite'}"
    await asyncio.gather(*(migrate(url) for _ in range(4)))
    await migrate(url)


async def test_a_newer_database_is_refused_with_a_one_line_error_and_left_unchanged(tmp_path):
    url = f"sqlite:///{tmp_path / 'nightmill.sqlite'}"
    await migrate(url)
    engine = create_engine(url)
    with engine.begin() as connection:
        _mark_as_newer(connection, "9999")
    with pytest.raises(SetupError, match="9999 is newer") as caught:
        await migrate(url)
    assert "\n" not in str(caught.value)
    with engine.connect() as connection:
        assert connection.execute(text("SELECT version_num FROM alembic_version")).scalar() == "9999"
    engine.dispose()


def _mark_as_newer(connection, oldest: str) -> None:
    connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    connection.execute(text(f"UPDATE {COMPATIBILITY_TABLE} SET oldest = '{oldest}'"))


async def test_a_newer_database_that_declares_this_release_compatible_is_used_and_left_unchanged(tmp_path):
    url = f"sqlite:///{tmp_path / 'nightmill.sqlite'}"
    await migrate(url)
    engine = create_engine(url)
    with engine.begin() as connection:
        _mark_as_newer(connection, SCHEMA_VERSION)
    engine.dispose()
    assert await migrate(url) == "9999"
    await make_ready(url, clock=time.time, busy_timeout_s=1)
    async with opened(url) as store:
        await store.ping()
    with engine.begin() as connection:
        _mark_as_newer(connection, "9998")
    engine.dispose()
    with pytest.raises(SetupError, match="9999 is newer"):
        await migrate(url)
    with pytest.raises(SetupError, match="9999 is newer"):
        await make_ready(url, clock=time.time, busy_timeout_s=1)
    async with opened(url) as store:
        with pytest.raises(UnavailableError, match="9999 is newer"):
            await store.ping()


@asynccontextmanager
async def opened(url: str):
    store = open_store(url)
    try:
        yield store
    finally:
        await store.close()


def test_the_declared_steps_match_the_migration_scripts_in_order():
    scripts = ScriptDirectory(str(Path(migrations.__path__[0])))
    assert [step.version for step in STEPS] == [it.revision for it in reversed([*scripts.walk_revisions()])]


@pytest.mark.parametrize("kind", ["postgres"])
async def test_connections_to_postgres_carry_the_name_of_the_process(kind, world, store):
    await store.ping()

    def seen(connection) -> list[str]:
        return connection.execute(text("SELECT application_name FROM pg_stat_activity")).scalars().all()

    assert process_name() in await store.database.read(seen)


async def test_a_missing_folder_is_named_in_the_error(tmp_path):
    with pytest.raises(SetupError, match="missing"):
        await migrate(f"sqlite:///{tmp_path / 'missing' / 'nightmill.sqlite'}")


async def test_a_percent_sign_in_the_path_is_not_a_placeholder(tmp_path):
    folder = tmp_path / "100%"
    folder.mkdir()
    await migrate(f"sqlite:///{folder / 'nightmill.sqlite'}")


_RULES = text("""
    SELECT conrelid::regclass || ' ' || conname || ' ' || pg_get_constraintdef(oid) FROM pg_constraint
     WHERE connamespace = current_schema()::regnamespace AND conrelid::regclass::text NOT LIKE 'alembic%'
    UNION SELECT indexdef FROM pg_indexes
     WHERE schemaname = current_schema() AND tablename NOT LIKE 'alembic%'
""")


@pytest.mark.parametrize("kind", ["postgres"])
async def test_the_migrations_create_exactly_the_schema_in_postgres(kind, world, store):
    # In separate schemas, because `public` holds the clock that the store of every test reads.
    def rules_of(connection, name: str, make) -> set[str]:
        connection.execute(text(f"CREATE SCHEMA {name}"))
        connection.execute(text(f"SET LOCAL search_path = {name}, pg_catalog"))
        make(connection)
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
        found = set(connection.execute(_RULES).scalars())
        connection.execute(text(f"DROP SCHEMA {name} CASCADE"))
        return {rule.replace(f"{name}.", "") for rule in found}

    def migrated(connection) -> set[str]:
        return rules_of(connection, "migrated", partial(upgrade, to=SCHEMA_VERSION))

    def declared(connection) -> set[str]:
        return rules_of(connection, "declared", metadata.create_all)

    assert await store.database.write(migrated) == await store.database.write(declared)
    await asyncio.gather(*(migrate(world.url) for _ in range(3)))
