"""Answers with the text of a model: chat completions, completions and responses.

A text says that it is emulated, unless the request asks for JSON of a schema or offers tools. Then the answer
satisfies the schema, and the mark is beside the text: `system_fingerprint`, or `metadata` of a response. An
answer is cut at `max_tokens` and what other endpoints call it, also in the middle of JSON, as by a model.
"""

from typing import Annotated, Any, TypeAlias

import msgspec
from msgspec import Meta, Raw, Struct

from nightmill.emulator.content import (
    CHARACTERS_PER_TOKEN,
    CREATED,
    FINGERPRINT,
    NOT_GIVEN,
    Choices,
    Inputs,
    Model,
    Text,
    inputs_of,
    is_given,
    made_up_text,
    refuse_stream,
    seed_of,
    token_count,
)
from nightmill.emulator.structured_text import Guided, guided_text, json_text
from nightmill.emulator.tools import ToolCall, tool_call

_MostTokens: TypeAlias = Annotated[int, Meta(ge=0)] | None


class _ChatBody(Guided, frozen=True, kw_only=True):
    model: Model
    messages: Annotated[list[Raw], Meta(min_length=1)]
    n: Choices = None
    max_completion_tokens: _MostTokens = None
    max_tokens: _MostTokens = None
    stream: bool | None = None
    response_format: Raw = NOT_GIVEN
    tools: Raw = NOT_GIVEN
    tool_choice: Raw = NOT_GIVEN
    functions: Raw = NOT_GIVEN
    function_call: Raw = NOT_GIVEN


class _CompletionBody(Guided, frozen=True, kw_only=True):
    model: Model
    prompt: Inputs
    n: Choices = None
    max_tokens: _MostTokens = None
    stream: bool | None = None


class _TextOptions(Struct, frozen=True):
    format: Raw = NOT_GIVEN


class _ResponseBody(Struct, frozen=True):
    model: Model
    input: Text | Annotated[list[Raw], Meta(min_length=1)]
    instructions: str | None = None
    max_output_tokens: _MostTokens = None
    stream: bool | None = None
    text: _TextOptions | None = None
    tools: Raw = NOT_GIVEN
    tool_choice: Raw = NOT_GIVEN


_decode_chat = msgspec.json.Decoder(_ChatBody).decode
_decode_completion = msgspec.json.Decoder(_CompletionBody).decode
_decode_response = msgspec.json.Decoder(_ResponseBody).decode


def chat(body: bytes) -> dict[str, Any]:
    request = _decode_chat(body)
    refuse_stream(request.stream)
    seed = seed_of(body)
    call = tool_call(
        request.tools,
        request.function_call if is_given(request.functions) else request.tool_choice,
        last_turn=request.messages[-1],
        seed=seed,
        functions=request.functions,
    )
    most = request.max_tokens if request.max_completion_tokens is None else request.max_completion_tokens
    message: dict[str, Any] = {"role": "assistant", "content": None, "refusal": None, "annotations": []}
    if call is None:
        whole = _answered(json_text(request.response_format, seed), guided_text(request, seed), seed)
        text, is_cut = _cut(whole, most)
        reason = "stop"
        message["content"] = text
    else:
        text, is_cut = _cut(call.arguments, most)
        reason = "function_call" if is_given(request.functions) else "tool_calls"
        message |= _called(call, text, seed, is_old_form=is_given(request.functions))
    count = request.n or 1
    return {
        "id": f"chatcmpl-{seed.hex()}",
        "object": "chat.completion",
        "created": CREATED,
        "model": request.model,
        "choices": [
            {
                "index": index,
                "message": message,
                "logprobs": None,
                "finish_reason": "length" if is_cut else reason,
            }
            for index in range(count)
        ],
        "usage": _usage(token_count(body), count * token_count(text)),
        "service_tier": "default",
        "system_fingerprint": FINGERPRINT,
    }


def _called(call: ToolCall, arguments: str, seed: bytes, *, is_old_form: bool) -> dict[str, Any]:
    """The members of a message that calls a tool."""
    content = {"name": call.tool.name, "arguments": arguments}
    if is_old_form:
        return {"function_call": content}
    called: dict[str, Any] = {"id": f"call_{seed.hex()[:24]}"}
    if call.is_function:
        called |= {"type": "function", "function": content}
    else:
        called |= {"type": "custom", "custom": {"name": call.tool.name, "input": arguments}}
    return {"tool_calls": [called]}


