from nightmill.core.api_key import ApiKey


def _key(world, number: int = 1) -> ApiKey:
    return ApiKey(f"key_{number}", world.project, "laptop", f"digest-{number}", "abcd", int(world.clock()))


async def test_a_key_is_found_by_its_digest_until_it_is_revoked(world, store):
    key = _key(world)
    await store.add_api_key(key)
    assert await store.api_key("digest-1") == key
    assert await store.api_key("digest-2") is None
    assert await store.revoke_api_key("key_1")
    assert not await store.revoke_api_key("key_1")
    assert await store.api_key("digest-1") is None


async def test_keys_are_listed_in_the_order_they_were_made_with_the_revoked_ones(world, store):
    for number in (2, 1):
        await store.add_api_key(_key(world, number))
    await store.revoke_api_key("key_2")
    listed = await store.list_api_keys()
    assert [key.id for key in listed] == ["key_2", "key_1"]
    assert [key.revoked_at for key in listed] == [int(world.clock()), None]


async def test_revoking_the_last_key_does_not_look_like_having_none(world, store):
    assert not await store.has_api_keys()
    await store.add_api_key(_key(world))
    assert await store.has_api_keys()
    await store.revoke_api_key("key_1")
    assert await store.has_api_keys()


async def test_revoking_an_unknown_key_says_so(store):
    assert not await store.revoke_api_key("key_unknown")
