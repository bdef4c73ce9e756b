"""The screen "New batch": a file is uploaded and checked, and a batch is created of it.

The file is chosen first (`ui/new`); everything else is about a stored file (`ui/new?file=...`), so that a
person may leave the page and come back. The check of the lines reads the whole file, so the page asks for it
on its own (`ui/new/check`), and without scripts a link does.
"""

from collections.abc import Mapping
from hashlib import sha256
from typing import Any, Final

import msgspec
from starlette.requests import ClientDisconnect
from starlette.responses import HTMLResponse, Response
from starlette.types import Message

from nightmill.api.envelope import JsonResponse
from nightmill.core.nearest_name import nearest_name
from nightmill.dashboard.calls import ApiRefusalError, path_of
from nightmill.dashboard.file_beginning import endpoint_of, first_lines
from nightmill.dashboard.navigation import NEW_BATCH
from nightmill.dashboard.pages import Screen, respond, wants_json
from nightmill.dashboard.screens import canary_answers
from nightmill.dashboard.screens.batch_form import UNTOUCHED, WrongFieldError, batch_of, fields_of
from nightmill.dashboard.shown_text import shown, shown_cut
from nightmill.dashboard.visit import Visit, action, screen

_TEMPLATE: Final = "new_batch.html"
_TITLE: Final = "New batch"
_STORED_FILES: Final = 8
_LINES_READ: Final = 20
_LINES_SHOWN: Final = 3
_MOST_LINE: Final = 600
_MOST_MODELS: Final = 12


async def show(visit: Visit) -> Screen:
    file_id = visit.query("file")
    if file_id is None:
        return await _choice(visit)
    is_checked = visit.query("check") is not None or wants_json(visit.request)
    return await _chosen(visit, file_id, is_checked=is_checked)


async def _choice(visit: Visit, problem: str | None = None, status: int = 200) -> Screen:
    """The page without a file."""
    found = await visit.api.get("/v1/files", {"purpose": "batch", "limit": _STORED_FILES})
    limits = visit.context.settings.limits
    document = {
        "file": None,
        "problem": problem,
        "files": [_named(file) for file in found["data"]],
        "limits": {"bytes": limits.input_file_bytes, "lines": limits.lines_per_file},
    }
    return Screen(template=_TEMPLATE, title=_TITLE, document=document, status=status)


async def _chosen(
    visit: Visit,
    file_id: str,
    *,
    is_checked: bool,
    fields: Mapping[str, str] | None = None,
    problem: str | None = None,
    status: int = 200,
) -> Screen:
    """The page about a stored file.

    Args:
        fields: of a form that was refused, to be shown again.
    """
    file = await visit.api.get(path_of("v1", "files", file_id))
    settings = visit.context.settings.limits
    lines = await first_lines(visit.api, file_id, most=_LINES_READ)
    endpoint = endpoint_of(lines, settings.endpoints)
    windows = list(settings.completion_windows)
    usual = {**UNTOUCHED, "endpoint": endpoint or settings.endpoints[0], "window": windows[0]}
    document = {
        "file": _named(file),
        "problem": problem,
        "endpoint": endpoint,
        "endpoints": list(settings.endpoints),
        "windows": windows,
        "lines": _shown_lines(lines) if visit.shows_content else None,
        "fields": {**usual, **(fields or {})},
        "key": visit.context.random(16).hex(),
        "limits": {"bytes": settings.input_file_bytes, "lines": settings.lines_per_file},
        **await _check(visit, file_id, is_wanted=is_checked),
    }
    return Screen(template=_TEMPLATE, title=_TITLE, document=document, status=status)


def _named(file: Mapping[str, Any]) -> dict[str, Any]:
    """The file with a name in which every character can be seen."""
    return {**file, "filename": shown(file["filename"])}


def _shown_lines(lines: Any) -> list[dict[str, Any]]:
    shown: list[dict[str, Any]] = []
    for line in lines[:_LINES_SHOWN]:
        text, left_out = shown_cut(line["text"], _MOST_LINE)
        shown.append({"number": line["number"], "text": text, "left_out": left_out})
    return shown


# --- the check -----------------------------------------------------------------------------------------


