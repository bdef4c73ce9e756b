"""What users and their programs depend on does not change unnoticed.

After a change on purpose: `make surface`, read the difference, and name it in the changelog.
"""

import pytest

from tests.surface.surface import PARTS, SNAPSHOTS


@pytest.mark.parametrize("name", sorted(PARTS))
def test_the_surface_is_as_recorded(name: str) -> None:
    recorded = (SNAPSHOTS / name).read_text(encoding="utf-8")
    assert PARTS[name]().splitlines() == recorded.splitlines(), (
        f"{name} changed; on purpose? run: make surface"
    )


def test_every_snapshot_is_checked() -> None:
    assert {path.name for path in SNAPSHOTS.iterdir()} == set(PARTS)
