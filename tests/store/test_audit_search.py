"""The search of the audit log reads a bounded part of it, and says where to go on."""

import pytest

from nightmill.core.audit import Actor, AuditAction
from nightmill.ids import ProjectId
from nightmill.store import audit

ANN = Actor("key_1", "abcd")


@pytest.fixture
async def entries(store):
    for number in range(6):
        action = AuditAction.KEY_CREATED if number % 2 else AuditAction.FILE_CREATED
        await store.audit.add(ANN, action, f"id-{number}", project_id=ProjectId("p"))
    await store.audit.add(Actor("operator", "root"), AuditAction.KEY_REVOKED, "id-1")


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        ({"action": "key"}, ["id-1", "id-5", "id-3", "id-1"]),
        ({"action": "key.created"}, ["id-5", "id-3", "id-1"]),
        ({"action": "ke"}, []),
        ({"actor": "abcd", "action": "file"}, ["id-4", "id-2", "id-0"]),
        ({"actor": "operator"}, ["id-1"]),
        ({"subject_id": "id-1"}, ["id-1", "id-1"]),
        ({"project_id": "p", "subject_id": "id-1"}, ["id-1"]),
        ({"action": "%"}, []),
    ],
)
async def test_every_filter_finds_its_entries_newest_first(store, entries, filters, found):
    search = await store.audit.search(**filters)
    assert [entry.subject_id for entry in search.items] == found
    assert search.goes_on_before is None


async def test_pages_and_parts_of_the_log_together_have_every_entry_once(store, entries, monkeypatch):
    monkeypatch.setattr(audit, "SEARCHED", 2)
    found, before, rounds = [], None, 0
    while rounds == 0 or before is not None:
        search = await store.audit.search(action="key", before=before, limit=1)
        found += [entry.subject_id for entry in search.items]
        before, rounds = search.goes_on_before, rounds + 1
        assert rounds < 20
    assert found == ["id-1", "id-5", "id-3", "id-1"]


async def test_an_empty_log_is_at_its_end(store):
    search = await store.audit.search(actor="key_unknown")
    assert (search.items, search.goes_on_before) == ((), None)
