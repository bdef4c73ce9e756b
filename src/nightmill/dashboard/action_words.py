"""Actions on many batches in words: what will be done, what is being done, and what was done. No I/O."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from nightmill.core.words import duration

_DONE: Final = {
    "pause": "paused",
    "resume": "resumed",
    "prioritize": "given another priority",
    "deadline": "given another deadline",
    "limit": "given another limit",
    "cancel": "cancelled",
}
_DOING: Final = {
    "pause": "Pausing",
    "resume": "Resuming",
    "prioritize": "Changing the priority",
    "deadline": "Changing the deadline",
    "limit": "Changing the limit",
    "cancel": "Cancelling",
    "retry": "Retrying",
}
_BUTTON: Final = {
    "pause": "Pause",
    "resume": "Resume",
    "prioritize": "Change the priority of",
    "deadline": "Change the deadline of",
    "limit": "Change the limit of",
    "cancel": "Cancel",
    "retry": "Retry the failed lines of",
}
UNDO_LABELS: Final = {"call_off": "Call off", "undo": "Undo", "stop": "Stop"}


def batches(count: int) -> str:
    """`1 batch`, `12,431 batches`."""
    return "1 batch" if count == 1 else f"{count:,} batches"


def button(action: str, total: int) -> str:
    """`Pause 12 batches`, `Pause this batch`."""
    return f"{_BUTTON[action]} {'this batch' if total == 1 else batches(total)}"


def sentence(action: Mapping[str, Any]) -> str:
    """Where an action is, from its document (`api.bulk_actions.action_on_wire`)."""
    kind, total, changed = action["action"], action["total"], action["changed"]
    match action["state"]:
        case "pending":
            wait_s = action["starts_in_s"] or 0.0
            when = f"in {duration(wait_s + 0.999)}" if wait_s > 0 else "now"
            if not total:
                return "There is no batch to change."
            if kind == "retry":
                return f"The failed lines of {batches(total)} will be sent again {when}."
            return f"{batches(total)} will be {_DONE[kind]} {when}."
        case "running":
            text = f"{_DOING[kind]}: {action['done']:,} of {batches(total)} done."
            return f"{text} {action['waits_for']}" if action["waits_for"] else text
        case "done":
            return _result(kind, changed) + _rest(action)
        case "undoing":
            return f"Undoing: {action['undone']:,} of {batches(changed)} are as they were."
        case "undone":
            kept = changed - action["undone"]
            text = f"Undone: {_are(action['undone'])} as before."
            return f"{text} {batches(kept)} stayed: changed again meanwhile, or ended." if kept else text
        case _ if changed:
            left = batches(total - action["done"])
            return f"Stopped. {_result(kind, changed)} {left} stayed as before."
        case _:
            return "Called off: nothing was changed."


def left_alone(preview: Mapping[str, Any]) -> list[str]:
    """Which batches a previewed action leaves as they are, and why: a line for each kind."""
    kind = preview["action"]
    lines = [
        f"{batches(row['count'])}: {_reason(kind, row['status'], is_paused=row['paused'])}"
        for row in preview["left_alone"]
    ]
    if preview["not_found"]:
        lines.append(f"{batches(preview['not_found'])}: not found")
    return lines


def consequences(preview: Mapping[str, Any]) -> Sequence[str]:
    """What a person should know before."""
    open_lines = preview["open_lines"]
    match preview["action"]:
        case "pause":
            return ["Requests that are in flight are answered. The deadlines stay as they are."]
        case "cancel":
            return [
                f"{_lines(open_lines)} will not be answered. Answers that exist stay in the files.",
                "It can't be undone, but it begins only after 10 seconds. Until then it can be called off.",
            ]
        case "retry":
            return [
                "For each batch a new batch is made of its failed lines. The batches themselves stay.",
                "It begins after 10 seconds. Until then it can be called off.",
            ]
        case _:
            return []


def _lines(count: int) -> str:
    return "1 line" if count == 1 else f"{count:,} lines"


def _are(count: int) -> str:
    return f"{batches(count)} {'is' if count == 1 else 'are'}"


def _result(kind: str, changed: int) -> str:
    if kind == "retry":
        made = "1 new batch repeats" if changed == 1 else f"{changed:,} new batches repeat"
        return f"{made} the failed lines."
    return f"{batches(changed)} {'was' if changed == 1 else 'were'} {_DONE[kind]}."


def _rest(action: Mapping[str, Any]) -> str:
    """Batches that were to be changed and were not."""
    names = {"unchanged": "needed no change", "refused": "refused it", "not_found": "are gone"}
    parts = [f"{action[name]:,} {words}" for name, words in names.items() if action[name]]
    return f" {', '.join(parts).capitalize()}." if parts else ""


def _reason(kind: str, status: str, *, is_paused: bool) -> str:
    shown = status.replace("_", " ")
    is_steerable = status in ("validating", "in_progress")
    if kind == "retry":
        if status in ("completed", "expired", "cancelled"):
            return f"{shown}, without failed lines or retried before"
        return "failed validation, no line was sent" if status == "failed" else f"{shown}, not ended yet"
    if is_steerable and kind == "pause" and is_paused:
        return "paused already"
    if is_steerable and kind == "resume":
        return "not paused"
    if kind == "prioritize" and status not in ("completed", "failed", "expired", "cancelled"):
        return "have this priority already"
    return shown
