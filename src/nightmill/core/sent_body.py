"""The body that is sent: a request's body with the model and the priority of the upstream. No I/O.

Only the value of a member is replaced, or a member is added. All other bytes stay: whitespace, key order,
numbers, escapes, duplicate keys. Every body is a JSON object that validation has accepted.
"""

import re

from nightmill.core import json_text

_MODEL_FIRST = re.compile(rb'[ \t\n\r]*+\{[ \t\n\r]*+"model"[ \t\n\r]*+:[ \t\n\r]*+("[^"\\]*+")')
_EMPTY = re.compile(rb"[ \t\n\r]*+\{[ \t\n\r]*+\}")
_CLOSER = b"}"


def with_model(body: bytes, model: str) -> bytes:
    """The body with `model` as the value of its member `model`; the same body if it has no such member.

    Of duplicate keys every one is replaced, as servers differ in which one counts.
    """
    value = json_text.ascii_string(model)
    first = _MODEL_FIRST.match(body)
    if first is not None:  # as in most bodies; whether another one follows is found out without a scan
        start, end = first.span(1)
        rest = body[end:]
        if not json_text.members(b'{"":0' + rest, "model"):
            return b"".join((body[:start], value, rest))
    pieces: list[bytes] = []
    at = 0
    for name, start, end in json_text.member_spans(body):
        if name == "model":
            pieces += (body[at:start], value)
            at = end
    return b"".join((*pieces, body[at:]))


def with_priority(body: bytes, priority: int) -> bytes:
    """The body with a last member `priority`, by which vLLM orders requests; the same body if it has one."""
    if json_text.members(body, "priority"):
        return body
    end = body.rindex(_CLOSER)
    comma = b"" if _EMPTY.match(body) else b", "
    return b'%b%b"priority": %d%b' % (body[:end], comma, priority, body[end:])
