"""The request and the answer of a line as a conversation: roles, texts, tool calls and images.

The shapes are those of OpenAI's endpoints, read leniently: bodies may hold anything, and what is not
recognised is shown as JSON. Nothing here raises, and the result is bounded, however long the bodies are.
Texts are never interpreted, and a picture is shown only if its bytes are in the body: a page loads nothing
from the address that a prompt or an answer names.
"""

import json
import re
from collections.abc import Sequence
from typing import Any, Final, cast

from nightmill.dashboard.shown_text import pretty, shown_cut

Message = dict[str, Any]
Part = dict[str, Any]

MOST_MESSAGES: Final = 200
MOST_PARTS: Final = 64
MOST_TEXT: Final = 20_000
MOST_TEXT_IN_ALL: Final = 400_000
MOST_IMAGE_TEXT_IN_ALL: Final = 8 << 20
_LONGEST_NAME: Final = 200
_IMAGE: Final = re.compile(r"data:image/(?:png|jpeg|gif|webp);base64,[A-Za-z0-9+/]+={0,2}")
# The beginnings of the formats in base64.
_IMAGE_TYPES: Final = {"iVBORw0KGgo": "png", "/9j/": "jpeg", "R0lGOD": "gif", "UklGR": "webp"}
_USUAL_ENDS: Final = ("stop", "tool_calls", "function_call", "completed")


def conversation(endpoint: str, *, request: Any, answer: Any) -> list[Message]:
    """The messages of a request body and of the body that answered it.

    Args:
        endpoint: such as `/v1/chat/completions`.
        request: the decoded body; None without one.
        answer: likewise; None for a line without an answer.

    Returns:
        For each message `role`, `side` (`request` or `answer`), `name` (or None) and `parts`. A part has a
        `kind` (`text`, `reasoning`, `refusal`, `error`, `image`, `call`, `result`, `json`, `note`), a
        `title` or None, its `text`, how many characters are `left_out`, and for an image its `source`.
    """
    made = _Conversation()
    if isinstance(request, dict):
        made.side = "request"
        _add_request(made, endpoint, cast("dict[str, Any]", request))
    if answer is not None:
        made.side = "answer"
        _add_answer(made, endpoint, answer)
    return made.finished()


class _Conversation:
    """Collects messages within the bounds."""

    def __init__(self) -> None:
        self.side = "request"
        self._messages: list[Message] = []
        self._left_out = 0
        self._text_room = MOST_TEXT_IN_ALL
        self._image_room = MOST_IMAGE_TEXT_IN_ALL

    def add(self, role: Any, parts: Sequence[Part | None], *, name: Any = None) -> None:
        if len(self._messages) >= MOST_MESSAGES and self.side == "request":
            self._left_out += 1
            return
        kept = [part for part in parts if part is not None]
        if len(kept) > MOST_PARTS:
            kept = [*kept[:MOST_PARTS], _part("note", text=f"{len(kept) - MOST_PARTS:,} more parts")]
        self._messages.append(
            {
                "role": shown_cut(role, _LONGEST_NAME)[0] if isinstance(role, str) and role else "unknown",
                "side": self.side,
                "name": shown_cut(name, _LONGEST_NAME)[0] if isinstance(name, str) and name else None,
                "parts": kept or [_part("note", text="empty")],
            }
        )

    def finished(self) -> list[Message]:
        if self._left_out:
            note = _part("note", text=f"{self._left_out:,} more messages are in the JSON")
            self._messages.append({"role": "…", "side": "request", "name": None, "parts": [note]})
        return self._messages

    def text(self, value: Any, kind: str = "text", title: Any = None) -> Part | None:
        """A part of a text, or of JSON for another value; None for a value that is empty."""
        if value is None or value in ("", [], {}):
            return None
        if not isinstance(value, str):
            return self.json(value, title=title)
        room = min(MOST_TEXT, self._text_room)
        text, left_out = shown_cut(value, room)
        self._text_room -= len(value) - left_out
        return _part(kind, title=title, text=text, left_out=left_out)

    def json(self, value: Any, kind: str = "json", title: Any = None) -> Part:
        """A part of JSON; a string that is JSON itself, such as the arguments of a call, is indented."""
        text = pretty(value) if isinstance(value, str) else pretty(_encoded(value))
        room = min(MOST_TEXT, self._text_room)
        kept = text[:room]
        self._text_room -= len(kept)
        return _part(kind, title=title, text=kept, left_out=len(text) - len(kept))

    def image(self, url: Any) -> Part | None:
        """A picture whose bytes are in the text; for another one its address, which is not loaded."""
        if not isinstance(url, str):
            return self.text(url)
        if len(url) > self._image_room:
            return _part("note", title="image", text=f"not shown: {len(url):,} characters")
        if _IMAGE.fullmatch(url):
            self._image_room -= len(url)
            return _part("image", text=f"{len(url):,} characters", source=url)
        return self.text(url, "note", "image, not loaded")


