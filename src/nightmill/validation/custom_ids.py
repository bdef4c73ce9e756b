"""Finds repeated custom_ids with eight bytes of memory for each line.

The first pass keeps a 64-bit hash of each custom_id and finds the repeated hashes. Only if there are any, a
second pass over the lines compares digests of the ids. The result is exact for any hash function. Python's
string hash is keyed for each process, so a client cannot provoke collisions. This module does no I/O.
"""

from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable
from hashlib import blake2b

_BUCKETS = 256
_DIGEST_BYTES = 16
_UNSET = bytes(_DIGEST_BYTES)


class CustomIds:
    """The first pass. `hash_of` is any function from a text to a signed 64-bit number."""

    def __init__(self, hash_of: Callable[[str], int] = hash) -> None:
        self._hash_of = hash_of
        self._buckets = [array("q") for _ in range(_BUCKETS)]

    def add(self, custom_id: str) -> None:
        number = self._hash_of(custom_id)
        self._buckets[number % _BUCKETS].append(number)

    def repeated_hashes(self) -> "RepeatedHashes":
        """Ends the first pass and frees its memory bucket by bucket."""
        repeats = 0
        hashes: list[array[int]] = []
        for place, bucket in enumerate(self._buckets):
            self._buckets[place] = array("q")
            distinct = len(set(bucket))
            repeats += len(bucket) - distinct
            twice: list[int] = []
            if distinct < len(bucket):
                twice = sorted(number for number, times in Counter(bucket).items() if times > 1)
            hashes.append(array("q", twice))
        return RepeatedHashes(hashes, repeats, self._hash_of)


class RepeatedHashes:
    """The second pass. `repeats` is the number of lines with the hash of an earlier line."""

    def __init__(self, hashes: "list[array[int]]", repeats: int, hash_of: Callable[[str], int]) -> None:
        self.repeats = repeats
        self._hash_of = hash_of
        self._hashes = hashes
        self._digests = [bytearray(_DIGEST_BYTES * len(bucket)) for bucket in hashes]
        self._others: dict[int, set[bytes]] = {}

    def is_repeat(self, custom_id: str) -> bool:
        """Whether an earlier call had the same id. Call once for each line, in order."""
        number = self._hash_of(custom_id)
        bucket = self._hashes[number % _BUCKETS]
        place = bisect_left(bucket, number)
        if place == len(bucket) or bucket[place] != number:
            return False
        digests = self._digests[number % _BUCKETS]
        span = slice(place * _DIGEST_BYTES, (place + 1) * _DIGEST_BYTES)
        known = bytes(digests[span])
        digest = blake2b(custom_id.encode("utf-8", "surrogatepass"), digest_size=_DIGEST_BYTES).digest()
        if known == _UNSET:
            digests[span] = digest
            return False
        if known == digest:
            return True
        others = self._others.setdefault(number, set())
        if digest in others:
            return True
        others.add(digest)
        return False
