"""Endpoints of webhooks (docs/openai-behaviour.md 7.4), their deliveries under `/nightmill/v1`, and re-sends.

A key sees the endpoints of its own project. The routes send only tests; the courier delivers events.
"""

from typing import Annotated, cast

from fastapi import APIRouter, Depends, Query, Request

from nightmill.api import webhook_wire as wire
from nightmill.api.auth import CurrentActor, CurrentProject
from nightmill.api.body import read_json
from nightmill.api.context import ApiContext, Context
from nightmill.api.envelope import JsonResponse, echo
from nightmill.api.violations import unsupported_value, wrong_prefix
from nightmill.api.wire import is_id_shaped
from nightmill.core.webhook import (
    SENT_EVENT_TYPES,
    DeliveryState,
    WebhookEndpoint,
    event_id_of,
    payload_of,
)
from nightmill.core.webhook_url import RefusedUrlError
from nightmill.errors import NotFoundError, RequestError
from nightmill.ids import BatchId, ProjectId, new_delivery_id, new_endpoint_id
from nightmill.webhooks.sender import WebhookSender
from nightmill.webhooks.signing import new_secret, signed_headers

_SAMPLE_BATCH_ID = BatchId("batch_sample")
_After = Annotated[str | None, Query(description="The id of the last item of the previous page.")]
_Limit = Annotated[int, Query(ge=1, le=100, description="The largest number of items to return.")]

router = APIRouter(include_in_schema=False)
own_router = APIRouter(prefix="/nightmill/v1", include_in_schema=False)


async def sender_of(request: Request) -> WebhookSender:
    return cast("WebhookSender", request.app.state.webhook_sender)


_Sender = Annotated[WebhookSender, Depends(sender_of)]


@router.get("/webhook_event_types")
async def list_event_types() -> JsonResponse:
    return JsonResponse({"object": "list", "data": list(SENT_EVENT_TYPES)})


@router.post("/webhook_endpoints")
async def create_endpoint(
    request: Request, context: Context, project: CurrentProject, by: CurrentActor, sender: _Sender
) -> JsonResponse:
    fields = await read_json(request, wire.CreateWebhookEndpointRequest, settings=context.settings.api)
    await _check_url(sender, fields.url)
    now = int(context.clock())
    endpoint = WebhookEndpoint(
        id=new_endpoint_id(context.random(16)),
        project_id=project,
        name=fields.name,
        url=fields.url,
        event_types=tuple(dict.fromkeys(fields.event_types)),
        created_at=now,
        updated_at=now,
        signing_secret=new_secret(context.random),
    )
    most = context.settings.webhooks.endpoints_per_project
    await context.store.webhook_endpoints.add(endpoint, most=most, by=by)
    return JsonResponse(wire.endpoint_on_wire(endpoint, with_secret=True))


@router.get("/webhook_endpoints")
async def list_endpoints(
    context: Context, project: CurrentProject, after: _After = None, limit: _Limit = 20
) -> JsonResponse:
    if after and not is_id_shaped(after):
        raise _not_found(after, param="after")
    page = await context.store.webhook_endpoints.list(project, after=after or None, limit=limit)
    data = [wire.endpoint_on_wire(endpoint) for endpoint in page.items]
    return _page(data, has_more=page.has_more)


@router.get("/webhook_endpoints/{endpoint_id}")
async def retrieve_endpoint(endpoint_id: str, context: Context, project: CurrentProject) -> JsonResponse:
    return JsonResponse(wire.endpoint_on_wire(await _endpoint(context, project, endpoint_id)))