async def _check(visit: Visit, file_id: str, *, is_wanted: bool) -> dict[str, Any]:
    """What is known of all lines: `check` is None until it is asked for, or where it is refused."""
    if not is_wanted:
        return {"check": None, "refusal": None}
    given = {"input_file_id": file_id}
    if (endpoint := visit.query("endpoint")) is not None:
        given["endpoint"] = endpoint
    try:
        estimate = await visit.api.post("/nightmill/v1/estimates", given)
    except ApiRefusalError as error:
        if error.status == 404:
            raise
        return {"check": None, "refusal": error.message}
    served = await _served_models(visit)
    for entry in estimate["models"]:
        is_listed = None if served is None or entry["model"] is None else entry["model"] in served
        entry["is_served"] = is_listed if entry["is_served"] is None else entry["is_served"]
        entry["near"] = nearest_name(entry["model"], served or ()) if entry["is_served"] is False else None
    for group in estimate["error_groups"]:
        group["message"] = shown(group["message"])
    refused = [error for error in estimate["errors"] if error["line"] is None]
    estimate["file_errors"] = [error for error in refused if error["code"] != "too_many_errors"]
    estimate["served"] = None if served is None else served[:_MOST_MODELS]
    estimate["unknown_model"] = any(group["code"] == "model_not_found" for group in estimate["error_groups"])
    return {"check": estimate, "refusal": None}


async def _served_models(visit: Visit) -> list[str] | None:
    """The names of the models that upstreams offer; None if that is not known now."""
    try:
        found = await visit.api.get("/v1/models")
    except ApiRefusalError:
        return None
    return [model["id"] for model in found["data"]]


async def check(visit: Visit) -> Response:
    """What the page asks for while it is open: the check, and the buttons that follow from it."""
    file_id = visit.query("file") or ""
    file = await visit.api.get(path_of("v1", "files", file_id))
    document = {"file": _named(file), **await _check(visit, file_id, is_wanted=True)}
    if wants_json(visit.request):
        return JsonResponse(document)
    blocks = [bytes(visit.fragment(_TEMPLATE, name, document).body) for name in ("check", "create")]
    return HTMLResponse(
        b'<div id="check-answer">%b</div><div id="create-answer">%b</div>' % (blocks[0], blocks[1])
    )


# --- upload and create ---------------------------------------------------------------------------------


async def upload(visit: Visit) -> Response:
    """Stores the file of a form as the API does; the body is not held in memory."""
    status, content = await _answered(visit)
    if status >= 400:
        try:
            problem = str(msgspec.json.decode(content)["error"]["message"])
        except (msgspec.DecodeError, KeyError, TypeError):
            problem = "The file was not stored. Please try again."
        if wants_json(visit.request):
            return JsonResponse({"problem": problem}, status_code=status)
        page = await _choice(visit, problem, status)
        return respond(visit.request, page, area=NEW_BATCH.name, shows_content=visit.shows_content)
    file_id = str(msgspec.json.decode(content)["id"])
    if wants_json(visit.request):
        return JsonResponse({"file_id": file_id})
    return visit.redirect("ui/new", {"file": file_id})


async def _answered(visit: Visit) -> tuple[int, bytes]:
    """Status and body of the API's answer to the request of the browser."""
    status, chunks = 500, list[bytes]()

    async def send(message: Message) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
        else:
            chunks.append(message.get("body", b""))

    request = visit.request
    await visit.api.forward("/v1/files")(request.scope, request.receive, send)
    if not chunks:
        raise ClientDisconnect
    return status, b"".join(chunks)


async def create(visit: Visit) -> Response:
    form = await visit.form()
    fields = fields_of(form)
    file_id = form.get("file")
    try:
        wanted = batch_of(fields, file_id)
        headers = {"idempotency-key": _key(form.get("key") or visit.context.random(16).hex(), wanted)}
        batch = await visit.api.post("/v1/batches", wanted, headers=headers)
    except (WrongFieldError, ApiRefusalError) as error:
        status = error.status if isinstance(error, ApiRefusalError) else 400
        page = await _chosen(
            visit, file_id, is_checked=False, fields=fields, problem=error.message, status=status
        )
        return respond(visit.request, page, area=NEW_BATCH.name, shows_content=visit.shows_content)
    if fields["start"] == "wait":
        return visit.redirect(f"ui/batches/{batch['id']}/canary")
    return visit.redirect(f"ui/batches/{batch['id']}", notice=f"Batch {batch['id']} was created.")


def _key(page_key: str, wanted: dict[str, Any]) -> str:
    """A form that is sent twice makes one batch; one that was changed in between makes another."""
    return sha256(page_key.encode() + msgspec.json.encode(wanted)).hexdigest()


async def discard(visit: Visit) -> Response:
    """Deletes a file of which no batch shall be made."""
    form = await visit.form()
    await visit.api.delete(path_of("v1", "files", form.get("file")))
    return visit.redirect("ui/new", notice="The file was deleted.")


routes = (
    screen("/ui/new", show, area=NEW_BATCH),
    action("/ui/new/check", check, methods=("GET",)),
    action("/ui/new/upload", upload),
    action("/ui/new/create", create),
    action("/ui/new/discard", discard),
    *canary_answers.routes,
)
