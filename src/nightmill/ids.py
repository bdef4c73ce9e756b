"""Ids in OpenAI's shapes (docs/openai-behaviour.md 1.2, 1.3, 2.1, 5.1).

The `new_*` functions take at least 16 random bytes. The id of an output line is derived from the batch id
and the ordinal of the line, so that a repeated finalization writes the same bytes.
"""

from typing import NewType

ProjectId = NewType("ProjectId", str)
FileId = NewType("FileId", str)
UploadId = NewType("UploadId", str)
PartId = NewType("PartId", str)
BatchId = NewType("BatchId", str)
WorkerId = NewType("WorkerId", str)

_ALPHABET = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_FILE_ID_LENGTH = 22


def new_batch_id(random: bytes) -> BatchId:
    return BatchId("batch_" + random[:16].hex())


def new_file_id(random: bytes) -> FileId:
    number = int.from_bytes(random[:16], "big")
    letters: list[str] = []
    for _ in range(_FILE_ID_LENGTH):
        number, rest = divmod(number, len(_ALPHABET))
        letters.append(_ALPHABET[rest])
    return FileId("file-" + "".join(letters))


def new_upload_id(random: bytes) -> UploadId:
    return UploadId("upload_" + random[:16].hex())


def new_part_id(random: bytes) -> PartId:
    return PartId("part_" + random[:16].hex())


def new_worker_id(random: bytes) -> WorkerId:
    return WorkerId("worker_" + random[:16].hex())


def new_endpoint_id(random: bytes) -> str:
    return "whe_" + random[:16].hex()


def new_delivery_id(random: bytes) -> str:
    return "wh_" + random[:16].hex()


def new_action_id(random: bytes) -> str:
    return "action_" + random[:16].hex()


def output_line_id(batch_id: BatchId, ordinal: int) -> str:
    """The `id` of the output line for the request line at `ordinal` (from 0) in the batch's line index."""
    return f"batch_req_{batch_id[6:30]}{ordinal:08x}"