@router.post("/webhook_endpoints/{endpoint_id}")
async def update_endpoint(
    endpoint_id: str,
    request: Request,
    context: Context,
    project: CurrentProject,
    by: CurrentActor,
    sender: _Sender,
) -> JsonResponse:
    fields = await read_json(request, wire.UpdateWebhookEndpointRequest, settings=context.settings.api)
    await _endpoint(context, project, endpoint_id)
    if fields.url is not None:
        await _check_url(sender, fields.url)
    types = fields.event_types
    changed = await context.store.webhook_endpoints.change(
        project,
        endpoint_id,
        name=fields.name,
        url=fields.url,
        event_types=None if types is None else tuple(dict.fromkeys(types)),
        by=by,
    )
    return JsonResponse(wire.endpoint_on_wire(_found(changed, endpoint_id)))


@router.delete("/webhook_endpoints/{endpoint_id}")
async def delete_endpoint(
    endpoint_id: str, context: Context, project: CurrentProject, by: CurrentActor
) -> JsonResponse:
    await _endpoint(context, project, endpoint_id)
    if not await context.store.webhook_endpoints.delete(project, endpoint_id, by=by):
        raise _not_found(endpoint_id)
    return JsonResponse({"id": endpoint_id, "object": "webhook_endpoint.deleted", "deleted": True})


@router.post("/webhook_endpoints/{endpoint_id}/rotate_secret")
async def rotate_secret(
    endpoint_id: str, request: Request, context: Context, project: CurrentProject, by: CurrentActor
) -> JsonResponse:
    fields = await read_json(request, wire.RotateSecretRequest, settings=context.settings.api)
    await _endpoint(context, project, endpoint_id)
    rotated = await context.store.webhook_endpoints.rotate(
        project,
        endpoint_id,
        new_secret(context.random),
        keeps_old=fields.keep_old_secret_active_for_24_hours,
        by=by,
    )
    return JsonResponse(wire.endpoint_on_wire(_found(rotated, endpoint_id), with_secret=True))


@router.post("/webhook_endpoints/{endpoint_id}/test")
async def test_endpoint(
    endpoint_id: str, request: Request, context: Context, project: CurrentProject, sender: _Sender
) -> JsonResponse:
    """Sends one sample at once. It is not repeated, and not in the log of deliveries."""
    fields = await read_json(request, wire.TestWebhookEndpointRequest, settings=context.settings.api)
    endpoint = await _endpoint(context, project, endpoint_id)
    now = context.clock()
    payload = payload_of(
        event_id_of(_SAMPLE_BATCH_ID, fields.event_type),
        fields.event_type,
        created_at=int(now),
        subject_id=_sample_id(fields.event_type),
    )
    headers = signed_headers(
        payload, delivery_id=new_delivery_id(context.random(16)), now=now, secrets=endpoint.secrets_at(now)
    )
    attempt = await sender.post(endpoint.url, payload, headers, now=now)
    if attempt.status_code is None:
        raise RequestError(f"The test of '{endpoint_id}' got no answer: {attempt.error}.", param="url")
    return JsonResponse(
        {
            "object": "webhook_endpoint.test",
            "webhook_endpoint_id": endpoint_id,
            "event_type": fields.event_type,
            "status_code": attempt.status_code,
            "success": True,
        }
    )


@own_router.get("/webhook_endpoints/{endpoint_id}/deliveries")
async def list_deliveries(
    endpoint_id: str,
    context: Context,
    project: CurrentProject,
    state: Annotated[str | None, Query(description="Only deliveries in this state.")] = None,
    after: _After = None,
    limit: _Limit = 20,
) -> JsonResponse:
    if state is not None and state not in tuple(DeliveryState):
        raise unsupported_value(state, tuple(DeliveryState), param="state")
    await _endpoint(context, project, endpoint_id)
    page = await context.store.webhook_deliveries.list(
        endpoint_id,
        state=None if state is None else DeliveryState(state),
        after=after or None,
        limit=limit,
    )
    return _page([wire.delivery_on_wire(delivery) for delivery in page.items], has_more=page.has_more)


