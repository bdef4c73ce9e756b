"""`ApiContext`: the storage, settings and clocks that routes use.

`runtime` makes it. A route declares the parameter `context: Context`.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, cast

from fastapi import Depends, Request

from nightmill.blobs import PiecedBlobs
from nightmill.parts import Parts
from nightmill.settings import Settings
from nightmill.settings.origins import EffectiveSetting
from nightmill.store import Store
from nightmill.telemetry import Emit, UpstreamHeld
from nightmill.webhooks.sender import Resolve, addresses_of


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiContext:
    """The dependencies of the routes.

    Args:
        parts: the answers of running batches; no route writes one.
        notify: wakes the roles; called after the store write that creates or cancels a batch.
        trouble: why lines are not answered at the moment, or None.
        held: the models of upstreams that are held at the moment, as the workers of this machine report them.
        upstream_models: the upstream's response to GET /models, or None without a response.
        clock: Unix seconds.
        random: returns the given number of random bytes.
        resolve: the addresses of the host of a webhook.
        is_stopping: whether the server is closing its connections, so that long responses end.
        emit: takes the events of batches that the API creates and cancels.
        log_level: the level of the log.
        settings_in_effect: every setting with the source of its value.
        set_log_level: changes the level in all processes of this machine.
    """

    store: Store
    blobs: PiecedBlobs
    parts: Parts
    settings: Settings
    notify: Callable[[], None]
    upstream_models: Callable[[], Awaitable[bytes | None]]
    clock: Callable[[], float]
    random: Callable[[int], bytes]
    trouble: Callable[[], str | None] = lambda: None
    held: Callable[[], Sequence[UpstreamHeld]] = tuple
    resolve: Resolve = addresses_of
    is_stopping: Callable[[], bool] = lambda: False
    emit: Emit = lambda _: None
    log_level: Callable[[], str] = lambda: "info"
    set_log_level: Callable[[str], None] = lambda _: None
    settings_in_effect: Callable[[], Sequence[EffectiveSetting]] = tuple


async def context_of(request: Request) -> ApiContext:
    return cast("ApiContext", request.app.state.context)


Context = Annotated[ApiContext, Depends(context_of)]
