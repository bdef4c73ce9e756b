from nightmill.core.api_key import ApiKey


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