def _part(kind: str, *, text: str, title: Any = None, left_out: int = 0, source: str | None = None) -> Part:
    named = shown_cut(title, _LONGEST_NAME)[0] if isinstance(title, str) and title else None
    return {"kind": kind, "title": named, "text": text, "left_out": left_out, "source": source}


# --- requests ----------------------------------------------------------------------------------------


def _add_request(made: _Conversation, endpoint: str, body: dict[str, Any]) -> None:
    tools = _objects(body.get("tools"))
    if tools:
        made.add("tools", [_tool(made, tool) for tool in tools])
    if isinstance(body.get("messages"), list):
        for message in _list(body["messages"]):
            _add_message(made, message)
    elif endpoint == "/v1/responses" or "instructions" in body:
        if body.get("instructions"):
            made.add("system", [made.text(body["instructions"])], name="instructions")
        _add_items(made, body.get("input"))
    elif "prompt" in body:
        made.add("prompt", [made.text(it) for it in _list(body["prompt"])])
    elif "input" in body:
        made.add("input", [_content(made, it) for it in _list(body["input"])])
    else:
        made.add("request", [made.json(body)])


def _tool(made: _Conversation, tool: dict[str, Any]) -> Part:
    function = tool.get("function")
    described = cast("dict[str, Any]", function) if isinstance(function, dict) else tool
    name = described.get("name") or tool.get("type")
    return made.json(described, title=name)


def _add_message(made: _Conversation, message: Any) -> None:
    if not isinstance(message, dict):
        made.add("unknown", [made.text(message)])
        return
    fields = cast("dict[str, Any]", message)
    role = fields.get("role")
    content = _list(fields.get("content"))
    answers_call = fields.get("tool_call_id") if role == "tool" else None
    parts = [
        made.text(fields.get("reasoning_content") or fields.get("reasoning"), "reasoning", "reasoning"),
        *(_result(made, it) if role in ("tool", "function") else _content(made, it) for it in content),
        made.text(fields.get("refusal"), "refusal", "refusal"),
        *(_call(made, call) for call in _objects(fields.get("tool_calls"))),
        *(_call(made, {"function": call}) for call in _objects([fields.get("function_call")])),
    ]
    made.add(role, parts, name=fields.get("name") or answers_call)


def _result(made: _Conversation, value: Any) -> Part | None:
    """The result of a tool: most often JSON in a string."""
    if isinstance(value, str) and value[:1] in ("{", "["):
        return made.json(value, "result")
    return _content(made, value)


def _call(made: _Conversation, call: dict[str, Any]) -> Part:
    function = call.get("function")
    fields = cast("dict[str, Any]", function) if isinstance(function, dict) else call
    return made.json(fields.get("arguments", fields.get("input", "")), "call", fields.get("name"))


def _content(made: _Conversation, part: Any) -> Part | None:
    """A part of the content of a message."""
    if not isinstance(part, dict):
        return made.text(part)
    fields = cast("dict[str, Any]", part)
    match fields.get("type"):
        case "text" | "input_text" | "output_text" | "summary_text" | "reasoning_text":
            return made.text(fields.get("text"))
        case "refusal":
            return made.text(fields.get("refusal"), "refusal", "refusal")
        case "image_url" | "input_image":
            image = fields.get("image_url") or fields.get("file_id")
            return made.image(cast("dict[str, Any]", image).get("url") if isinstance(image, dict) else image)
        case kind:
            return made.json(fields, title=kind)


