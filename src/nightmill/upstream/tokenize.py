"""Counts the tokens of prompts with the tokenizer of an upstream: `POST /tokenize` of vLLM or llama.cpp.

The route is beside the `/v1` of the upstream. An upstream without it counts nothing.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import msgspec

from nightmill.core.outcome import Answered
from nightmill.settings import UpstreamSettings
from nightmill.upstream.connect import open_target
from nightmill.upstream.target import target_of

_ROUTE = "/v1/tokenize"  # the base path takes the place of /v1, and here it is that of the host
_TIMEOUT_S = 10.0


class _Counted(msgspec.Struct):
    count: int | None = None
    tokens: list[Any] | None = None


async def count_tokens(
    settings: UpstreamSettings, bodies: Sequence[bytes], *, url: str
) -> Sequence[int] | None:
    """The input tokens of each body; None where the upstream does not say them all.

    Args:
        settings: key, headers, aliases, transport; their `url` is not read.

    Raises:
        SetupError: the settings can't be used.
    """
    target = target_of(url, settings)
    upstream = open_target(replace(target, prefix=target.prefix.removesuffix("/v1")), settings)
    counts: list[int] = []
    try:
        for body in bodies:
            count = None
            for question in _questions(body, settings.aliases):
                outcome = await upstream.send(_ROUTE, question, timeout_s=_TIMEOUT_S)
                count = (
                    _count_in(outcome.body)
                    if isinstance(outcome, Answered) and outcome.status == 200
                    else None
                )
                if count is not None:
                    break
            if count is None:
                return None
            counts.append(count)
    finally:
        await upstream.close()
    return counts


def _questions(body: bytes, aliases: dict[str, str]) -> list[bytes]:
    """How the engines are asked, one after the other."""
    fields = cast("dict[str, Any]", json.loads(body))
    asked = fields.get("model")
    model = aliases.get(asked, asked) if isinstance(asked, str) else None
    named = {} if model is None else {"model": model}
    text = _text_of(fields)
    questions: list[dict[str, Any]] = []
    if isinstance(fields.get("messages"), list):
        questions.append({**named, "messages": fields["messages"]})
    elif text is not None:
        questions.append({**named, "prompt": text})
    if text is not None:
        questions.append({"content": text})
    return [json.dumps(question).encode() for question in questions]


def _text_of(fields: dict[str, Any]) -> str | None:
    """The text of the prompt, without a chat template."""
    for name in ("prompt", "input"):
        if isinstance(fields.get(name), str):
            return fields[name]
    texts: list[str] = []
    messages: object = fields.get("messages")
    for message in cast("list[object]", messages) if isinstance(messages, list) else []:
        content: object = (
            cast("dict[str, object]", message).get("content") if isinstance(message, dict) else None
        )
        if isinstance(content, str):
            texts.append(content)
    return "\n".join(texts) if texts else None


def _count_in(answer: bytes) -> int | None:
    try:
        counted = msgspec.json.decode(answer, type=_Counted)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if counted.count is not None:
        return counted.count
    return None if counted.tokens is None else len(counted.tokens)
