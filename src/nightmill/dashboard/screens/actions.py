"""Actions on batches: what would happen, the order itself, and the bar that follows it and can undo it.

An action is reviewed first, with a count. The confirmed order is stored by the API, which does it; the page
that follows shows the bar of the last action (`action_notice`) with its countdown, its progress and its undo.
"""

from typing import Any, Final
from urllib.parse import urlencode

from starlette.responses import HTMLResponse, Response

from nightmill.dashboard import action_words as words
from nightmill.dashboard.action_forms import ActionForm
from nightmill.dashboard.action_notice import forget_action, remember_action
from nightmill.dashboard.calls import ApiRefusalError, path_of
from nightmill.dashboard.navigation import BATCHES
from nightmill.dashboard.pages import Screen, respond
from nightmill.dashboard.screens.sign_in import own_page
from nightmill.dashboard.visit import Form, Visit, action, screen
from nightmill.errors import RequestError

_ACTIONS: Final = "/nightmill/v1/batches/actions"
_LONGEST_QUERY: Final = 4_000
_KEY_BYTES: Final = 16
_HOUR_S: Final = 3_600
_TROUBLED: Final = ("refused", "not_found", "unchanged")


async def review(visit: Visit) -> Screen:
    """What the action of the address would do."""
    return await _review(visit, ActionForm.of(Form(visit.request.query_params.multi_items())))


async def review_form(visit: Visit) -> Response:
    """The same for a form, which may name more batches than fit into an address."""
    form = ActionForm.of(await visit.form())
    if len(urlencode(form.pairs())) <= _LONGEST_QUERY:
        return visit.redirect(f"ui/actions/review?{urlencode(form.pairs())}")
    shown = await _review(visit, form)
    return respond(visit.request, shown, area=BATCHES.name, shows_content=visit.shows_content)


async def _review(visit: Visit, form: ActionForm) -> Screen:
    body = form.order(is_admin=visit.session.is_admin)
    preview = await visit.api.post(_ACTIONS, {**body, "delay_s": form.delay_s, "dry_run": True})
    total = preview["total"]
    document: dict[str, Any] = {
        "preview": preview,
        "title": f"{words.button(form.action, total)}?",
        "button": words.button(form.action, total),
        "left_alone": words.left_alone(preview),
        "consequences": words.consequences(preview),
        "is_dangerous": form.action == "cancel",
        "fields": [list(pair) for pair in form.pairs()],
        # A form that is sent twice orders the action once.
        "order_key": visit.context.random(_KEY_BYTES).hex(),
        "back": own_page(form.next),
    }
    return Screen(template="action_review.html", title=document["title"], document=document)


async def order(visit: Visit) -> Response:
    """Orders the action and goes back to the page that it came from."""
    fields = await visit.form()
    form = ActionForm.of(fields)
    body = {**form.order(is_admin=visit.session.is_admin), "delay_s": form.delay_s}
    if key := fields.get("order_key"):
        body["order_key"] = key
    ordered = await visit.api.post(_ACTIONS, body)
    response = visit.redirect(own_page(form.next))
    remember_action(response, ordered["id"], words.sentence(ordered))
    return response


async def show_all(visit: Visit) -> Screen:
    """The actions that were ordered."""
    found = await visit.api.get(_ACTIONS, {"limit": 50, "after": visit.query("after")})
    return Screen(
        template="actions.html",
        title="Actions",
        document={
            "actions": [_with_words(one) for one in found["data"]],
            "next": found["last_id"] if found["has_more"] else None,
        },
        live=("rows",),
    )


async def show(visit: Visit) -> Screen:
    """One action, with the batches that it did not change."""
    found = _with_words(await visit.api.get(_path(visit)))
    made = found["action"] == "retry" or found["state"] in ("undoing", "undone")
    wanted = (*_TROUBLED, "changed") if made else _TROUBLED
    items = await visit.api.get(f"{_path(visit)}/batches", {"result": wanted, "limit": 100})
    return Screen(
        template="action.html",
        title=words.button(found["action"], found["total"]),
        document={"action": found, "batches": items["data"], "has_more": items["has_more"]},
        live=("rows",),
        every_s=1.0 if found["is_open"] else 5.0,
    )


