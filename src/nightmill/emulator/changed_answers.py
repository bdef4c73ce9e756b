"""Answers of a model that did not answer: a refusal, an answer cut at its length, a filtered or an empty one.

They apply to chat completions, completions and responses; other endpoints answer as usual. A structured
output that is cut is not valid JSON, as in reality.
"""

from typing import Any, Final

import msgspec

from nightmill.emulator.content import Answer, object_of
from nightmill.emulator.faults import Fault

REFUSAL: Final = "This refusal is emulated: the line ordered it."


def changed_answer(fault: Fault, answer: Answer) -> Answer:
    """The answer as the fault has it: `refusal`, `length`, `content_filter` or `empty`."""
    if answer.status != 200:
        return answer
    content = object_of(answer.body)
    match content.get("object"):
        case "chat.completion":
            content["choices"] = [_choice(fault, choice) for choice in content["choices"]]
        case "text_completion":
            content["choices"] = [_completion(fault, choice) for choice in content["choices"]]
        case "response":
            content |= _response(fault, content)
        case _:
            return answer
    return Answer(answer.status, msgspec.json.encode(content))


def _choice(fault: Fault, choice: dict[str, Any]) -> dict[str, Any]:
    message: dict[str, Any] = choice["message"]
    match fault.fault:
        case "refusal":
            plain = {name: value for name, value in message.items() if "call" not in name}
            return choice | {
                "message": plain | {"content": None, "refusal": REFUSAL},
                "finish_reason": "stop",
            }
        case "length":
            return choice | {"message": _cut_message(message), "finish_reason": "length"}
        case "content_filter":
            return choice | {"message": message | {"content": ""}, "finish_reason": "content_filter"}
        case _:
            return choice | {"message": message | {"content": ""}}


def _cut_message(message: dict[str, Any]) -> dict[str, Any]:
    """The message without the second half of its text, or of the arguments of its call."""
    if message["content"] is not None:
        return message | {"content": _half(message["content"])}
    calls = [
        call | {"function": call["function"] | {"arguments": _half(call["function"]["arguments"])}}
        for call in message.get("tool_calls", [])
        if "function" in call
    ]
    return message | {"tool_calls": calls} if calls else message


def _completion(fault: Fault, choice: dict[str, Any]) -> dict[str, Any]:
    match fault.fault:
        case "length":
            return choice | {"text": _half(choice["text"]), "finish_reason": "length"}
        case "content_filter":
            return choice | {"text": "", "finish_reason": "content_filter"}
        case _:
            return choice | {"text": ""}


def _response(fault: Fault, content: dict[str, Any]) -> dict[str, Any]:
    """The members of a response that change."""
    item: dict[str, Any] = content["output"][0]
    message = {"id": f"msg_{content['id']}", "type": "message", "role": "assistant", "status": "completed"}
    match fault.fault:
        case "refusal":
            return {"output": [message | {"content": [{"type": "refusal", "refusal": REFUSAL}]}]}
        case "length":
            return {
                "status": "incomplete",
                "incomplete_details": {"reason": "max_output_tokens"},
                "output": [_cut_item(item)],
            }
        case "content_filter":
            return {
                "status": "incomplete",
                "incomplete_details": {"reason": "content_filter"},
                "output": [message | {"status": "incomplete", "content": []}],
            }
        case _:
            return {"output": [message | {"content": []}]}


def _cut_item(item: dict[str, Any]) -> dict[str, Any]:
    cut = item | {"status": "incomplete"}
    match item["type"]:
        case "message":
            return cut | {"content": [part | {"text": _half(part["text"])} for part in item["content"]]}
        case "function_call":
            return cut | {"arguments": _half(item["arguments"])}
        case _:
            return item


def _half(text: str) -> str:
    return text[: len(text) // 2]
