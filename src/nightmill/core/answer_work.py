"""How much work the answer of a line is expected to be, learned from the answers so far. No I/O.

Bytes are the unit, as for prompts. Where answers report their usage, the work of an answer is that of its
output tokens, else the bytes of its output line. What is learned is in memory and for one worker: it decides
only how fairly batches share an upstream.
"""

from typing import Final, TypeAlias

from nightmill.core.batch import Tally
from nightmill.ids import BatchId

UNKNOWN_ANSWER_WORK: Final = 1_024
"""Expected for a batch and a model of which no answer is known."""

_TOKEN_BYTES: Final = 4
_MOST_COUNTED: Final = 500
_MOST_REMEMBERED: Final = 4_096

ModelKey: TypeAlias = tuple[str, str | None]
"""Endpoint and model of the lines of a batch; the answers of one model differ by endpoint."""


def work_of_answers(tally: Tally, size_bytes: int) -> float:
    """The work of all answers in a tally, whose output lines have `size_bytes` together."""
    usage = tally.usage
    return usage.output_tokens * _TOKEN_BYTES if usage.total_tokens else size_bytes


class AnswerWork:
    """The average work of an answer of each batch and of each model.

    Older answers count less and less once more than `_MOST_COUNTED` are known.
    """

    __slots__ = ("_averages",)

    def __init__(self) -> None:
        self._averages: dict[BatchId | ModelKey, tuple[int, float]] = {}

    def learn(self, batch_id: BatchId, model: ModelKey, *, answers: int, work: float) -> None:
        """Takes new answers and their work into account."""
        if answers > 0:
            for key in (batch_id, model):
                self._learn(key, answers, work / answers)

    def _learn(self, key: BatchId | ModelKey, answers: int, each: float) -> None:
        counted, average = self._averages.pop(key, (0, 0.0))
        counted = min(counted + answers, _MOST_COUNTED)
        average += (each - average) * min(1.0, answers / counted)
        self._averages[key] = (counted, average)  # the last one to be forgotten
        if len(self._averages) > _MOST_REMEMBERED:
            del self._averages[next(iter(self._averages))]

    def expected(self, batch_id: BatchId, model: ModelKey) -> float:
        """The work of the next answer of a batch."""
        known = self._averages.get(batch_id) or self._averages.get(model)
        return UNKNOWN_ANSWER_WORK if known is None else known[1]
