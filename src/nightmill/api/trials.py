"""A trial under `/nightmill/v1`: one request to an upstream, sent as a line of a batch, and its answer.

The request is checked, routed and changed (aliases, priority) as a line is, and the answer counts as one. A
trial is sent once, beside the concurrency limit and the health of the upstream; few run at a time. Nothing of
it is stored.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, cast

import msgspec
from fastapi import APIRouter, Depends, Request
from pydantic import AfterValidator, Field

from nightmill.api.auth import Caller, admin_required, caller_of
from nightmill.api.body import read_json
from nightmill.api.context import ApiContext, Context
from nightmill.api.envelope import JsonResponse, echo
from nightmill.api.wire import OwnModel, one_of
from nightmill.core.api_key import Scope
from nightmill.core.batch import ENDPOINTS, LineError
from nightmill.core.nearest_name import nearest_name
from nightmill.core.outcome import Answered, Broken, Outcome, TimedOut, TooLong
from nightmill.core.output_line import answered
from nightmill.core.request_line import RequestLine
from nightmill.core.routing import Routes
from nightmill.core.sent_body import with_model, with_priority
from nightmill.core.upstream_setting import UpstreamState
from nightmill.errors import ConflictError, NotFoundError, RequestError, SetupError, TooManyError
from nightmill.roles.offered_models import offered_models
from nightmill.settings.effective import EffectiveUpstream, effective_of
from nightmill.upstream import open_upstream
from nightmill.upstream.advice import advice_on, advice_on_silence
from nightmill.upstream.target import target_of
from nightmill.validation import InputRules, LineChecker

AT_ONCE: Final = 4
_RETRY_S: Final = 5
_USUAL_TIMEOUT_S: Final = 120.0
_LONGEST_TIMEOUT_S: Final = 600.0
_MOST_ANSWER_BYTES: Final = 8 << 20
_NO_ID: Final = b'""'
_KEY_HEADERS: Final = frozenset({"authorization", "api-key", "x-api-key"})

router = APIRouter(prefix="/nightmill/v1", include_in_schema=False)


class _TrialRequest(OwnModel):
    endpoint: Annotated[str, AfterValidator(one_of("endpoints", ENDPOINTS))]
    request: dict[str, Any]
    """The body of the request, as in a line."""
    upstream: str | None = None
    """The upstream to ask, which needs an admin key; without it, one that a line would be sent to."""
    timeout_s: Annotated[float, Field(gt=0, le=_LONGEST_TIMEOUT_S)] = _USUAL_TIMEOUT_S


@dataclass(frozen=True, slots=True)
class _Sent:
    """A request on its way."""

    upstream: EffectiveUpstream
    endpoint: str
    model: str | None
    sent_model: str | None
    body: bytes


@router.post("/trials")
async def send_trial(
    request: Request, context: Context, caller: Annotated[Caller, Depends(caller_of)]
) -> JsonResponse:
    """Sends one request, and waits for its answer."""
    limits = context.settings.limits
    fields = await read_json(
        request, _TrialRequest, settings=context.settings.api, allowed={"endpoints": limits.endpoints}
    )
    if fields.upstream is not None and caller.scope is not Scope.ADMIN:
        raise admin_required()
    body = msgspec.json.encode(fields.request)
    _check_line(fields.endpoint, body, nesting=limits.nesting)
    turns = turns_of(request)
    if turns.locked():
        message = f"{AT_ONCE} trials are in progress. Please try again in {_RETRY_S}s."
        raise TooManyError(message, retry_after_s=_RETRY_S)
    async with turns:
        sent = await _routed(context, fields.endpoint, body, name=fields.upstream)
        started_at = time.monotonic()
        outcome = await _outcome(sent, timeout_s=fields.timeout_s)
        duration_s = time.monotonic() - started_at
    names_host = caller.scope is Scope.ADMIN
    return JsonResponse(_document(sent, outcome, duration_s=duration_s, names_host=names_host))


def turns_of(request: Request) -> asyncio.Semaphore:
    """Few trials of one API process run at once: no limit of the upstream's concurrency holds them."""
    return cast("asyncio.Semaphore", request.app.state.trial_turns)


def _check_line(endpoint: str, body: bytes, *, nesting: int) -> None:
    """Raises RequestError for a body that validation would refuse in a line of a batch."""
    line = b'{"custom_id":"trial","method":"POST","url":%b,"body":%b}' % (msgspec.json.encode(endpoint), body)
    found = LineChecker(InputRules(endpoint=endpoint, nesting=nesting)).check(line, 1)
    if isinstance(found, LineError):
        param = found.param and found.param.replace("body", "request", 1)
        raise RequestError(found.message, param=param, code=found.code)