def _add_items(made: _Conversation, items: Any) -> None:
    """The items of `input` or `output` of the Responses API."""
    if isinstance(items, str):
        made.add("user", [made.text(items)])
        return
    for item in _list(items):
        if not isinstance(item, dict):
            made.add("unknown", [made.text(item)])
            continue
        fields = cast("dict[str, Any]", item)
        match fields.get("type", "message"):
            case "message":
                _add_message(made, fields)
            case "function_call" | "custom_tool_call":
                made.add("assistant", [_call(made, fields)])
            case "function_call_output" | "custom_tool_call_output":
                output = [_result(made, it) for it in _list(fields.get("output"))]
                made.add("tool", output, name=fields.get("call_id"))
            case "reasoning":
                thoughts = [*_objects(fields.get("summary")), *_objects(fields.get("content"))]
                parts = [made.text(it.get("text"), "reasoning", "reasoning") for it in thoughts]
                made.add("assistant", parts or [_part("note", title="reasoning", text="not shown")])
            case kind:
                made.add(kind, [made.json(fields)])


# --- answers -----------------------------------------------------------------------------------------


def _add_answer(made: _Conversation, endpoint: str, answer: Any) -> None:
    if not isinstance(answer, dict):
        made.add("answer", [made.text(answer)])
        return
    body = cast("dict[str, Any]", answer)
    choices = _list(body.get("choices"))
    if error := body.get("error"):
        made.add("error", [_error(made, error)])
    for number, choice in enumerate(choices, 1):
        _add_choice(made, choice, f"choice {number} of {len(choices)}" if len(choices) > 1 else None)
    if isinstance(body.get("output"), list):
        _add_items(made, body["output"])
        _add_end(made, body)
    elif endpoint == "/v1/embeddings" and isinstance(body.get("data"), list):
        made.add("answer", [_vector(made, it) for it in _list(body["data"])])
    elif endpoint.startswith("/v1/images/") and isinstance(body.get("data"), list):
        for image in _objects(body["data"]):
            made.add("answer", [_made_image(made, image), made.text(image.get("revised_prompt"))])
    elif not choices and not error:
        made.add("answer", [made.json(body.get("results", body))])


def _add_choice(made: _Conversation, choice: Any, name: str | None) -> None:
    if not isinstance(choice, dict):
        made.add("assistant", [made.text(choice)], name=name)
        return
    fields = cast("dict[str, Any]", choice)
    message = fields.get("message")
    if isinstance(message, dict):
        _add_message(made, {"role": "assistant", **cast("dict[str, Any]", message), "name": name})
    else:
        made.add("assistant", [made.text(fields.get("text"))], name=name)
    end = fields.get("finish_reason")
    if isinstance(end, str) and end not in _USUAL_ENDS:
        made.add("end", [made.text(end, "note", "finish reason")])


def _add_end(made: _Conversation, body: dict[str, Any]) -> None:
    """Says why an answer of the Responses API is not whole."""
    status = body.get("status")
    if not isinstance(status, str) or status in _USUAL_ENDS:
        return
    details = body.get("incomplete_details")
    reason = cast("dict[str, Any]", details).get("reason") if isinstance(details, dict) else None
    made.add("end", [made.text(status, "note", "status"), made.text(reason, "note", "reason")])


def _error(made: _Conversation, error: Any) -> Part | None:
    if not isinstance(error, dict):
        return made.text(error, "error")
    fields = cast("dict[str, Any]", error)
    code = fields.get("code") or fields.get("type")
    return made.text(fields.get("message") or fields, "error", str(code) if code else None)


def _vector(made: _Conversation, item: Any) -> Part | None:
    vector = cast("dict[str, Any]", item).get("embedding") if isinstance(item, dict) else None
    if isinstance(vector, list):
        return _part("note", title="vector", text=f"{len(cast('list[Any]', vector)):,} numbers")
    if isinstance(vector, str):
        return _part("note", title="vector", text=f"{len(vector):,} characters of base64")
    return made.text(item)


def _made_image(made: _Conversation, image: dict[str, Any]) -> Part | None:
    text = image.get("b64_json")
    if not isinstance(text, str):
        return made.image(image.get("url"))
    kind = next((kind for start, kind in _IMAGE_TYPES.items() if text.startswith(start)), "png")
    return made.image(f"data:image/{kind};base64,{text}")


# --- values ------------------------------------------------------------------------------------------


def _list(value: Any) -> list[Any]:
    """A value that may be one or several."""
    if value is None:
        return []
    return cast("list[Any]", value) if isinstance(value, list) else [value]


def _objects(value: Any) -> list[dict[str, Any]]:
    return [cast("dict[str, Any]", it) for it in _list(value) if isinstance(it, dict)]


def _encoded(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False)
    except (ValueError, RecursionError):
        return "…"
