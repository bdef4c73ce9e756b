"""Bytes under keys, streamed both ways at flat memory: in a folder, or in an object store.

`Blobs` says what nightmill asks of a blob store, and the modules here say how each kind keeps the promise.
"""

from nightmill.blobs.folder import FolderBlobs, delete_folder, make_folders, reported, sync_folder
from nightmill.blobs.pieces import Piece, PiecedBlobs, is_pieced, load_pieces
from nightmill.blobs.protocol import Blobs, BlobWriter

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
    "reported",
    "sync_folder",
]
