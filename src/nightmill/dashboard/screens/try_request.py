"""The screen "Try": one request to a model, written by hand or taken from a line, and its answer."""

import json
from collections.abc import Mapping
from typing import Any, Final, cast

from starlette.responses import Response

from nightmill.api.envelope import JsonResponse
from nightmill.dashboard.calls import ApiRefusalError, path_of
from nightmill.dashboard.conversation import conversation
from nightmill.dashboard.file_beginning import MOST_BYTES, body_of, lines_from, object_in
from nightmill.dashboard.formats import pretty_json
from nightmill.dashboard.navigation import TRY
from nightmill.dashboard.pages import Screen, respond, wants_json
from nightmill.dashboard.shown_text import shown, shown_cut
from nightmill.dashboard.visit import Visit, action, screen

_TEMPLATE: Final = "try_request.html"
_TITLE: Final = "Try"
_MOST_JSON: Final = 60_000
_QUESTION: Final = "Say in one sentence what a batch is."
PRESETS: Final[Mapping[str, Mapping[str, Any]]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": _QUESTION}], "max_tokens": 200},
    "/v1/completions": {"prompt": "A batch is", "max_tokens": 100},
    "/v1/embeddings": {"input": "A batch is many requests in one file."},
    "/v1/responses": {"input": _QUESTION, "max_output_tokens": 200},
    "/v1/moderations": {"input": "I will find you a better batch."},
}


async def show(visit: Visit) -> Screen:
    allowed = visit.context.settings.limits.endpoints
    endpoint = visit.query("endpoint") or ""
    source, body, problem = await _source(visit)
    if source is not None and source["endpoint"] in allowed:
        endpoint = source["endpoint"]
    if endpoint not in allowed:
        endpoint = next((name for name in PRESETS if name in allowed), allowed[0])
    fields = {
        "endpoint": endpoint,
        "upstream": visit.query("upstream") or "",
        "model": visit.query("model") or "",
        "request": pretty_json(PRESETS.get(endpoint, {})) if body is None else body,
        "timeout_s": "120",
    }
    return await _screen(visit, fields, source=source, problem=problem)


async def _screen(
    visit: Visit,
    fields: Mapping[str, str],
    *,
    source: Mapping[str, Any] | None = None,
    problem: str | None = None,
    result: Mapping[str, Any] | None = None,
    status: int = 200,
) -> Screen:
    allowed = visit.context.settings.limits.endpoints
    document = {
        "fields": dict(fields),
        "endpoints": list(allowed),
        "presets": [name for name in PRESETS if name in allowed],
        "upstreams": await _upstreams(visit),
        "source": source,
        "problem": problem,
        "result": result,
    }
    return Screen(template=_TEMPLATE, title=_TITLE, document=document, status=status)


async def _upstreams(visit: Visit) -> list[str]:
    """The names that an admin can choose from."""
    if not visit.session.is_admin:
        return []
    found = await visit.api.get("/nightmill/v1/upstreams")
    return [upstream["name"] for upstream in found["data"]]


async def _source(visit: Visit) -> tuple[dict[str, Any] | None, str | None, str | None]:
    """Which line the request is taken from, its body as text, and why it can't be taken."""
    batch_id, file_id, number = visit.query("batch"), visit.query("file"), visit.query("line") or "1"
    if batch_id is None and file_id is None:
        return None, None, None
    if not visit.shows_content:
        return None, None, "This server does not show prompts, so no line can be taken over."
    if not (number.isascii() and number.isdecimal() and len(number) < 12):
        return None, None, "A line is named by its number, from 1."
    source: dict[str, Any] = {"batch": batch_id, "file": file_id, "line": int(number), "endpoint": None}
    try:
        request = await _request_line(visit, source)
    except ApiRefusalError as error:
        return source, None, error.message
    if (body := body_of(request)) is None:
        return (
            source,
            None,
            f"Line {number} has no body that can be taken over: it is no request, or too long.",
        )
    return source | {"endpoint": (request or {}).get("url")}, pretty_json(body), None