async def _routed(context: ApiContext, endpoint: str, body: bytes, *, name: str | None) -> _Sent:
    """The request as the upstream is to get it.

    Raises:
        NotFoundError: there is no upstream of that name, or none that serves the model.
        ConflictError: the upstreams that serve the model are paused.
    """
    effective = effective_of(context.settings, await context.store.upstreams.settings())
    offered = await offered_models(context.store, context.settings)
    model = RequestLine(_NO_ID, body).model
    if name is not None:
        upstream = _named(effective, name)
    else:
        places = Routes(offered.offers).serving(model, endpoint) if effective else ()
        upstream = _first_active([effective[place] for place in places], model, offered.known)
    sent_model = None
    if model is not None:
        sent_model = upstream.settings.aliases.get(model, model)
        body = body if sent_model == model else with_model(body, sent_model)
    if upstream.settings.priority is not None:
        body = with_priority(body, upstream.settings.priority)
    return _Sent(upstream, endpoint, model, sent_model, body)


def _named(effective: Sequence[EffectiveUpstream], name: str) -> EffectiveUpstream:
    for upstream in effective:
        if upstream.name == name:
            return upstream
    near = nearest_name(name, [upstream.name for upstream in effective])
    hint = f" Did you mean '{near}'?" if near else ""
    message = f"There is no upstream '{echo(name)}'.{hint}"
    raise NotFoundError(message, param="upstream", code="upstream_not_found")


def _first_active(
    serving: Sequence[EffectiveUpstream], model: str | None, known: Sequence[str]
) -> EffectiveUpstream:
    for upstream in serving:
        if upstream.state is UpstreamState.ACTIVE:
            return upstream
    if serving:
        message = (
            f"The upstream '{serving[0].name}' is {serving[0].state}: resume it, or name it in 'upstream'."
        )
        raise ConflictError(message, param="upstream")
    if model is None:
        message = "No upstream takes requests without a model at this endpoint."
        raise NotFoundError(message, param="request.model", code="model_not_found")
    near = nearest_name(model, known)
    hint = f" Did you mean '{near}'?" if near else ""
    message = f"No upstream serves the model '{echo(model)}' at this endpoint.{hint}"
    raise NotFoundError(message, param="request.model", code="model_not_found")


async def _outcome(sent: _Sent, *, timeout_s: float) -> Outcome:
    """Raises ConflictError when the settings of the upstream can't be used by this server."""
    settings = sent.upstream.settings
    settings = settings.model_copy(
        update={"max_answer_bytes": min(settings.max_answer_bytes, _MOST_ANSWER_BYTES)}
    )
    if settings.url is None or settings.url == "auto":
        raise ConflictError("This server does not know the URL of the upstream.", param="upstream")
    try:
        upstream = open_upstream(settings, url=settings.url)
    except SetupError as error:
        raise ConflictError(f"The upstream can't be asked: {error}.", param="upstream") from None
    try:
        return await upstream.send(sent.endpoint, sent.body, timeout_s=timeout_s)
    finally:
        await upstream.close()


def _document(sent: _Sent, outcome: Outcome, *, duration_s: float, names_host: bool) -> dict[str, Any]:
    """The answer to the client.

    Args:
        names_host: whether the client may know where the upstream is.
    """
    status = request_id = usage = error = body = None
    if isinstance(outcome, Answered):
        row = answered(
            b"",
            RequestLine(_NO_ID, b"{}"),
            endpoint=sent.endpoint,
            status=outcome.status,
            request_id=_NO_ID,
            body=outcome.body,
        )
        status, request_id, body = outcome.status, outcome.request_id, _shown(outcome.body)
        usage = None if row.usage is None else msgspec.structs.asdict(row.usage)
        if row.error is not None:
            advice = advice_on(row.error, has_key=_has_key(sent.upstream))
            error = {"code": row.error.code, "message": advice}
    else:
        error = {"code": None, "message": _silence(sent, outcome, names_host=names_host)}
    return {
        "object": "nightmill.trial",
        "upstream": sent.upstream.name,
        "endpoint": sent.endpoint,
        "model": sent.model,
        "sent_model": sent.sent_model,
        "is_ok": error is None,
        "status": status,
        "request_id": request_id,
        "duration_s": round(duration_s, 4),
        "usage": usage,
        "error": error,
        "body": body,
    }


def _silence(sent: _Sent, outcome: Outcome, *, names_host: bool) -> str:
    if names_host:
        settings = sent.upstream.settings
        target = target_of(settings.url or "", settings)
        return advice_on_silence(outcome, host=target.host, port=target.port)
    match outcome:
        case Broken() | TimedOut() | TooLong():
            return outcome.message
        case _:
            return "The upstream can't be reached."


def _has_key(upstream: EffectiveUpstream) -> bool:
    settings = upstream.settings
    return settings.api_key is not None or any(name.lower() in _KEY_HEADERS for name in settings.headers)


def _shown(body: bytes) -> Any:
    """The JSON of an answer; its text if it is none."""
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return body.decode("utf-8", "replace")
