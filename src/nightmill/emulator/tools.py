"""Which tool the emulator calls, and with which arguments.

A tool is called when the request offers tools, unless `tool_choice` is `none`, or the conversation ends with
the result of a tool: so a loop of calls and results ends after one call. Arguments satisfy the `parameters`
of the tool. Chat completions, the older `functions`, and responses spell the same things differently; the
functions here read all spellings.
"""

from typing import Any, cast

import msgspec
from msgspec import Raw, Struct

from nightmill.emulator.content import NOT_GIVEN, BadBodyError, is_given, made_up_text
from nightmill.emulator.structured_text import satisfying

_NO_PARAMETERS = b'{"type":"object","properties":{},"additionalProperties":false}'
_CALLABLE = ("function", "custom")
_RESULT_KINDS = ("function_call_output", "custom_tool_call_output")
_RESULT_ROLES = ("tool", "function")


class Tool(Struct, frozen=True):
    """A function, or a custom tool, which takes a text."""

    name: str
    parameters: bytes | None
    """The JSON Schema of the arguments; None for a custom tool."""


class ToolCall(Struct, frozen=True):
    """A call of a tool, its arguments as a text."""

    tool: Tool
    arguments: str

    @property
    def is_function(self) -> bool:
        return self.tool.parameters is not None


class _Named(Struct, frozen=True):
    name: str | None = None
    parameters: Raw = NOT_GIVEN


class _GivenTool(Struct, frozen=True):
    type: str = "function"
    name: str | None = None
    parameters: Raw = NOT_GIVEN
    function: _Named | None = None
    custom: _Named | None = None


class _Turn(Struct, frozen=True):
    role: str = ""
    type: str = ""


_decode_tools = msgspec.json.Decoder(list[_GivenTool]).decode
_decode_functions = msgspec.json.Decoder(list[_Named]).decode
_decode_turn = msgspec.json.Decoder(_Turn).decode


def tool_call(
    tools: Raw, choice: Raw, *, last_turn: Raw, seed: bytes, functions: Raw = NOT_GIVEN
) -> ToolCall | None:
    """The call that the answer has; None for an answer without one.

    Args:
        tools: `tools` of the request.
        choice: `tool_choice`, or `function_call`.
        last_turn: the last message, or the last item of a list of inputs.
        functions: the older form of `tools`.

    Raises:
        BadBodyError: `choice` names a tool that is not offered, or requires one where none is.
    """
    if not is_given(tools) and not is_given(functions):
        return None
    offered = _offered(tools, functions)
    mode, names = _choice(choice)
    for name in names:
        if all(tool.name != name for tool in offered):
            raise BadBodyError(f"Tool choice {name[:64]!r} not found in 'tools' parameter.")
    if names:
        offered = [tool for tool in offered if tool.name in names]
    if mode == "required" and not offered:
        raise BadBodyError("'tool_choice' asks for a tool, but 'tools' has none.")
    if mode == "none" or not offered or (mode == "auto" and _is_result(last_turn)):
        return None
    tool = offered[seed[1] % len(offered)]
    if tool.parameters is None:
        return ToolCall(tool, made_up_text(seed))
    return ToolCall(tool, satisfying(tool.parameters, seed))


def _offered(tools: Raw, functions: Raw) -> list[Tool]:
    found: list[Tool] = []
    for given in _decode_tools(tools) if is_given(tools) else []:
        if given.type not in _CALLABLE:
            continue  # a tool that OpenAI runs itself, such as web search
        inner = given.function or given.custom or _Named(given.name, given.parameters)
        found.append(_tool(inner, is_custom=given.type == "custom"))
    older = _decode_functions(functions) if is_given(functions) else []
    found += [_tool(given, is_custom=False) for given in older]
    return found


def _tool(given: _Named, *, is_custom: bool) -> Tool:
    if not given.name:
        raise BadBodyError("Missing required parameter: 'tools[].name'.")
    if is_custom:
        return Tool(given.name, None)
    is_empty = not is_given(given.parameters) or bytes(given.parameters) == b"{}"
    return Tool(given.name, _NO_PARAMETERS if is_empty else bytes(given.parameters))


def _choice(given: Raw) -> tuple[str, list[str]]:
    """`none`, `auto` or `required`, and the names of the tools to choose from; no names for all."""
    choice: Any = msgspec.json.decode(given) if is_given(given) else "auto"
    if isinstance(choice, str):
        return choice, []
    if not isinstance(choice, dict):
        return "auto", []
    asked = cast("dict[str, Any]", choice)
    allowed: Any = asked.get("allowed_tools", asked)
    if asked.get("type") == "allowed_tools" and isinstance(allowed, dict):
        entries = cast("dict[str, Any]", allowed)
        names = [name for entry in entries.get("tools", []) if (name := _name_in(entry))]
        return str(entries.get("mode", "auto")), names
    name = _name_in(asked)
    return ("required", [name]) if name else ("auto", [])


def _name_in(entry: dict[str, Any]) -> str | None:
    inner: Any = entry.get("function") or entry.get("custom") or entry
    name = cast("dict[str, Any]", inner).get("name") if isinstance(inner, dict) else None
    return name if isinstance(name, str) else None


def _is_result(turn: Raw) -> bool:
    if not is_given(turn):
        return False
    try:
        last = _decode_turn(turn)
    except msgspec.ValidationError:
        return False
    return last.role in _RESULT_ROLES or last.type in _RESULT_KINDS
