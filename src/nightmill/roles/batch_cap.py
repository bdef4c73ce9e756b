"""The limit of one batch's lines at work in one worker.

A batch with a concurrency of its own is leased by one worker at a time (see `store.segments`), so the limit
of that worker is the limit of the fleet. A line is at work from the moment it is taken from its segment until
it is settled or given up; a line that waits to be sent again keeps its place. So no more attempts are in
flight than lines are at work.
"""


class BatchCap:
    """The limit that the leased segments of a batch share.

    Args:
        limit: lines at work at the same time.

    Attributes:
        at_work: lines that were taken and are neither settled nor given up.
    """

    __slots__ = ("at_work", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.at_work = 0

    @property
    def room(self) -> int:
        """How many more lines may be taken; 0 or less for none."""
        return self.limit - self.at_work

    def take(self, lines: int = 1) -> None:
        """Lines are at work from now on."""
        self.at_work += lines

    def give_back(self, lines: int = 1) -> None:
        """Lines were settled or given up."""
        self.at_work -= lines

    def change(self, limit: int) -> None:
        """Lines at work beyond a lower limit may finish."""
        self.limit = limit
