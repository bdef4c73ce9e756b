"""What the database keeps about batches so that a list, its counts and a search need not read them all.

`batch_count` and `batch_count_change` together say how many batches are alike. Triggers write one row into
`batch_count_change` for each batch that is created, changed or deleted, so every statement that writes a
batch keeps the counts right, also one of an older nightmill that is still at work. Rows are only added, so no
two writers wait for each other; maintenance adds them up into `batch_count` (`batch_counts`).

`batch_text` holds what a search looks at: the name of the input file and the metadata, side by side in the
order of lists. Triggers fill it too.
"""

from typing import Any, Final

from sqlalchemy import Column, Connection, PrimaryKeyConstraint, Table, text

from nightmill.store.columns import metadata, number_column, sequence_column, text_column

GROUP: Final = ("project_id", "status", "is_paused", "endpoint", "model")
"""What batches of one group have in common. `model` is empty without one; `is_paused` is 0 or 1."""


def _group_columns() -> tuple[Column[Any], ...]:
    return (
        text_column("project_id"),
        text_column("status"),
        number_column("is_paused"),
        text_column("endpoint"),
        text_column("model"),
    )


batch_count = Table(
    "batch_count", metadata, *_group_columns(), number_column("count"), PrimaryKeyConstraint(*GROUP)
)

batch_count_change = Table(
    "batch_count_change",
    metadata,
    sequence_column(),
    *_group_columns(),
    number_column("change"),
    sqlite_autoincrement=True,
)

# In lower case: the name of the file, a line feed, and the metadata as JSON.
batch_text = Table(
    "batch_text",
    metadata,
    number_column("created_at"),
    number_column("batch_sequence"),
    text_column("project_id"),
    text_column("text"),
    PrimaryKeyConstraint("created_at", "batch_sequence"),
    sqlite_with_rowid=False,
)


_CHANGE: Final = """
INSERT INTO batch_count_change (project_id, status, is_paused, endpoint, model, change) VALUES (
  ROW.project_id,
  ROW.status,
  CASE WHEN ROW.paused_at IS NOT NULL AND ROW.status IN ('validating', 'in_progress') THEN 1 ELSE 0 END,
  ROW.endpoint,
  coalesce(ROW.model, ''),
  BY_NUMBER
);"""
_ADDED: Final = _CHANGE.replace("ROW", "NEW").replace("BY_NUMBER", "1")
_REMOVED: Final = _CHANGE.replace("ROW", "OLD").replace("BY_NUMBER", "-1")
_ADD_TEXT: Final = """
INSERT INTO batch_text (created_at, batch_sequence, project_id, text) VALUES (
  NEW.created_at,
  NEW.sequence,
  NEW.project_id,
  lower(
    coalesce((SELECT filename FROM file WHERE file.id = NEW.input_file_id), '')
      || '\n' || coalesce(NEW.metadata, '')
  )
);"""
_DELETE_TEXT: Final = """
DELETE FROM batch_text WHERE created_at = OLD.created_at AND batch_sequence = OLD.sequence;"""
_ON: Final = {
    "INSERT": _ADDED + _ADD_TEXT,
    # Not of the columns that each answered line changes: those statements run no trigger.
    "UPDATE OF status, paused_at, model": _REMOVED + _ADDED,
    "DELETE": _REMOVED + _DELETE_TEXT,
}
TRIGGERS: Final = ("batch_inserted", "batch_updated", "batch_deleted")

GROUPS_OF_BATCHES: Final = """
SELECT
  project_id,
  status,
  CASE WHEN paused_at IS NOT NULL AND status IN ('validating', 'in_progress') THEN 1 ELSE 0 END AS is_paused,
  endpoint,
  coalesce(model, '') AS model,
  count(*) AS number
FROM batch GROUP BY 1, 2, 3, 4, 5"""
"""Counts every batch; a row has `GROUP` and `number`."""
TEXTS_OF_BATCHES: Final = """
SELECT
  created_at,
  sequence,
  project_id,
  lower(
    coalesce((SELECT filename FROM file WHERE file.id = batch.input_file_id), '')
      || '\n' || coalesce(metadata, '')
  )
FROM batch"""
FILL: Final = (
    "INSERT INTO batch_count (project_id, status, is_paused, endpoint, model, count)" + GROUPS_OF_BATCHES,
    "INSERT INTO batch_text (created_at, batch_sequence, project_id, text)" + TEXTS_OF_BATCHES,
)
"""The statements that count and index the batches of a database that had no triggers."""


def create_triggers(connection: Connection) -> None:
    """Makes the triggers on `batch`, for the dialect of the connection."""
    for name, (event, body) in zip(TRIGGERS, _ON.items(), strict=True):
        if connection.dialect.name == "sqlite":
            connection.exec_driver_sql(
                f"CREATE TRIGGER {name} AFTER {event} ON batch FOR EACH ROW BEGIN {body} END"
            )
        else:
            connection.execute(
                text(
                    f"CREATE FUNCTION nightmill_{name}() RETURNS trigger LANGUAGE plpgsql"
                    f" AS $$ BEGIN {body} RETURN NULL; END $$"
                )
            )
            connection.execute(
                text(
                    f"CREATE TRIGGER {name} AFTER {event} ON batch"
                    f" FOR EACH ROW EXECUTE FUNCTION nightmill_{name}()"
                )
            )


def drop_functions(connection: Connection) -> None:
    """Drops what the triggers called, once their table is gone."""
    for name in TRIGGERS:
        connection.execute(text(f"DROP FUNCTION IF EXISTS nightmill_{name}()"))
