"""A made-up next release: one step before its deploy, one after.

The first adds a column that the present release doesn't know. The second fills the column in rows that the
present release wrote meanwhile.
"""

import re
from pathlib import Path

from nightmill.store.steps import SCHEMA_VERSION, STEPS, Stage, Step

BEFORE = f"{int(SCHEMA_VERSION) + 1:04}"
AFTER = f"{int(SCHEMA_VERSION) + 2:04}"
NEXT_STEPS = (*STEPS, Step(BEFORE, Stage.BEFORE), Step(AFTER, Stage.AFTER))

_SCRIPT = '''"""A made-up step."""

from alembic import op

revision = "{version}"
down_revision = "{previous}"


def upgrade() -> None:
    op.execute("{statement}")
'''
_DECLARED = re.compile(r"^STEPS: Final = .*$", re.MULTILINE)


def add_scripts(migrations: Path) -> None:
    """Adds the two steps to a copy of `nightmill/store/migrations`."""
    for version, previous, statement in (
        (BEFORE, SCHEMA_VERSION, "ALTER TABLE file ADD COLUMN note TEXT"),
        (AFTER, BEFORE, "UPDATE file SET note = 'filled in' WHERE note IS NULL"),
    ):
        script = _SCRIPT.format(version=version, previous=previous, statement=statement)
        (migrations / "versions" / f"{version}.py").write_text(script)


def make_next_release(package: Path) -> None:
    """Turns a copy of the package `nightmill` into the next release."""
    add_scripts(package / "store" / "migrations")
    steps = package / "store" / "steps.py"
    listed = ", ".join(f'Step("{step.version}", Stage.{step.stage.name})' for step in NEXT_STEPS)
    text, replaced = _DECLARED.subn(f"STEPS: Final = ({listed})", steps.read_text())
    assert replaced == 1
    steps.write_text(text)