def completion(body: bytes) -> dict[str, Any]:
    request = _decode_completion(body)
    refuse_stream(request.stream)
    seed = seed_of(body)
    text, is_cut = _cut(_answered(guided_text(request, seed), None, seed), request.max_tokens)
    count = len(inputs_of(request.prompt)) * (request.n or 1)
    return {
        "id": f"cmpl-{seed.hex()}",
        "object": "text_completion",
        "created": CREATED,
        "model": request.model,
        "choices": [
            {
                "index": index,
                "text": text,
                "logprobs": None,
                "finish_reason": "length" if is_cut else "stop",
            }
            for index in range(count)
        ],
        "usage": _usage(token_count(body), count * token_count(text)),
        "system_fingerprint": FINGERPRINT,
    }


def response(body: bytes) -> dict[str, Any]:
    request = _decode_response(body)
    refuse_stream(request.stream)
    seed = seed_of(body)
    last = request.input[-1] if isinstance(request.input, list) else NOT_GIVEN
    call = tool_call(request.tools, request.tool_choice, last_turn=last, seed=seed)
    text_format = NOT_GIVEN if request.text is None else request.text.format
    if call is None:
        whole = _answered(json_text(text_format, seed), None, seed)
        text, is_cut = _cut(whole, request.max_output_tokens)
        item = _message(text, seed)
    else:
        text, is_cut = _cut(call.arguments, request.max_output_tokens)
        item = _call_item(call, text, seed)
    status = "incomplete" if is_cut else "completed"
    input_tokens, output_tokens = token_count(body), token_count(text)
    return {
        "id": f"resp_{seed.hex()}",
        "object": "response",
        "created_at": CREATED,
        "status": status,
        "background": False,
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
        "instructions": request.instructions,
        "max_output_tokens": request.max_output_tokens,
        "model": request.model,
        "output": [item | {"status": status} if "status" in item else item],
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "reasoning": {"effort": None, "summary": None},
        "service_tier": "default",
        "store": False,
        "temperature": 1.0,
        "text": {"format": text_format if is_given(text_format) else {"type": "text"}},
        "tool_choice": request.tool_choice if is_given(request.tool_choice) else "auto",
        "tools": request.tools if is_given(request.tools) else [],
        "top_p": 1.0,
        "truncation": "disabled",
        "usage": {
            "input_tokens": input_tokens,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": output_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": input_tokens + output_tokens,
        },
        "user": None,
        "metadata": {"system_fingerprint": FINGERPRINT},
    }


def _message(text: str, seed: bytes) -> dict[str, Any]:
    return {
        "id": f"msg_{seed.hex()}",
        "type": "message",
        "status": "completed",
        "role": "assistant",
        "content": [{"type": "output_text", "text": text, "annotations": [], "logprobs": []}],
    }


def _call_item(call: ToolCall, arguments: str, seed: bytes) -> dict[str, Any]:
    called = {"call_id": f"call_{seed.hex()[:24]}", "name": call.tool.name}
    if call.is_function:
        return {
            "id": f"fc_{seed.hex()}",
            "type": "function_call",
            "status": "completed",
            "arguments": arguments,
            **called,
        }
    return {"id": f"ctc_{seed.hex()}", "type": "custom_tool_call", "input": arguments, **called}


def _answered(first: str | None, second: str | None, seed: bytes) -> str:
    """The first text that the request asks for; a made-up one where it asks for none. A text may be empty."""
    if first is not None:
        return first
    return made_up_text(seed) if second is None else second


def _cut(text: str, most_tokens: int | None) -> tuple[str, bool]:
    """The text with at most so many tokens, and whether it was longer."""
    if most_tokens is None or token_count(text) <= most_tokens:
        return text, False
    return text[: most_tokens * CHARACTERS_PER_TOKEN], True


def _usage(prompt_tokens: int, completion_tokens: int) -> dict[str, Any]:
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": 0,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }
