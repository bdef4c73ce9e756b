"""Bytes under keys, in a folder or in an object store, read and written as streams with constant memory.

`Blobs` is the interface; `folder`, `objects` and `pieces` implement it.
"""

from nightmill.blobs.folder import FolderBlobs, delete_folder, make_folders, reported, sync_folder
from nightmill.blobs.pieces import Piece, PiecedBlobs, is_pieced, load_pieces
from nightmill.blobs.protocol import Blobs, BlobWriter, new_blob

__all__ = [
    "BlobWriter",
    "Blobs",
    "FolderBlobs",
    "Piece",
    "PiecedBlobs",
    "delete_folder",
    "is_pieced",
    "load_pieces",
    "make_folders",
    "new_blob",
    "reported",
    "sync_folder",
]
