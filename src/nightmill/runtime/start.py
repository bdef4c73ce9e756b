"""What a process looks at before it starts to work on the store.

Promise: a store of this machine's own is brought up to date; one that others share is only looked at, and
what is wrong with it is one line that says what to do. Not its duty: waiting for a store that is away.
"""

import time

from nightmill.runtime.clocks import steady_clock
from nightmill.settings import Settings
from nightmill.store import Store, open_store
from nightmill.store.migrate import migrate
from nightmill.store.readiness import make_ready


def open_stored(settings: Settings) -> Store:
    return open_store(settings.store_url, clock=steady_clock, busy_timeout_s=settings.store_timeout_s)


async def prepare(settings: Settings) -> None:
    """Raises:
    SetupError: the store is not fit to start on.
    UnavailableError: it can't be reached.
    """
    if settings.is_embedded:
        await migrate(settings.store_url)
    else:
        await make_ready(settings.store_url, clock=time.time, busy_timeout_s=settings.store_timeout_s)
