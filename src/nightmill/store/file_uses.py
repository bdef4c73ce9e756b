"""Which batches use a file: as their input, or as what they have written."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection, bindparam, select

from nightmill.core.batch import Status
from nightmill.core.file import File, Purpose
from nightmill.ids import BatchId, FileId, ProjectId
from nightmill.store.schema import batch
from nightmill.store.verbs import Verbs, read

_READERS: Final = (
    select(batch.c.id, batch.c.status)
    .where(batch.c.input_file_id == bindparam("file_id"), batch.c.project_id == bindparam("of_project_id"))
    .order_by(batch.c.sequence.desc())
    .limit(bindparam("most"))
)
_WRITERS: Final = select(batch.c.id, batch.c.status, batch.c.output_file_id, batch.c.error_file_id).where(
    batch.c.id.in_(bindparam("batch_ids", expanding=True)), batch.c.project_id == bindparam("of_project_id")
)


@dataclass(frozen=True, slots=True)
class FileUse:
    """A batch that uses a file. `role` is `input`, `output` or `error`."""

    batch_id: BatchId
    status: Status
    role: str


class FileUses(Verbs):
    """The batches of files. No verb here writes."""

    @read
    @staticmethod
    def of(
        connection: Connection, project_id: ProjectId, files: Sequence[File], *, most: int
    ) -> Mapping[FileId, Sequence[FileUse]]:
        """For each file its batches, the newest first.

        Args:
            most: batches of one file.
        """
        found: dict[FileId, list[FileUse]] = {file.id: [] for file in files}
        for file in files:
            if file.purpose is Purpose.BATCH:
                given = {"file_id": file.id, "of_project_id": project_id, "most": most}
                for row in connection.execute(_READERS, given):
                    found[file.id].append(FileUse(row.id, Status(row.status), "input"))
        # The finalizer names an output or error file by its batch; no client can upload one.
        written = [file for file in files if file.purpose is Purpose.BATCH_OUTPUT]
        batch_ids = [file.filename.rpartition("_")[0] for file in written]
        if batch_ids:
            for row in connection.execute(_WRITERS, {"batch_ids": batch_ids, "of_project_id": project_id}):
                for role, file_id in (("output", row.output_file_id), ("error", row.error_file_id)):
                    if file_id in found:
                        found[file_id].append(FileUse(row.id, Status(row.status), role))
        return found
