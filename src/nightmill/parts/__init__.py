"""Durable answers: append, group commit, pin, read back after a crash.

A part holds the answers written under one (batch, segment, token). Each record is a fixed header (magic,
ordinal, kind, usage, length, CRC-32 of all of it) and the finished output line. A torn or foreign tail is
cut at the last whole record and never parsed.

Promise: `PartWriter.append` only queues; the commit callback runs after the bytes are on stable storage.
Not its duty: who may write (the store's leases) and in which order lines come out (the finalizer).
"""

from nightmill.parts.folder import FolderParts
from nightmill.parts.protocol import PartRecord, Parts, PartWriter

__all__ = ["FolderParts", "PartRecord", "PartWriter", "Parts"]
