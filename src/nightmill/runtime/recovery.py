"""What `nightmill serve` sees to before any of its processes works on the store.

Promise: afterwards nobody holds a lease any more (whoever held the folder before is dead: the lock proves
it), and nothing half-written is left. Needs no API, so that the roles begin while the API still loads. Not
its duty: the lock and the children (`serve`).
"""

import ipaddress
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from nightmill import telemetry
from nightmill.errors import SetupError
from nightmill.failpoints import failpoint
from nightmill.roles.loop import Notifier
from nightmill.runtime.components import Components, open_components
from nightmill.runtime.programs import release_leases_on_exit
from nightmill.runtime.start import prepare
from nightmill.runtime.storage import check_storage
from nightmill.runtime.supervisor import Supervisor
from nightmill.settings import Settings
from nightmill.store import Store


@asynccontextmanager
async def recovered(
    settings: Settings, *, supervisor: Supervisor, notifier: Notifier
) -> AsyncGenerator[Components]:
    """The components, ready for the children to begin.

    Raises:
        SetupError: the store, the bucket or the address is not fit to start on.
    """
    await prepare(settings)
    await check_storage(settings)
    async with open_components(settings, emit=telemetry.log, notifier=notifier) as components:
        await _check_keys(settings, components.store)
        failpoint("serve.before_recovery")
        if settings.is_embedded:  # over a store that others share, leases lapse and writers may be alive
            await components.store.leases.release_all()
            await components.blobs.sweep_unfinished()
        failpoint("serve.recovered")
        supervisor.on_exit = release_leases_on_exit(components.store, supervisor)
        yield components


async def _check_keys(settings: Settings, store: Store) -> None:
    if _is_loopback(settings.api.host) and settings.keyless_on_loopback:
        return
    if await store.api_keys.any_exist():
        return
    message = (
        f"refusing to listen on {settings.api.host} without API keys; make one with "
        f"'nightmill keys create NAME --folder {settings.folder}', or listen on 127.0.0.1"
    )
    raise SetupError(message)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