@own_router.get("/webhook_endpoints")
async def list_own_endpoints(
    context: Context, project: CurrentProject, after: _After = None, limit: _Limit = 20
) -> JsonResponse:
    """As `/v1/webhook_endpoints`, with `disabled_at`."""
    if after and not is_id_shaped(after):
        raise _not_found(after, param="after")
    page = await context.store.webhook_endpoints.list(project, after=after or None, limit=limit)
    return _page([wire.own_endpoint_on_wire(endpoint) for endpoint in page.items], has_more=page.has_more)


@own_router.get("/webhook_endpoints/{endpoint_id}")
async def retrieve_own_endpoint(endpoint_id: str, context: Context, project: CurrentProject) -> JsonResponse:
    """As `/v1/webhook_endpoints/{id}`, with `disabled_at`."""
    return JsonResponse(wire.own_endpoint_on_wire(await _endpoint(context, project, endpoint_id)))


@own_router.post("/webhook_endpoints/{endpoint_id}/disable")
async def disable_endpoint(
    endpoint_id: str, context: Context, project: CurrentProject, by: CurrentActor
) -> JsonResponse:
    """Does not read the body. What waits for its next attempt has failed then; it can be sent again."""
    await _endpoint(context, project, endpoint_id)
    disabled = await context.store.webhook_endpoints.disable(project, endpoint_id, by=by)
    return JsonResponse(wire.own_endpoint_on_wire(_found(disabled, endpoint_id)))


@own_router.post("/webhook_endpoints/{endpoint_id}/enable")
async def enable_endpoint(
    endpoint_id: str, context: Context, project: CurrentProject, by: CurrentActor
) -> JsonResponse:
    """Does not read the body. Events of the time before are not sent."""
    await _endpoint(context, project, endpoint_id)
    enabled = await context.store.webhook_endpoints.enable(project, endpoint_id, by=by)
    return JsonResponse(wire.own_endpoint_on_wire(_found(enabled, endpoint_id)))


@own_router.post("/webhook_deliveries/{delivery_id}/resend")
async def resend_delivery(delivery_id: str, context: Context, project: CurrentProject) -> JsonResponse:
    """Does not read the body. The delivery keeps its id, so that a receiver can drop it as a repetition."""
    if not delivery_id.startswith("wh_"):
        raise wrong_prefix(delivery_id, "wh_", param="delivery_id")
    is_shaped = is_id_shaped(delivery_id)
    delivery = await context.store.webhook_deliveries.resend(project, delivery_id) if is_shaped else None
    if delivery is None:
        raise NotFoundError(f"No webhook delivery found with id '{echo(delivery_id)}'.")
    context.notify()
    return JsonResponse(wire.delivery_on_wire(delivery))


async def _check_url(sender: WebhookSender, url: str) -> None:
    try:
        await sender.check(url)
    except RefusedUrlError as refused:
        raise RequestError(f"Invalid 'url': {refused}.", param="url", code="invalid_value") from None


async def _endpoint(context: ApiContext, project: ProjectId, endpoint_id: str) -> WebhookEndpoint:
    if not is_id_shaped(endpoint_id):
        raise _not_found(endpoint_id)
    return _found(await context.store.webhook_endpoints.get(project, endpoint_id), endpoint_id)


def _found(endpoint: WebhookEndpoint | None, endpoint_id: str) -> WebhookEndpoint:
    if endpoint is None:
        raise _not_found(endpoint_id)
    return endpoint


def _not_found(endpoint_id: str, *, param: str | None = None) -> NotFoundError:
    return NotFoundError(f"No webhook endpoint found with id '{echo(endpoint_id)}'.", param=param)


def _sample_id(event_type: str) -> str:
    return f"{event_type.partition('.')[0]}_sample"


def _page(data: list[dict[str, object]], *, has_more: bool) -> JsonResponse:
    ends = (
        {"first_id": data[0]["id"], "last_id": data[-1]["id"]}
        if data
        else {"first_id": None, "last_id": None}
    )
    return JsonResponse({"object": "list", "data": data, **ends, "has_more": has_more})
