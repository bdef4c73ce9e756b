"""What the routes work with, handed in whole by `assembly`.

Routes ask for it as `context: Context`.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, cast

from fastapi import Depends, Request

from nightmill.blobs import PiecedBlobs
from nightmill.settings import Settings
from nightmill.store import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiContext:
    """Everything a route may touch.

    Args:
        notify: wakes the roles; called after a batch was created or cancelled, never instead of the store.
        trouble: why lines aren't being answered just now, or None.
        upstream_models: the upstream's own answer to GET /models, or None when it gave none.
        clock: Unix seconds.
        random: so many random bytes.
    """

    store: Store
    blobs: PiecedBlobs
    settings: Settings
    notify: Callable[[], None]
    upstream_models: Callable[[], Awaitable[bytes | None]]
    clock: Callable[[], float]
    random: Callable[[int], bytes]
    trouble: Callable[[], str | None] = lambda: None


async def context_of(request: Request) -> ApiContext:
    return cast("ApiContext", request.app.state.context)


Context = Annotated[ApiContext, Depends(context_of)]
