from dataclasses import replace

from sqlalchemy import create_engine, text

from nightmill.core.api_key import ApiKey, Scope
from nightmill.store.migrate import upgrade


def _key(world, number: int = 1) -> ApiKey:
    return ApiKey(f"key_{number}", world.project, "laptop", f"digest-{number}", "abcd", int(world.clock()))


async def test_a_key_is_found_by_its_digest_until_it_is_revoked(world, store):
    key = _key(world)
    await store.api_keys.add(key)
    assert await store.api_keys.get("digest-1") == key
    assert await store.api_keys.get("digest-2") is None
    assert await store.api_keys.revoke("key_1")
    assert not await store.api_keys.revoke("key_1")
    assert await store.api_keys.get("digest-1") is None


async def test_keys_are_listed_in_order_of_creation_including_revoked_keys(world, store):
    for number in (2, 1):
        await store.api_keys.add(_key(world, number))
    await store.api_keys.revoke("key_2")
    listed = await store.api_keys.list()
    assert [key.id for key in listed] == ["key_2", "key_1"]
    assert [key.revoked_at for key in listed] == [int(world.clock()), None]


async def test_a_store_whose_last_key_was_revoked_still_has_keys(world, store):
    assert not await store.api_keys.any_exist()
    await store.api_keys.add(_key(world))
    assert await store.api_keys.any_exist()
    await store.api_keys.revoke("key_1")
    assert await store.api_keys.any_exist()


async def test_revoking_an_unknown_key_returns_false(store):
    assert not await store.api_keys.revoke("key_unknown")


async def test_every_scope_is_stored(world, store):
    for number, scope in enumerate(Scope):
        await store.api_keys.add(replace(_key(world, number), scope=scope))
    assert [key.scope for key in await store.api_keys.list()] == list(Scope)


def test_an_upgrade_keeps_the_keys_and_their_order(tmp_path):
    engine = create_engine(f"sqlite:///{tmp_path / 'nightmill.sqlite'}")
    columns = "sequence, id, project_id, name, digest, hint, created_at, revoked_at, scope"
    with engine.begin() as connection:
        upgrade(connection, to="0003")
        for row in (
            "(3, 'key_3', 'p', 'n', 'd3', 'h', 1, NULL, 'project')",
            "(7, 'key_7', 'p', 'n', 'd7', 'h', 1, 2, 'admin')",
        ):
            connection.execute(text(f"INSERT INTO api_key ({columns}) VALUES {row}"))
        upgrade(connection, to="0004")
        connection.execute(
            text(
                "INSERT INTO api_key (id, project_id, name, digest, hint, created_at, scope)"
                " VALUES ('key_8', 'p', 'n', 'd8', 'h', 1, 'read')"
            )
        )
        rows = connection.execute(text(f"SELECT {columns} FROM api_key ORDER BY sequence")).all()
    engine.dispose()
    assert [(row.sequence, row.id, row.revoked_at, row.scope) for row in rows] == [
        (3, "key_3", None, "project"),
        (7, "key_7", 2, "admin"),
        (8, "key_8", None, "read"),
    ]
