"""Bodies of all endpoints as conversations, and bodies that try to break the page."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightmill.dashboard.conversation import MOST_MESSAGES, MOST_TEXT, MOST_TEXT_IN_ALL, conversation
from nightmill.dashboard.shown_text import pretty, read_json, shown

CHAT = "/v1/chat/completions"
PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJ"
    "AAAADUlEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC"
)


def said(messages: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(message["role"], part["text"]) for message in messages for part in message["parts"]]


def test_a_chat_has_its_roles_the_calls_of_tools_and_the_answer() -> None:
    request = {
        "tools": [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}],
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "Weather?"}]},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "c1", "function": {"name": "weather", "arguments": '{"city":"Bern"}'}}],
            },
            {"role": "tool", "tool_call_id": "c1", "content": '{"c":7}'},
        ],
    }
    answer = {"choices": [{"message": {"role": "assistant", "content": "7 °C"}, "finish_reason": "length"}]}
    messages = conversation(CHAT, request=request, answer=answer)
    assert [message["role"] for message in messages] == [
        "tools",
        "system",
        "user",
        "assistant",
        "tool",
        "assistant",
        "end",
    ]
    call = messages[3]["parts"][0]
    assert (call["kind"], call["title"], call["text"]) == ("call", "weather", '{\n  "city": "Bern"\n}')
    assert messages[4]["name"] == "c1"
    assert messages[5]["side"] == "answer"
    assert said(messages[5:]) == [("assistant", "7 °C"), ("end", "length")]


def test_responses_have_instructions_items_reasoning_and_the_reason_of_an_early_end() -> None:
    request = {
        "instructions": "Be brief.",
        "input": [
            {"role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
            {"type": "function_call", "name": "now", "arguments": "{}", "call_id": "c"},
            {"type": "function_call_output", "call_id": "c", "output": "noon"},
        ],
    }
    answer = {
        "status": "incomplete",
        "incomplete_details": {"reason": "max_output_tokens"},
        "output": [
            {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Thinking."}]},
            {
                "type": "message",
                "role": "assistant",
                "content": [{"type": "output_text", "text": "Hello."}, {"type": "refusal", "refusal": "No."}],
            },
        ],
    }
    assert said(conversation("/v1/responses", request=request, answer=answer)) == [
        ("system", "Be brief."),
        ("user", "Hi"),
        ("assistant", "{}"),
        ("tool", "noon"),
        ("assistant", "Thinking."),
        ("assistant", "Hello."),
        ("assistant", "No."),
        ("end", "incomplete"),
        ("end", "max_output_tokens"),
    ]
    assert said(conversation("/v1/responses", request={"input": "Hi"}, answer=None)) == [("user", "Hi")]


@pytest.mark.parametrize(
    ("endpoint", "request_body", "answer", "expected"),
    [
        (
            "/v1/completions",
            {"prompt": "Once"},
            {"choices": [{"text": " upon"}, {"text": " more"}]},
            [("prompt", "Once"), ("assistant", " upon"), ("assistant", " more")],
        ),
        (
            "/v1/embeddings",
            {"input": ["a", "b"]},
            {"data": [{"embedding": [0.1, 0.2]}, {"embedding": "AAAA"}]},
            [("input", "a"), ("input", "b"), ("answer", "2 numbers"), ("answer", "4 characters of base64")],
        ),
        (
            CHAT,
            {"messages": []},
            {"error": {"message": "Too long.", "code": "context_length_exceeded"}},
            [("error", "Too long.")],
        ),
        (
            "/v1/moderations",
            {"input": "x"},
            {"results": [True]},
            [("input", "x"), ("answer", "[\n  true\n]")],
        ),
        (
            "/v1/videos",
            {"prompt": "a cat"},
            {"id": "v"},
            [("prompt", "a cat"), ("answer", '{\n  "id": "v"\n}')],
        ),
    ],
)
def test_other_endpoints_are_shown(
    endpoint: str, request_body: Any, answer: Any, expected: list[tuple[str, str]]
) -> None:
    assert said(conversation(endpoint, request=request_body, answer=answer)) == expected


def test_only_an_image_whose_bytes_are_in_the_body_is_shown() -> None:
    urls = [
        PIXEL,
        "https://evil.example/pixel.png",
        "javascript:alert(1)",
        "data:image/svg+xml;base64,PHN2Zz48L3N2Zz4=",
        "data:text/html;base64,PHNjcmlwdD4=",
        PIXEL + '" onerror="alert(1)',
        "file:///etc/passwd",
        " " + PIXEL,
    ]
    content = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    messages = conversation(CHAT, request={"messages": [{"role": "user", "content": content}]}, answer=None)
    parts = messages[0]["parts"]
    assert [part["source"] for part in parts] == [PIXEL, *[None] * (len(urls) - 1)]
    assert [part["text"] for part in parts[1:]] == urls[1:]


def test_generated_images_are_shown() -> None:
    answer = {"data": [{"b64_json": PIXEL.partition(",")[2]}, {"url": "https://cdn.example/x.png"}]}
    parts = [it["parts"][0] for it in conversation("/v1/images/generations", request=None, answer=answer)]
    assert [part["source"] for part in parts] == [PIXEL, None]


def test_a_conversation_is_bounded_and_says_what_it_leaves_out() -> None:
    long = {"role": "user", "content": "x" * (MOST_TEXT + 5)}
    messages = conversation(
        CHAT, request={"messages": [long] * (MOST_MESSAGES + 30)}, answer={"choices": [{}]}
    )
    assert messages[0]["parts"][0]["left_out"] == 5
    texts = [part["text"] for message in messages for part in message["parts"]]
    assert sum(map(len, texts)) < MOST_TEXT_IN_ALL + 10_000
    assert texts[-1] == "30 more messages are in the JSON"
    assert any(message["side"] == "answer" for message in messages)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
_NAMES = [
    *("messages", "role", "content", "type", "text", "tool_calls", "function", "name", "arguments"),
    *("image_url", "url", "input", "instructions", "output", "summary", "choices", "message", "error"),
    *("code", "data", "embedding", "b64_json", "results", "tools", "prompt", "status"),
]
_BODY = st.recursive(
    _JSON,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(_NAMES), inner, max_size=6),
    max_leaves=20,
)


@given(
    st.sampled_from([CHAT, "/v1/responses", "/v1/embeddings", "/v1/images/edits", "/v1/completions", ""]),
    _BODY,
    _BODY,
)
def test_any_body_is_shown(endpoint: str, request_body: Any, answer: Any) -> None:
    messages = conversation(endpoint, request=request_body, answer=answer)
    json.dumps(messages).encode()
    "".join(text for _, text in said(messages)).encode()


def test_hidden_characters_are_visible() -> None:
    assert shown("a\0b\x1b[31m\r\nc\ud800\u202edcba\u200b\U000e0041é\t") == (
        "a␀b␛[31m\nc?⟨U+202E⟩dcba⟨U+200B⟩⟨U+E0041⟩é\t"
    )


def test_json_is_indented_as_it_is_written() -> None:
    assert pretty('{"a":1.0,"a":12345678901234567890,"b":"\\u00e9<script>"}') == (
        '{\n  "a": 1.0,\n  "a": 12345678901234567890,\n  "b": "\\u00e9<script>"\n}'
    )
    assert '…" (5,000 characters)' in pretty(json.dumps({"image": "A" * 5_000}))


@pytest.mark.parametrize(
    "text", ["{", "[" * 100_000, "nope", "", '{"a": 1}{"b": 2}', "9" * 5_000, '"\\ud800"']
)
def test_what_is_not_json_or_nests_too_deep_is_shown_as_it_is(text: str) -> None:
    assert pretty(text) == text
    read_json(text)
