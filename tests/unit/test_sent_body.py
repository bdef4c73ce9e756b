"""What is sent of a request body: another model, a priority, and otherwise the same bytes."""

import json
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightmill.core.sent_body import with_model, with_priority

MEGABYTES = b"x" * 3_000_000
NESTED_200 = b'[{"model": ' * 100 + b"1" + b"}]" * 100


@pytest.mark.parametrize(
    ("body", "sent"),
    [
        (b'{"model":"a","n":1.0}', b'{"model":"b","n":1.0}'),
        (b'\t{ "model" :\r\n"a" } ', b'\t{ "model" :\r\n"b" } '),
        (b'{"messages":[{"model":"a"}],"model":"a"}', b'{"messages":[{"model":"a"}],"model":"b"}'),
        (b'{"model":"a","tools":{"model":"a"}}', b'{"model":"b","tools":{"model":"a"}}'),
        (b'{"input":"\\"model\\":\\"a\\"","model":"a"}', b'{"input":"\\"model\\":\\"a\\"","model":"b"}'),
        (b'{"input":"say \\"model","model":"a"}', b'{"input":"say \\"model","model":"b"}'),
        (b'{"model":"model"}', b'{"model":"b"}'),
        (b'{"model":"a\\"b\\\\"}', b'{"model":"b"}'),
        (b'{"model":null}', b'{"model":"b"}'),
        (b'{"model":{"model":["}"]}, "n":-0}', b'{"model":"b", "n":-0}'),
        (b'{"mod\\u0065l":"a"}', b'{"mod\\u0065l":"b"}'),
        (b'{"model":"a","\\u006Dodel":"c"}', b'{"model":"b","\\u006Dodel":"b"}'),
        (b'{"model":"a","n":1,"model":"c"}', b'{"model":"b","n":1,"model":"b"}'),
        (b'{"x":"\\ud800","model":"a"}', b'{"x":"\\ud800","model":"b"}'),
        ('{"input":"é\u2028","model":"é"}'.encode(), '{"input":"é\u2028","model":"b"}'.encode()),
        (b'{"deep":%b,"model":"a"}' % NESTED_200, b'{"deep":%b,"model":"b"}' % NESTED_200),
        (b'{"input":"%b","model":"a"}' % MEGABYTES, b'{"input":"%b","model":"b"}' % MEGABYTES),
    ],
)
def test_only_the_value_of_the_model_is_replaced(body: bytes, sent: bytes):
    assert with_model(body, "b") == sent


@pytest.mark.parametrize(
    "body", [b"{}", b'{"input":"model"}', b'{"input":["model"]}', b'{"x":{"model":"a"}}', b'{"x":"\\u0065"}']
)
def test_a_body_without_a_model_gets_none(body: bytes):
    assert with_model(body, "b") == body


def test_the_model_is_sent_as_ascii():
    assert with_model(b'{"model":"a"}', 'é"\\') == b'{"model":"\\u00e9\\"\\\\"}'


@pytest.mark.parametrize(
    ("body", "sent"),
    [
        (b"{}", b'{"priority": 5}'),
        (b" { \n} ", b' { \n"priority": 5} '),
        (b'{"model":"a"}\n', b'{"model":"a", "priority": 5}\n'),
        (b'{"x":{"priority":1}}', b'{"x":{"priority":1}, "priority": 5}'),
        (b'{"x":"\\"priority\\": {}"}', b'{"x":"\\"priority\\": {}", "priority": 5}'),
        (b'{"x":"\\u0070"}', b'{"x":"\\u0070", "priority": 5}'),
        (b'{"priority":1}', b'{"priority":1}'),
        (b'{"priority":null,"x":1}', b'{"priority":null,"x":1}'),
        (b'{"\\u0070riorit\\u0079":1}', b'{"\\u0070riorit\\u0079":1}'),
    ],
)
def test_a_priority_is_added_to_a_body_that_has_none(body: bytes, sent: bytes):
    assert with_priority(body, 5) == sent


def test_a_priority_may_be_negative():
    assert with_priority(b"{}", -3) == b'{"priority": -3}'


@dataclass(frozen=True)
class Member:
    """A member of the object as it is written: what stands before the value, and the value."""

    key: str
    before: str
    value: str


SPACE = st.sampled_from(["", " ", "\n", "\r\n\t "])
HARD_STRINGS = [
    '"model"',
    '"priority"',
    '"\\"model\\":"',
    '"{\\\\"',
    '"\\"model"',
    '"\\ud83d"',
    '"mod\\u0065l"',
]
STRINGS = st.sampled_from(HARD_STRINGS) | st.text(max_size=5).map(json.dumps)
RAW_STRINGS = STRINGS | st.text(max_size=3).map(lambda text: json.dumps(text, ensure_ascii=False))
SCALARS = st.sampled_from(["1.0", "-0", "123456789012345678901", "1e5", "true", "null"]) | RAW_STRINGS
KEYS = st.sampled_from(["model", "priority"]).flatmap(
    lambda name: st.sampled_from([f'"{name}"', f'"{name[:3]}\\u{ord(name[3]):04x}{name[4:]}"'])
)


def as_array(values: list[str]) -> str:
    return "[" + ", ".join(values) + "]"


def as_object(pairs: list[tuple[str, str]]) -> str:
    return "{" + " ,".join(f"{key}: {value}" for key, value in pairs) + "}"


VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3).map(as_array)
        | st.lists(st.tuples(KEYS | RAW_STRINGS, inner), max_size=3).map(as_object)
    ),
    max_leaves=6,
)
MEMBERS = st.lists(
    st.builds(
        lambda spaces, key, value: Member(json.loads(key), f"{spaces[0]}{key}{spaces[1]}:{spaces[2]}", value),
        st.tuples(SPACE, SPACE, SPACE),
        KEYS | RAW_STRINGS,
        VALUES,
    ),
    max_size=5,
)


def written(members: list[Member], *, model: str | None = None, after: str = "") -> bytes:
    inner = ",".join(
        member.before + (member.value if model is None or member.key != "model" else model)
        for member in members
    )
    return ("{" + inner + after + "}").encode()


@given(MEMBERS, st.text())
def test_every_other_byte_stays_when_the_model_is_replaced(members: list[Member], model: str):
    sent = with_model(written(members), model)
    assert sent == written(members, model=json.dumps(model))
    changed = {member.key: model if member.key == "model" else json.loads(member.value) for member in members}
    assert json.loads(sent) == changed


@given(MEMBERS, st.integers(-10, 10))
def test_every_byte_stays_when_a_priority_is_added(members: list[Member], priority: int):
    body = written(members)
    sent = with_priority(body, priority)
    if any(member.key == "priority" for member in members):
        assert sent == body
    else:
        added = f'"priority": {priority}'
        assert sent == written(members, after=f", {added}" if members else added)
        assert json.loads(sent)["priority"] == priority