async def bar(visit: Visit) -> Response:
    """The bar of the last action as it is now: a fragment, asked for each second while the action goes on."""
    try:
        found = _with_words(await visit.api.get(_path(visit)))
    except ApiRefusalError:
        response: Response = HTMLResponse("", headers={"HX-Reswap": "outerHTML"})
        forget_action(response)
        return response
    if found["action"] == "retry" and found["state"] == "done" and found["changed"] == 1:
        items = await visit.api.get(f"{_path(visit)}/batches", {"result": ["changed"], "limit": 1})
        found["retry_id"] = next((item["retry_id"] for item in items["data"]), None)
    back = own_page(visit.query("next") or "./")
    response = visit.fragment("action_fragment.html", "bar", {"action": found, "back": back})
    if found["is_open"] or found["undo_label"]:
        remember_action(response, found["id"], found["text"])
    else:
        forget_action(response)  # it is said once; the next page is without it
    if not found["is_open"]:
        # In place of the old element: an element that is morphed would go on asking.
        response.headers["HX-Reswap"] = "outerHTML"
    return response


async def undo(visit: Visit) -> Response:
    undone = await visit.api.delete(_path(visit))
    return await _back_with_bar(visit, undone)


async def start(visit: Visit) -> Response:
    return await _back_with_bar(visit, await visit.api.post(f"{_path(visit)}/start"))


async def dismiss(visit: Visit) -> Response:
    """Closes the bar."""
    form = await visit.form()
    response = visit.redirect(own_page(form.get("next")))
    forget_action(response)
    return response


async def steer(visit: Visit) -> Response:
    """Priority, deadline and concurrency of one batch."""
    batch_id = visit.path("batch_id")
    form = await visit.form()
    values: dict[str, Any] = {
        "priority": int(_number(form, "priority") or 0),
        "concurrency": None if (most := _number(form, "concurrency")) is None else int(most),
    }
    if (hours := _number(form, "deadline_in_h")) is not None:
        values["deadline_in_s"] = max(1, round(hours * _HOUR_S))
    path = path_of("nightmill", "v1", "batches", batch_id)
    found = await visit.api.get(path)
    await visit.api_of(found["project"]).post(path, values)
    return visit.redirect(path_of("ui", "batches", batch_id)[1:], notice="The batch was changed.")


async def _back_with_bar(visit: Visit, found: dict[str, Any]) -> Response:
    form = await visit.form()
    response = visit.redirect(own_page(form.get("next")))
    remember_action(response, found["id"], words.sentence(found))
    return response


def _with_words(found: dict[str, Any]) -> dict[str, Any]:
    return {
        **found,
        "text": words.sentence(found),
        "is_open": found["state"] in ("pending", "running", "undoing"),
        "undo_label": words.UNDO_LABELS.get(found["undo"] or ""),
        "retry_id": None,
    }


def _path(visit: Visit) -> str:
    return path_of("nightmill", "v1", "batches", "actions", visit.path("action_id"))


def _number(form: Form, name: str) -> float | None:
    text = form.get(name)
    try:
        return float(text) if text else None
    except ValueError:
        message = f"'{name}' is not a number: '{text[:40]}'."
        raise RequestError(message, param=name, code="invalid_value") from None


routes = (
    screen("/ui/actions/review", review, area=BATCHES),
    action("/ui/actions/review", review_form),
    action("/ui/actions/dismiss", dismiss),
    action("/ui/actions", order),
    screen("/ui/actions", show_all, area=BATCHES),
    action("/ui/actions/{action_id}/bar", bar, methods=("GET",)),
    action("/ui/actions/{action_id}/undo", undo),
    action("/ui/actions/{action_id}/start", start),
    screen("/ui/actions/{action_id}", show, area=BATCHES),
    action("/ui/batches/{batch_id}/steer", steer),
)