async def _request_line(visit: Visit, source: Mapping[str, Any]) -> dict[str, Any] | None:
    """The request line that is taken over; None if it can't be read. Raises ApiRefusalError."""
    number = source["line"]
    if source["file"] is not None:
        lines = await lines_from(visit.api, source["file"], number, most=1)
        return lines[0]["request"] if lines else None
    line = path_of("nightmill", "v1", "batches", source["batch"], "lines", str(number))
    found = await visit.api.get(line, {"max_bytes": MOST_BYTES})
    return object_in(found["request"]["text"].strip())


# --- the trial -----------------------------------------------------------------------------------------


async def send(visit: Visit) -> Response:
    form = await visit.form()
    fields = {name: form.get(name) for name in ("endpoint", "upstream", "model", "request", "timeout_s")}
    problem, result, status = None, None, 200
    try:
        wanted = _wanted(fields)
        answer = await visit.api.post("/nightmill/v1/trials", wanted)
        result = _result(answer, wanted["request"], shows_content=visit.shows_content)
    except ValueError as error:
        problem, status = str(error), 400
    except ApiRefusalError as error:
        problem, status = error.message, error.status
    if wants_json(visit.request):
        return JsonResponse({"problem": problem, "result": result}, status_code=status)
    if visit.request.headers.get("x-fragment") is not None:
        return visit.fragment(_TEMPLATE, "answer", {"problem": problem, "result": result})
    if not visit.shows_content:
        fields["request"] = pretty_json(PRESETS.get(fields["endpoint"], {}))
    page = await _screen(visit, fields, problem=problem, result=result, status=status)
    return respond(visit.request, page, area=TRY.name, shows_content=visit.shows_content)


def _wanted(fields: Mapping[str, str]) -> dict[str, Any]:
    """The body of the call. Raises ValueError with a sentence for the person."""
    try:
        request: object = json.loads(fields["request"])
    except json.JSONDecodeError as error:
        message = f"The request is not valid JSON: line {error.lineno}, column {error.colno}: {error.msg}."
        raise ValueError(message) from None
    except RecursionError:
        raise ValueError("The request is nested too deeply.") from None
    if not isinstance(request, dict):
        raise ValueError("The request must be a JSON object, as the body of a line.")
    body = cast("dict[str, Any]", request)
    if fields["model"]:
        body = {**body, "model": fields["model"]}
    wanted: dict[str, Any] = {"endpoint": fields["endpoint"], "request": body}
    if fields["upstream"]:
        wanted["upstream"] = fields["upstream"]
    if fields["timeout_s"]:
        try:
            wanted["timeout_s"] = float(fields["timeout_s"])
        except ValueError:
            raise ValueError("Write the longest time as a number of seconds.") from None
    return wanted


def _result(answer: Mapping[str, Any], request: Any, *, shows_content: bool) -> dict[str, Any]:
    """What is shown of an answer."""
    usage, duration_s = answer["usage"], answer["duration_s"]
    output_tokens = None if usage is None else usage["output_tokens"]
    result = {name: value for name, value in answer.items() if name != "body"}
    result["tokens_per_s"] = output_tokens / duration_s if output_tokens and duration_s else None
    if not shows_content:
        return result | {"messages": None, "json": None}
    body = answer["body"]
    text = shown(body) if isinstance(body, str) else pretty_json(body) if body is not None else ""
    cut, left_out = shown_cut(text, _MOST_JSON)
    return result | {
        "messages": conversation(answer["endpoint"], request=request, answer=body),
        "json": cut,
        "left_out": left_out,
    }


async def models(visit: Visit) -> Response:
    """The names that the field for the model proposes; none while an upstream does not answer."""
    try:
        found = await visit.api.get("/v1/models")
    except ApiRefusalError:
        return JsonResponse({"models": []})
    return JsonResponse({"models": [model["id"] for model in found["data"]]})


routes = (
    screen("/ui/try", show, area=TRY),
    action("/ui/try", send, area=TRY),
    action("/ui/try/models", models, methods=("GET",), area=TRY),
)
