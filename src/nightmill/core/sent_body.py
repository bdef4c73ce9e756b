"""The body that is sent: a request's body with the model and the priority of the upstream. No I/O.

Only the value of a member is replaced, or a member is added. All other bytes stay: whitespace, key order,
numbers, escapes, duplicate keys. Every body is a JSON object that validation has accepted.
"""

import re

from nightmill.core import json_text

_MODEL, _PRIORITY = b'"model"', b'"priority"'
# Begin every escaped letter of the two keys. Without them a text that has one of the keys spells it out.
_ESCAPED_A_TO_O, _ESCAPED_P_TO_Z = rb"\u006", rb"\u007"
_MODEL_FIRST = re.compile(rb'[ \t\n\r]*+\{[ \t\n\r]*+"model"[ \t\n\r]*+:[ \t\n\r]*+("[^"\\]*+")')
_EMPTY = re.compile(rb"[ \t\n\r]*+\{[ \t\n\r]*+\}")
_CLOSER = b"}"


def with_model(body: bytes, model: str) -> bytes:
    """The body with `model` as the value of its member `model`; the same body if it has no such member.

    Of duplicate keys every one is replaced, as servers differ in which one counts.
    """
    value = json_text.ascii_string(model)
    if not _has_escaped_letters(body):
        # The usual body is ready after three searches: `model` is its first key, and occurs nowhere else.
        count = body.count(_MODEL)
        if count == 0:
            return body
        if count == 1 and (first := _MODEL_FIRST.match(body)):
            start, end = first.span(1)
            return b"".join((body[:start], value, body[end:]))
    pieces: list[bytes] = []
    at = 0
    for name, start, end in json_text.member_spans(body):
        if name == "model":
            pieces += (body[at:start], value)
            at = end
    return b"".join((*pieces, body[at:]))


def with_priority(body: bytes, priority: int) -> bytes:
    """The body with a last member `priority`, by which vLLM orders requests; the same body if it has one."""
    may_have_one = _PRIORITY in body or _has_escaped_letters(body)
    if may_have_one and any(name == "priority" for name, _, _ in json_text.member_spans(body)):
        return body
    end = body.rindex(_CLOSER)
    comma = b"" if _EMPTY.match(body) else b", "
    return b'%b%b"priority": %d%b' % (body[:end], comma, priority, body[end:])


def _has_escaped_letters(body: bytes) -> bool:
    return _ESCAPED_A_TO_O in body or _ESCAPED_P_TO_Z in body
