"""The screen "Line": the request, its attempts and its answer, as a conversation with the JSON beside it."""

import asyncio
from typing import Any, Final, cast
from urllib.parse import quote, urlencode

from starlette.responses import Response

from nightmill.core.written_line import LineState
from nightmill.dashboard.calls import path_of
from nightmill.dashboard.conversation import conversation
from nightmill.dashboard.navigation import BATCHES
from nightmill.dashboard.pages import LIVE_PARAMETER, Screen
from nightmill.dashboard.shown_text import pretty_cut, read_json, shown, shown_cut
from nightmill.dashboard.visit import Visit, action, screen

_READ_BYTES: Final = 8 << 20
_MOST_RAW: Final = 100_000
_LONGEST_NAME: Final = 512
_FINAL: Final = (LineState.ANSWERED, LineState.FAILED, LineState.EXPIRED, LineState.CANCELLED)
_LIVE: Final = ("line",)
_LOOK_S: Final = 2.0
_FINAL_LOOK_S: Final = 60.0


async def show(visit: Visit) -> Screen:
    batch_id, number = visit.path("batch_id"), visit.path("number")
    most_bytes = _READ_BYTES if visit.shows_content else 0
    path = path_of("nightmill", "v1", "batches", batch_id, "lines", number)
    found = await visit.api.get(path, {"max_bytes": most_bytes})
    # Long bodies take a moment to be indented.
    document = await asyncio.to_thread(_document, found, shows_content=visit.shows_content)
    is_final = found["state"] in _FINAL or found["state"] is None
    # A page that is open already is given the change that made its line final.
    is_live = not is_final or visit.query(LIVE_PARAMETER) is not None
    return Screen(
        template="line.html",
        title=f"Line {document['line']}: {document['name']}",
        document=document,
        live=_LIVE if is_live else (),
        every_s=_FINAL_LOOK_S if is_final else _LOOK_S,
    )


async def find(visit: Visit) -> Response:
    """To the page of a line that is named by its custom_id, its number or its ordinal."""
    batch_id = visit.path("batch_id")
    named = {name: visit.query(name) for name in ("custom_id", "line", "ordinal")}
    if not any(named.values()):
        named["line"] = "1"
    path = path_of("nightmill", "v1", "batches", batch_id, "lines")
    found = await visit.api.get(path, {**named, "wait": False})
    return visit.redirect(f"ui/batches/{quote(batch_id, safe='')}/lines/{found['line']}")


def _document(found: dict[str, Any], *, shows_content: bool) -> dict[str, Any]:
    batch = found["batch"]
    document = {
        name: found[name]
        for name in (
            *("line", "ordinal", "state", "upstream", "since", "again_at", "reason", "code", "file_id"),
            *("previous", "next", "previous_failed", "next_failed"),
        )
    }
    custom_id = found["custom_id"]
    request = _raw(found["request"])
    answer = None if found["answer"] is None else _raw(found["answer"])
    document |= {
        "batch": batch,
        "custom_id": None if custom_id is None else shown_cut(custom_id, _LONGEST_NAME)[0],
        "name": shown_cut(custom_id, 80)[0] if custom_id else f"line {found['line']}",
        "invalid": _invalid(found["invalid"], shows_content=shows_content),
        "attempts": _attempts(found),
        "attempts_recorded": found["attempts"] is not None,
        "request": request,
        "answer": answer,
        "messages": None,
        "usage": None,
        "model": None,
        "request_id": None,
        "whole_request": _whole(batch["input_file_id"], found["request"]["offset"]),
        "try_url": "ui/try?" + urlencode({"batch": batch["id"], "line": found["line"]}),
    }
    if not shows_content:
        for raw in (request, answer):
            if raw is not None:
                raw["text"] = None
        return document
    asked = _object(read_json(found["request"]["text"].removeprefix("\ufeff")))
    given = _object(read_json(found["answer"]["text"])) if found["answer"] else {}
    response = _object(given.get("response"))
    body: Any = response.get("body") if response else None
    if body is None and given.get("error"):
        body = {"error": given["error"]}
    if asked or body is not None:
        document["messages"] = conversation(batch["endpoint"], request=asked.get("body"), answer=body)
    fields = _object(body)
    model = fields.get("model") or _object(asked.get("body")).get("model")
    document["usage"] = _usage(_object(fields.get("usage")))
    document["model"] = shown_cut(model, _LONGEST_NAME)[0] if isinstance(model, str) else None
    request_id = response.get("request_id")
    document["request_id"] = shown_cut(request_id, 200)[0] if isinstance(request_id, str) else None
    return document


def _raw(text: dict[str, Any]) -> dict[str, Any]:
    """The JSON of a line with indentation, as much of it as a page should have."""
    whole, is_cut = (shown(text["text"]), True) if text["is_cut"] else pretty_cut(text["text"])
    kept = whole[:_MOST_RAW]
    return {
        "text": kept,
        "size_bytes": text["size_bytes"],
        "is_cut": is_cut or len(kept) < len(whole),
    }


def _invalid(row: dict[str, Any] | None, *, shows_content: bool) -> dict[str, Any] | None:
    """The reasons quote values of the line."""
    if row is None:
        return None
    names = ("code", "field", "reason", "hint") if shows_content else ("code", "field", "hint")
    return {"reason": None, **{name: shown(str(row.get(name) or "")) for name in names}}


def _attempts(found: dict[str, Any]) -> list[dict[str, Any]]:
    """The recorded attempts, and the one that is in flight or to come."""
    rows: list[dict[str, Any]] = [{**record, "is_last": False} for record in found["attempts"] or ()]
    if rows and found["answer"] is not None:
        rows[-1]["is_last"] = True
    empty: dict[str, Any] = dict.fromkeys(
        ("lease", "attempt", "upstream", "started_at", "wait_s", "duration_s", "outcome", "status", "code")
    )
    if found["state"] == LineState.IN_FLIGHT:
        now = {"upstream": found["upstream"], "started_at": found["since"], "outcome": "in flight"}
        rows.append({**empty, **now, "is_error": False, "is_last": False})
    elif found["state"] == LineState.RETRYING:
        later = {"upstream": found["upstream"], "started_at": found["again_at"], "outcome": "to come"}
        rows.append({**empty, **later, "is_error": False, "is_last": False})
    return rows


def _usage(usage: dict[str, Any]) -> dict[str, int | None] | None:
    """Tokens in and out, by either name of OpenAI."""
    found = {
        "input_tokens": _count(usage, "prompt_tokens", "input_tokens"),
        "output_tokens": _count(usage, "completion_tokens", "output_tokens"),
    }
    return found if any(value is not None for value in found.values()) else None


def _count(usage: dict[str, Any], *names: str) -> int | None:
    values = [usage.get(name) for name in names]
    counts = [it for it in values if isinstance(it, int) and not isinstance(it, bool) and 0 <= it < 1 << 53]
    return next(iter(counts), None)


def _object(value: Any) -> dict[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _whole(file_id: str, offset: int) -> str:
    return f"ui/files/{quote(file_id, safe='')}?" + urlencode({"offset": offset, "whole": 1})


routes = (
    action("/ui/batches/{batch_id}/lines", find, methods=("GET",)),
    screen("/ui/batches/{batch_id}/lines/{number}", show, area=BATCHES),
)
