"""The dry run: what a batch of an uploaded file would need, without a batch and without a sent line."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from dataclasses import asdict
from typing import Annotated, Any, cast

from fastapi import APIRouter, Request
from pydantic import AfterValidator
from starlette.requests import ClientDisconnect

from nightmill.api.auth import CurrentProject
from nightmill.api.body import read_json
from nightmill.api.context import ApiContext, Context
from nightmill.api.envelope import JsonResponse, echo
from nightmill.api.wire import OwnModel, id_that_begins_with, is_id_shaped, one_of
from nightmill.core.batch import ENDPOINTS
from nightmill.core.estimate import TokenCount, estimates_by_model
from nightmill.core.file import File, Purpose
from nightmill.core.request_line import endpoint_in
from nightmill.core.upstream_setting import UpstreamState
from nightmill.errors import NotFoundError, RequestError, UnavailableError
from nightmill.ids import FileId
from nightmill.roles.estimate import counted_by, document_of
from nightmill.roles.intake import input_rules
from nightmill.roles.offered_models import offered_models, read_reports
from nightmill.settings.effective import effective_of
from nightmill.validation import DuplicatePass, ErrorGroups, InputSurvey, InputValidator

router = APIRouter(prefix="/nightmill/v1", include_in_schema=False)

DEADLINE_S = 120.0
AT_ONCE = 2
_CHUNK_BYTES = 1 << 20
_LINES_ASKED = 100
_USUAL_ENDPOINT = "/v1/chat/completions"


class _EstimateRequest(OwnModel):
    input_file_id: Annotated[str, AfterValidator(id_that_begins_with("file"))]
    endpoint: Annotated[str, AfterValidator(one_of("endpoints", ENDPOINTS))] | None = None
    """Without it, the one that most of the first lines name."""


@router.post("/estimates")
async def create_estimate(request: Request, context: Context, project: CurrentProject) -> JsonResponse:
    """Ends at the deadline, and early when the connection is reset.

    A client that closes only its sending side still waits for the response, so a plain close ends nothing.
    """
    limits = context.settings.limits
    fields = await read_json(
        request, _EstimateRequest, settings=context.settings.api, allowed={"endpoints": limits.endpoints}
    )
    file_id = FileId(fields.input_file_id)
    file = await context.store.files.get(project, file_id) if is_id_shaped(file_id) else None
    if file is None:
        raise NotFoundError(f"No such File object: {echo(file_id)}", param="input_file_id")
    if file.purpose is not Purpose.BATCH:
        message = f"The file {file.id} has purpose '{file.purpose}'. Upload it with purpose 'batch'."
        raise RequestError(message, param="input_file_id", code="invalid_value")
    try:
        async with asyncio.timeout(DEADLINE_S), turns_of(request):
            endpoint = fields.endpoint or await _endpoint_in(context, file)
            document = await _estimate(request, context, file, endpoint)
    except TimeoutError:
        message = f"The estimate took longer than {DEADLINE_S:g} seconds; split the file."
        raise UnavailableError(message) from None
    return JsonResponse({"object": "estimate", "input_file_id": file.id, **document})


def turns_of(request: Request) -> asyncio.Semaphore:
    """Estimates of one API process take turns: each reads a whole file."""
    return cast("asyncio.Semaphore", request.app.state.estimate_turns)


async def _endpoint_in(context: ApiContext, file: File) -> str:
    """The endpoint that most of the first lines name; that of chats if they name none that is allowed."""
    beginning = await context.blobs.read(file.blob_key, 0, _CHUNK_BYTES)
    lines = beginning.split(b"\n")[:_LINES_ASKED]
    named = Counter(filter(context.settings.limits.endpoints.__contains__, map(endpoint_in, lines)))
    return next((str(endpoint) for endpoint, _ in named.most_common(1)), _USUAL_ENDPOINT)


async def _estimate(request: Request, context: ApiContext, file: File, endpoint: str) -> dict[str, Any]:
    offered = await offered_models(context.store, context.settings)
    rules = input_rules(context.settings.limits, endpoint, models=offered.required(endpoint))
    groups = ErrorGroups()
    validator, survey = InputValidator(rules, groups), InputSurvey()

    def surveyed(by: InputValidator | DuplicatePass, into: InputSurvey, chunk: bytes) -> None:
        into.take(chunk, by.take(chunk))

    async for chunk in _chunks(request, context, file, validator):
        await asyncio.to_thread(surveyed, validator, survey, chunk)
    survey.take(b"\n", await asyncio.to_thread(validator.finish))
    found = await asyncio.to_thread(survey.finish)
    duplicate_pass = await asyncio.to_thread(validator.duplicate_pass)
    if duplicate_pass is not None:
        groups.clear()
        survey = InputSurvey()
        async for chunk in _chunks(request, context, file, duplicate_pass):
            await asyncio.to_thread(surveyed, duplicate_pass, survey, chunk)
        survey.take(b"\n", await asyncio.to_thread(duplicate_pass.finish))
        found = await asyncio.to_thread(survey.finish)
    result = validator.result(duplicate_pass)
    counted = await _counted(context, survey.sample, endpoint)
    required = offered.required(endpoint)
    parts = estimates_by_model(
        found,
        counted,
        prices=context.settings.token_prices,
        served={model: model in required for model in found.by_model if required},
        lines_per_s=await _rates(context),
    )
    return {
        "endpoint": endpoint,
        **document_of(result, found, counted, parts),
        "error_groups": [asdict(group) for group in groups.groups],
    }


async def _chunks(
    request: Request, context: ApiContext, file: File, validator: InputValidator | DuplicatePass
) -> AsyncIterator[bytes]:
    """The file, as far as `validator` needs it.

    Raises:
        ClientDisconnect: the client has reset the connection.
    """
    offset = 0
    while not validator.is_over and (chunk := await context.blobs.read(file.blob_key, offset, _CHUNK_BYTES)):
        offset += len(chunk)
        yield chunk
        if await request.is_disconnected():
            raise ClientDisconnect


async def _rates(context: ApiContext) -> Mapping[str | None, float]:
    """Lines answered each second at present, by model."""
    rates: dict[str | None, float] = {}
    for reports in (await read_reports(context.store)).values():
        for report in reports:
            for entry in report.per_model:
                rates[entry.model] = rates.get(entry.model, 0.0) + entry.answered_per_s
    return rates


async def _counted(context: ApiContext, sample: list[bytes], endpoint: str) -> TokenCount:
    """What the first active upstream that has a tokenizer counts in the sample."""
    for upstream in effective_of(context.settings, await context.store.upstreams.settings()):
        settings = upstream.settings
        is_for_endpoint = not settings.endpoints or endpoint in settings.endpoints
        if upstream.state is UpstreamState.ACTIVE and settings.url and is_for_endpoint:
            counted = await counted_by(settings, sample, url=settings.url)
            if counted.lines:
                return counted
    return TokenCount()
