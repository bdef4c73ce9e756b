"""A set of numbers that lie close together, kept as runs: small in memory, and small as text. No I/O."""

from bisect import bisect_right
from collections.abc import Iterable

_MOST_NUMBER = 1 << 40
_VARINT_BYTES = 10


class NumberRuns:
    """A set of numbers from 0 on, as runs of consecutive numbers.

    Packed, a run takes two or three bytes, so a set with few gaps is a few bytes long however many numbers it
    has.
    """

    __slots__ = ("_count", "_ends", "_starts")

    def __init__(self, numbers: Iterable[int] = ()) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []  # exclusive
        self._count = 0
        for number in numbers:
            self.add(number)

    def __len__(self) -> int:
        return self._count

    def __contains__(self, number: int) -> bool:
        at = bisect_right(self._starts, number) - 1
        return at >= 0 and number < self._ends[at]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, NumberRuns) and (self._starts, self._ends) == (other._starts, other._ends)

    __hash__ = None  # pyright: ignore[reportAssignmentType] - a set that changes

    @property
    def run_count(self) -> int:
        return len(self._starts)

    def missing_from(self, number: int) -> int:
        """The lowest number that is not in the set, from `number` on."""
        at = bisect_right(self._starts, number) - 1
        return max(number, self._ends[at]) if at >= 0 else number

    def add(self, number: int) -> bool:
        """Whether the number is new."""
        starts, ends = self._starts, self._ends
        at = bisect_right(starts, number)
        follows = at > 0 and ends[at - 1] >= number
        if follows and ends[at - 1] > number:
            return False
        leads = at < len(starts) and starts[at] == number + 1
        if follows and leads:
            ends[at - 1] = ends[at]
            del starts[at], ends[at]
        elif follows:
            ends[at - 1] += 1
        elif leads:
            starts[at] -= 1
        else:
            starts.insert(at, number)
            ends.insert(at, number + 1)
        self._count += 1
        return True

    def pack(self) -> bytes:
        """The number of runs; then for each its distance from the run before and its length, as varints."""
        packed = bytearray(varint(len(self._starts)))
        before = 0
        for start, end in zip(self._starts, self._ends, strict=True):
            packed += varint(start - before)
            packed += varint(end - start)
            before = end
        return bytes(packed)

    @staticmethod
    def unpack(packed: bytes, at: int) -> "tuple[NumberRuns, int]":
        """The set that `pack` wrote at an offset, and the offset behind it.

        Raises:
            ValueError: other bytes are there.
        """
        runs = NumberRuns()
        count, at = read_varint(packed, at)
        if count > len(packed):
            raise ValueError("more runs than bytes")
        end = 0
        for number in range(count):
            gap, at = read_varint(packed, at)
            length, at = read_varint(packed, at)
            start = end + gap
            end = start + length
            if not length or (number and not gap) or end > _MOST_NUMBER:
                raise ValueError("not a run")
            runs._starts.append(start)
            runs._ends.append(end)
            runs._count += length
        return runs, at


def varint(number: int) -> bytes:
    """Seven bits in each byte, the lowest first; the highest bit says that another byte follows."""
    packed = bytearray()
    while number > 0x7F:
        packed.append(number & 0x7F | 0x80)
        number >>= 7
    packed.append(number)
    return bytes(packed)


def read_varint(packed: bytes, at: int) -> tuple[int, int]:
    """The number at an offset, and the offset behind it.

    Raises:
        ValueError: no number is there, or one that `varint` would write in another way.
    """
    number = 0
    for place, byte in enumerate(packed[at : at + _VARINT_BYTES]):
        number |= (byte & 0x7F) << (7 * place)
        if byte < 0x80:
            if place and not byte:
                raise ValueError("a number with leading zeros")
            return number, at + place + 1
    raise ValueError("no number")
