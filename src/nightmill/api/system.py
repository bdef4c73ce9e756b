"""The server itself under `/nightmill/v1`, for admin keys: versions, store, disk, settings and legal holds.

Secrets are never shown: not in the settings, and not in the addresses of the store and the blobs.
"""

import asyncio
import platform
import shutil
import socket
import time
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Depends, Request

from nightmill.api.auth import require_admin
from nightmill.api.context import Context
from nightmill.api.envelope import JsonResponse
from nightmill.api.health import VERSION
from nightmill.api.readiness import problems_of
from nightmill.settings.origins import without_credentials
from nightmill.store.database_url import is_postgres, parse_url, sqlite_path

router = APIRouter(prefix="/nightmill/v1", include_in_schema=False, dependencies=[Depends(require_admin)])


@router.get("/system")
async def show_system(request: Request, context: Context) -> JsonResponse:
    """Versions, store and disk of the server that answers, and what keeps lines from being answered."""
    settings = context.settings
    running_s = time.monotonic() - request.app.state.started_at
    about, problems = await asyncio.gather(
        context.store.about.read(), problems_of(context, running_s=running_s)
    )
    blobs = settings.blobs.url
    return JsonResponse(
        {
            "object": "system",
            "version": VERSION,
            "python": platform.python_version(),
            "platform": platform.platform(terse=True),
            "host": socket.gethostname(),
            "started_at": int(context.clock() - running_s),
            "problems": problems,
            "store": {
                "kind": about.database,
                "version": about.database_version,
                "schema": about.schema_version,
                "place": _place_of(settings.store_url),
                "size_bytes": about.size_bytes,
            },
            "blobs": {
                "kind": "folder" if blobs is None else "object store",
                "place": str(settings.folder) if blobs is None else without_credentials(blobs),
            },
            "disk": None if blobs is not None else await asyncio.to_thread(_disk, str(settings.folder)),
            "retention": {
                "free_bytes": settings.retention.free_bytes,
                "rows_kept_s": settings.retention.rows_kept_s,
                "input_ttl_s": settings.limits.input_ttl_s,
                "output_ttl_s": settings.limits.output_ttl_s,
                "audit_ttl_s": settings.audit.ttl_s,
            },
        }
    )


@router.get("/settings")
async def list_settings(context: Context) -> JsonResponse:
    """Every setting of the server that answers, with where its value comes from. Secrets are hidden."""
    data: list[dict[str, Any]] = [asdict(it) for it in context.settings_in_effect()]
    return JsonResponse({"object": "list", "data": data})


@router.get("/holds")
async def list_holds(context: Context) -> JsonResponse:
    """The projects, files and batches under legal hold, oldest first."""
    holds = await context.store.holds.list()
    return JsonResponse({"object": "list", "data": [asdict(hold) for hold in holds]})


def _place_of(store_url: str) -> str:
    """The file of a SQLite database, or the address of a Postgres without its password."""
    url = parse_url(store_url)
    return without_credentials(store_url) if is_postgres(url) else str(sqlite_path(url))


def _disk(folder: str) -> dict[str, Any] | None:
    try:
        total_bytes, _, free_bytes = shutil.disk_usage(folder)
    except OSError:
        return None
    return {"folder": folder, "total_bytes": total_bytes, "free_bytes": free_bytes}
