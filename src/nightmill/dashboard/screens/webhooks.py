"""The screens "Webhooks": the endpoints of the project, what was delivered to each, and sending it again."""

from typing import Any, Final

from starlette.responses import Response

from nightmill.dashboard.calls import ApiRefusalError, path_of
from nightmill.dashboard.navigation import WEBHOOKS
from nightmill.dashboard.pages import Screen, respond
from nightmill.dashboard.visit import Form, Visit, action, screen

_ENDPOINTS: Final = "/v1/webhook_endpoints"
_OWN_ENDPOINTS: Final = "/nightmill/v1/webhook_endpoints"
_STATES: Final = ("pending", "delivered", "failed")
_PAGE: Final = 25


async def show(visit: Visit) -> Screen:
    return await _list(visit)


async def _list(
    visit: Visit, *, wrong: str | None = None, given: dict[str, Any] | None = None, status: int = 200
) -> Screen:
    types: list[str] = (await visit.api.get("/v1/webhook_event_types"))["data"]
    page = await visit.api.get(_OWN_ENDPOINTS, {"limit": 100, "after": visit.query("after")})
    endpoints: list[dict[str, Any]] = page["data"]
    return Screen(
        template="webhooks.html",
        title="Webhooks",
        status=status,
        live=("rows",),
        every_s=5.0,
        document={
            "endpoints": [{**it, "last_delivery": await _last_delivery(visit, it["id"])} for it in endpoints],
            "next_after": page["last_id"] if page["has_more"] else None,
            "event_types": types,
            "wrong": wrong,
            "given": given or {"name": "", "url": "", "event_types": types},
        },
    )


async def _last_delivery(visit: Visit, endpoint_id: str) -> dict[str, Any] | None:
    path = path_of("nightmill", "v1", "webhook_endpoints", endpoint_id, "deliveries")
    found: list[dict[str, Any]] = (await visit.api.get(path, {"limit": 1}))["data"]
    return found[0] if found else None


async def create(visit: Visit) -> Response:
    """Shows the signing secret in the response."""
    form = await visit.form()
    fields = _fields_of(form)
    try:
        made = await visit.api.post(_ENDPOINTS, fields)
    except ApiRefusalError as refused:
        shown = await _list(visit, wrong=refused.message, given=fields, status=refused.status)
        return respond(visit.request, shown, area=WEBHOOKS.name, shows_content=False)
    return _with_secret(visit, made, did="is made")


async def show_endpoint(visit: Visit) -> Screen:
    return await _endpoint(visit)


async def _endpoint(
    visit: Visit, *, wrong: str | None = None, given: dict[str, Any] | None = None, status: int = 200
) -> Screen:
    endpoint_id = visit.path("id")
    endpoint = await visit.api.get(path_of("nightmill", "v1", "webhook_endpoints", endpoint_id))
    state = visit.query("state")
    state = state if state in _STATES else None
    page = await visit.api.get(
        path_of("nightmill", "v1", "webhook_endpoints", endpoint_id, "deliveries"),
        {"limit": _PAGE, "state": state, "after": visit.query("after")},
    )
    return Screen(
        template="webhook.html",
        title=f"Webhook {endpoint['name']}",
        status=status,
        live=("rows",),
        every_s=3.0,
        document={
            "endpoint": endpoint,
            "deliveries": page["data"],
            "next_after": page["last_id"] if page["has_more"] else None,
            "state": state,
            "states": list(_STATES),
            "event_types": (await visit.api.get("/v1/webhook_event_types"))["data"],
            "wrong": wrong,
            "given": given or {name: endpoint[name] for name in ("name", "url", "event_types")},
        },
    )


async def change(visit: Visit) -> Response:
    fields = _fields_of(await visit.form())
    try:
        await visit.api.post(path_of("v1", "webhook_endpoints", visit.path("id")), fields)
    except ApiRefusalError as refused:
        shown = await _endpoint(visit, wrong=refused.message, given=fields, status=refused.status)
        return respond(visit.request, shown, area=WEBHOOKS.name, shows_content=False)
    return _back(visit, "The webhook is changed.")


async def test(visit: Visit) -> Response:
    """Sends a sample and says what came back."""
    event_type = (await visit.form()).get("event_type")
    try:
        path = path_of("v1", "webhook_endpoints", visit.path("id"), "test")
        sent = await visit.api.post(path, {"event_type": event_type})
    except ApiRefusalError as refused:
        return _back(visit, refused.message)
    return _back(visit, f"A sample of {event_type} was answered with {sent['status_code']}.")


async def rotate(visit: Visit) -> Response:
    keeps_old = (await visit.form()).get("keeps_old") == "1"
    path = path_of("v1", "webhook_endpoints", visit.path("id"), "rotate_secret")
    rotated = await visit.api.post(path, {"keep_old_secret_active_for_24_hours": keeps_old})
    return _with_secret(visit, rotated, did="has a new secret")


async def disable(visit: Visit) -> Response:
    await visit.api.post(path_of("nightmill", "v1", "webhook_endpoints", visit.path("id"), "disable"))
    return _back(visit, "The webhook gets no more events.")


async def enable(visit: Visit) -> Response:
    await visit.api.post(path_of("nightmill", "v1", "webhook_endpoints", visit.path("id"), "enable"))
    return _back(visit, "The webhook gets events again.")


async def delete(visit: Visit) -> Response:
    await visit.api.delete(path_of("v1", "webhook_endpoints", visit.path("id")))
    return visit.redirect("ui/webhooks", notice="The webhook is deleted. What waited for it is not sent.")


async def resend(visit: Visit) -> Response:
    delivery_id = (await visit.form()).get("delivery_id")
    try:
        await visit.api.post(path_of("nightmill", "v1", "webhook_deliveries", delivery_id, "resend"))
    except ApiRefusalError as refused:
        return _back(visit, refused.message)
    return _back(visit, "The event is being sent again.")


def _fields_of(form: Form) -> dict[str, Any]:
    return {"name": form.get("name"), "url": form.get("url"), "event_types": form.all("event_types")}


def _back(visit: Visit, notice: str) -> Response:
    return visit.redirect(path_of("ui", "webhooks", visit.path("id")).lstrip("/"), notice=notice)


def _with_secret(visit: Visit, endpoint: dict[str, Any], *, did: str) -> Response:
    secret = endpoint.pop("signing_secret")
    shown = Screen(
        template="webhook_secret.html",
        title=f"The webhook {did}",
        document={"endpoint": endpoint, "secret": secret, "did": did},
    )
    return respond(visit.request, shown, area=WEBHOOKS.name, shows_content=False)


routes = (
    screen("/ui/webhooks", show, area=WEBHOOKS),
    action("/ui/webhooks", create, area=WEBHOOKS),
    screen("/ui/webhooks/{id}", show_endpoint, area=WEBHOOKS),
    action("/ui/webhooks/{id}", change, area=WEBHOOKS),
    action("/ui/webhooks/{id}/test", test, area=WEBHOOKS),
    action("/ui/webhooks/{id}/rotate", rotate, area=WEBHOOKS),
    action("/ui/webhooks/{id}/disable", disable, area=WEBHOOKS),
    action("/ui/webhooks/{id}/enable", enable, area=WEBHOOKS),
    action("/ui/webhooks/{id}/delete", delete, area=WEBHOOKS),
    action("/ui/webhooks/{id}/resend", resend, area=WEBHOOKS),
)
