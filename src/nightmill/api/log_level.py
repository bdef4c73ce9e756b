"""The level of the log under `/nightmill/v1/log_level`, changed while the server runs. Needs an admin key.

The change reaches every process of the server's machine, and is over when the server restarts.
"""

from typing import Literal

from fastapi import APIRouter, Depends, Request

from nightmill.api.auth import require_admin
from nightmill.api.body import read_json
from nightmill.api.context import Context
from nightmill.api.envelope import JsonResponse
from nightmill.api.wire import OwnModel

router = APIRouter(prefix="/nightmill/v1", include_in_schema=False, dependencies=[Depends(require_admin)])


class _LogLevelRequest(OwnModel):
    level: Literal["debug", "info", "warning", "error"]


@router.get("/log_level")
async def retrieve_log_level(context: Context) -> JsonResponse:
    """The lowest level that is logged."""
    return JsonResponse({"level": context.log_level()})


@router.post("/log_level")
async def set_log_level(request: Request, context: Context) -> JsonResponse:
    """Logs lines of this level and above from now on, until the server restarts."""
    fields = await read_json(request, _LogLevelRequest, settings=context.settings.api)
    context.set_log_level(fields.level)
    return JsonResponse({"level": context.log_level()})
