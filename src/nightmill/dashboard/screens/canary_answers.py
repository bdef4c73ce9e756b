"""The first lines of a new batch as they are answered, and the decision whether the others follow.

The batch was created with `canary` and `canary_pause`: it is paused once its first lines are answered. Going
on is a resume, stopping is a cancel, so both work from everywhere else too.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final, cast

from starlette.responses import Response

from nightmill.core.batch import Status
from nightmill.dashboard.calls import ApiRefusalError, path_of
from nightmill.dashboard.conversation import conversation
from nightmill.dashboard.file_beginning import FileLine, body_of, first_lines
from nightmill.dashboard.navigation import NEW_BATCH
from nightmill.dashboard.pages import Screen
from nightmill.dashboard.shown_text import shown, shown_cut
from nightmill.dashboard.visit import Visit, action, screen

MOST_LINES: Final = 20
_MOST_TEXT: Final = 700
_LONGEST_ID: Final = 80
_ORDINAL_DIGITS: Final = 8
_EVERY_S: Final = 1.0
_ENDED_EVERY_S: Final = 10.0


async def show(visit: Visit) -> Screen:
    batch_id = visit.path("batch_id")
    batch = await visit.api.get(path_of("nightmill", "v1", "batches", batch_id))
    canary = await _canary(visit, batch_id)
    phase = phase_of(batch, canary)
    document = {
        "batch": batch,
        "canary": canary,
        "phase": phase,
        "waiting": max(0, batch["request_counts"]["total"] - _answered(batch)),
        "lines": await _lines(visit, batch, most=min(MOST_LINES, batch["options"]["canary"] or MOST_LINES)),
        "most_lines": MOST_LINES,
    }
    every_s = _EVERY_S if phase in ("validating", "running") else _ENDED_EVERY_S
    return Screen(
        template="canary_answers.html",
        title="First answers",
        document=document,
        live=("answers",),
        every_s=every_s,
    )


def phase_of(batch: Mapping[str, Any], canary: Mapping[str, Any] | None) -> str:
    """How far the first lines are: `validating`, `running`, `decide`, `sent_on`, `refused`, `stopped` or
    `ended`."""
    status = Status(batch["status"])
    if status is Status.VALIDATING:
        return "validating"
    if status is Status.FAILED:
        return "refused"
    if canary is not None and canary["state"] == "stopped":
        return "stopped"
    if status is not Status.IN_PROGRESS:
        return "ended"
    if canary is None or canary["state"] in ("whole", "ended"):
        return "sent_on"
    if canary["state"] == "running":
        return "running"
    return "sent_on" if batch["paused_at"] is None else "decide"


async def _canary(visit: Visit, batch_id: str) -> dict[str, Any] | None:
    try:
        return await visit.api.get(path_of("nightmill", "v1", "batches", batch_id, "canary"))
    except ApiRefusalError as error:
        if error.status != 404:
            raise
        return None


def _answered(batch: Mapping[str, Any]) -> int:
    counts = batch["request_counts"]
    return counts["completed"] + counts["failed"]


# --- lines ---------------------------------------------------------------------------------------------


async def _lines(visit: Visit, batch: Mapping[str, Any], *, most: int) -> list[dict[str, Any]]:
    """The answered lines among the first ones, in the order of the file."""
    if batch["status"] in (Status.VALIDATING, Status.FAILED):
        return []
    results = path_of("nightmill", "v1", "batches", str(batch["id"]), "results")
    found = await visit.api.get(results, {"limit": most})
    file_id = (await visit.api.get(path_of("v1", "batches", str(batch["id"]))))["input_file_id"]
    asked = await first_lines(visit.api, file_id, most=5 * most) if visit.shows_content else ()
    by_id = {line["request"].get("custom_id"): line for line in asked if line["request"] is not None}
    lines: list[dict[str, Any]] = []
    for entry in found["data"]:
        line = entry["line"]
        made = _line(line, outcome=entry["outcome"])
        if visit.shows_content:
            made |= _texts(str(batch["endpoint"]), line, by_id.get(line["custom_id"]))
        lines.append(made)
    return sorted(lines, key=lambda line: line["ordinal"])


def _line(line: Mapping[str, Any], *, outcome: str) -> dict[str, Any]:
    """What is shown of an output line without its texts."""
    custom_id, error = line["custom_id"], line["error"]
    response: dict[str, Any] = line["response"] or {}
    return {
        "ordinal": int(line["id"][-_ORDINAL_DIGITS:], 16),
        "number": None,
        "custom_id": None if custom_id is None else shown_cut(custom_id, _LONGEST_ID)[0],
        "is_ok": outcome == "completed",
        "status": response.get("status_code"),
        "code": None if error is None else error["code"],
        "output_tokens": output_tokens_of(response.get("body")),
    }


def _texts(endpoint: str, line: Mapping[str, Any], asked: FileLine | None) -> dict[str, Any]:
    response: dict[str, Any] = line["response"] or {}
    body = None if asked is None else body_of(asked["request"])
    said = conversation(endpoint, request=body, answer=response.get("body"))
    error = None if line["error"] is None else shown(line["error"]["message"])
    return {
        "number": None if asked is None else asked["number"],
        "asked": _last_text(said, "request"),
        "answer": _last_text(said, "answer") or error,
    }


def _last_text(messages: Sequence[Mapping[str, Any]], side: str) -> str | None:
    """The texts of the last message of a side, shortened."""
    for message in reversed(messages):
        if message["side"] == side:
            texts = [part["text"] for part in message["parts"] if part["kind"] != "image" and part["text"]]
            text = "\n".join(texts)
            return text if len(text) <= _MOST_TEXT else text[:_MOST_TEXT] + "…"
    return None


def output_tokens_of(body: Any) -> int | None:
    """The output tokens that the body of an answer reports; None without a report."""
    usage = _member(body, "usage")
    tokens = _member(usage, "completion_tokens") or _member(usage, "output_tokens")
    return tokens if isinstance(tokens, int) else None


def _member(value: Any, name: str) -> Any:
    return cast("dict[str, Any]", value).get(name) if isinstance(value, dict) else None


# --- decide --------------------------------------------------------------------------------------------


async def decide(visit: Visit) -> Response:
    batch_id = visit.path("batch_id")
    form = await visit.form()
    batch = path_of("nightmill", "v1", "batches", batch_id)
    if form.get("decision") == "go_on":
        await visit.api.post(f"{batch}/resume")
        notice = "The other lines are being sent."
    else:
        await visit.api.post(path_of("v1", "batches", batch_id, "cancel"))
        notice = "The batch is being cancelled. The answers so far are kept."
    return visit.redirect(f"ui/batches/{batch_id}", notice=notice)


routes = (
    screen("/ui/batches/{batch_id}/canary", show, area=NEW_BATCH),
    action("/ui/batches/{batch_id}/canary", decide),
)
