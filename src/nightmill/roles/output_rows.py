"""The output lines of a worker: from an outcome, or for a line that was never sent."""

from itertools import count
from typing import Final, assert_never

from nightmill.core.json_text import ascii_string
from nightmill.core.outcome import Answered, Broken, Outcome, TimedOut, TooLong, Unreachable
from nightmill.core.output_line import OutputLine, answered, unanswered
from nightmill.roles.model_lines import PendingLine

_UNREACHABLE: Final = "The model server could not be reached."
_UNSERVED: Final = "No upstream of this server serves the model that the line names."


class OutputRows:
    """Makes output lines.

    Args:
        request_prefix: hexadecimal start of the request ids made for answers without one.
    """

    def __init__(self, request_prefix: str) -> None:
        self._request_prefix = request_prefix.encode()
        self._request_sequence = count()

    def row(self, line: PendingLine, outcome: Outcome) -> OutputLine:
        """The output line if the outcome is settled; without an error the answer can be used."""
        request, segment = line.request, line.segment
        line_id = segment.line_id(line.ordinal)
        match outcome:
            case Answered():
                if outcome.request_id is None:
                    request_id_json = b'"%b%08x"' % (self._request_prefix, next(self._request_sequence))
                else:
                    request_id_json = ascii_string(outcome.request_id)
                return answered(
                    line_id,
                    request,
                    endpoint=segment.lease.endpoint,
                    status=outcome.status,
                    request_id=request_id_json,
                    body=outcome.body,
                )
            case TimedOut() | Broken() | TooLong():
                return unanswered(line_id, request, code=outcome.code, message=outcome.message)
            case Unreachable():
                return unanswered(line_id, request, code="upstream_unreachable", message=_UNREACHABLE)
            case _:
                assert_never(outcome)

    def unserved(self, line: PendingLine) -> OutputLine:
        """The output line of a line whose model no upstream serves."""
        line_id = line.segment.line_id(line.ordinal)
        return unanswered(line_id, line.request, code="model_not_found", message=_UNSERVED)
