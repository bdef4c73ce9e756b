"""The upstreams of a worker while it runs: what a change in the store does."""

import asyncio
from typing import Any

from nightmill.core.clocks import Clocks
from nightmill.core.upstream_setting import UpstreamState
from nightmill.ids import WorkerId
from nightmill.roles.upstream_manager import UpstreamManager
from nightmill.settings import load
from nightmill.telemetry import UpstreamChanged
from nightmill.upstream.registry import UpstreamRegistry
from tests.roles.conftest import Mill


class Recorder:
    """Takes the upstreams as a worker does, and has nothing in flight."""

    def __init__(self) -> None:
        self.taken: asyncio.Queue[list[bool]] = asyncio.Queue()

    def set_upstreams(self, upstreams: UpstreamRegistry) -> None:
        self.taken.put_nowait([upstream.may_start for upstream in upstreams])

    def in_flight_at(self, _client: object) -> int:
        return 0

    def note_gauges(self, _client: object, _gauges: object) -> None:
        return

    def report_on(self, _client: object) -> None:
        return


async def test_each_change_of_an_upstream_is_announced_once(folder_mill: Mill, monkeypatch):
    monkeypatch.setattr("nightmill.roles.upstream_manager._LOOK_S", 0.01)
    mill = folder_mill
    events: list[Any] = []
    manager = UpstreamManager(
        load(flags={"upstream": {"url": "http://127.0.0.1:9/v1"}}, environment={}),
        store=mill.store,
        worker_id=WorkerId("worker_1"),
        emit=events.append,
        clocks=Clocks(wall=mill.clock, monotonic=asyncio.get_running_loop().time, random=lambda: 0.5),
    )
    sender = Recorder()
    async with manager.opened(), asyncio.TaskGroup() as group:
        running = group.create_task(manager.run(sender))
        revision = None
        for state in (UpstreamState.PAUSED, UpstreamState.ACTIVE):
            stored = await mill.store.upstreams.put("default", document=None, state=state, revision=revision)
            assert stored is not None
            revision = stored.revision
            async with asyncio.timeout(30):
                while await sender.taken.get() != [state.may_start]:
                    pass
        running.cancel()
    assert events == [UpstreamChanged("default", "paused", 1), UpstreamChanged("default", "active", 2)]
