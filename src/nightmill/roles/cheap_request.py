"""A cheap request of `core.probe` in flight: it shows whether a model answers at all."""

from typing import Final

import msgspec

from nightmill.core.failure import AnswerError
from nightmill.core.health import Health
from nightmill.core.outcome import Answered, Outcome
from nightmill.core.output_line import answered
from nightmill.core.request_line import RequestLine
from nightmill.roles.model_lines import ModelLines
from nightmill.roles.slot_group import SlotGroup

_NO_ID: Final = b'""'


class CheapRequest(msgspec.Struct, eq=False, gc=False):
    """The request, and where it belongs.

    Args:
        model_lines: of the model that it asks.
        group: its slot.
        endpoint: of a line of the model.
        started_at: monotonic time.
    """

    model_lines: ModelLines
    group: SlotGroup
    endpoint: str
    request: RequestLine
    started_at: float

    def error_in(self, outcome: Outcome) -> AnswerError | None:
        """What an answer that is no result reports; None for a result and without an answer."""
        if not isinstance(outcome, Answered):
            return None
        status, body = outcome.status, outcome.body
        row = answered(b"", self.request, endpoint=self.endpoint, status=status, request_id=_NO_ID, body=body)
        return row.error


def is_cheap_probe_due(model: Health, *, whole: Health, now: float) -> bool:
    """Whether to send a cheap request to a model now.

    While there is no connection, a request to any model shows if the connection is back, and no line is sent
    that may be the cause of the outage.

    Args:
        model: the health of the model.
        whole: the health of the upstream as a whole.
    """
    if whole.held is not None:
        return not (whole.wait_s(now, in_flight=0) or model.wait_s(now, in_flight=0))
    if model.held is None:
        return model.is_evidence_due(now)
    return model.is_cheap_probe_next and not model.wait_s(now, in_flight=0)
