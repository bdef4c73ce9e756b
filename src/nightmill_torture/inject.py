"""Injects faults into members, links, upstreams, Postgres and Ray, and ends each of them.

A frozen process is thawed and a cut link is healed, whatever happens meanwhile. `plan` decides which fault is
injected when, `accounts` what it may cost.
"""

import asyncio
import signal
from collections.abc import Awaitable, Callable, Sequence
from random import Random
from time import monotonic
from typing import Final

from nightmill_torture.fleet import Fleet
from nightmill_torture.link import Link
from nightmill_torture.member import Member
from nightmill_torture.plan import Injection, Manner, Part, Plan, seeded
from nightmill_torture.processes import send_signal
from nightmill_torture.proof import Proof
from nightmill_torture.ray_cluster import RayCluster
from nightmill_torture.repeats import RepeatBound

RESTART_FAILED: Final = "restarts of Postgres that failed"

_PIECE_DELAY_S = 0.3
_FIND_S = 120.0
_LOOK_S = 0.02
_RESTART_S = 120.0


class Injector:
    """Injects the faults of a plan into a fleet.

    Args:
        bound: gets the times in which no answer becomes durable.
    """

    def __init__(self, plan: Plan, fleet: Fleet, bound: RepeatBound, proof: Proof) -> None:
        self._restart_store = plan.restart_store
        self._is_supervised = plan.is_fleet
        self._fleet = fleet
        self._bound = bound
        self._proof = proof
        self._random: Random = seeded(plan, "victims")
        if plan.restart_store is not None:
            proof.check(RESTART_FAILED)

    async def inject(self, injection: Injection, victims: Sequence[Member]) -> bool:
        """Returns once the target can be hit again; False when there was no process to hit."""
        fault, for_s = injection.fault, injection.for_s
        stores = [link for member in victims if (link := member.links.store) is not None]
        blobs = [link for member in victims if (link := member.links.blobs) is not None]
        match fault.action:
            case "failpoint":
                return not victims[0].is_alive
            case "kill" if fault.scope == "ray":
                await self._kill_on_ray(fault.part, for_s)
            case "freeze" if fault.scope == "ray":
                await self._freeze_node(for_s)
            case "kill":
                return await self._kill(victims[0], fault.part, for_s)
            case "freeze":
                return await self._freeze(victims[0], fault.part, for_s)
            case "cut upstream":
                await _cut([self._fleet.upstreams[injection.target]], Manner.REFUSED, for_s)
            case "cut store":
                await _cut(stores, injection.manner, for_s)
            case "restart store":
                await self._restart(stores, injection)
            case "cut blobs":
                self._add_stall(victims, for_s)
                await _cut(blobs, injection.manner, for_s)
            case "slow blobs":
                self._add_stall(victims, for_s)
                await _slow_down(blobs, for_s)
        return True

    async def _kill(self, member: Member, part: Part, down_s: float) -> bool:
        async def kill() -> bool:
            if part == "worker" and self._fleet.ray is not None:
                return bool(await self._signal_worker(self._fleet.ray, signal.SIGKILL))
            return await member.kill(part, down_s=down_s)

        return await self._until_hit(member, kill)

    async def _freeze(self, member: Member, part: Part, for_s: float) -> bool:
        frozen: list[int] = []

        async def freeze() -> bool:
            if part == "worker" and self._fleet.ray is not None:
                frozen.extend(await self._signal_worker(self._fleet.ray, signal.SIGSTOP))
            else:
                frozen.extend(member.freeze(part))
            return bool(frozen)

        try:
            is_hit = await self._until_hit(member, freeze)
            await asyncio.sleep(for_s if is_hit else 0)
        finally:
            send_signal(signal.SIGCONT, frozen)
        return is_hit

    async def _until_hit(self, member: Member, hit: Callable[[], Awaitable[bool]]) -> bool:
        """The process may be about to start. A member that is down without supervision stays down."""
        give_up_at = monotonic() + _FIND_S
        while not await hit():
            if monotonic() > give_up_at or not (self._is_supervised or member.is_alive):
                return False
            await asyncio.sleep(_LOOK_S)
        return True

    async def _signal_worker(self, ray: RayCluster, number: signal.Signals) -> list[int]:
        return await ray.signal_worker(number, random=self._random)

    async def _kill_on_ray(self, part: Part, down_s: float) -> None:
        ray = self._fleet.ray
        assert ray is not None
        node = self._random.choice(ray.nodes)
        await ray.send("kill-head" if part == "head" else f"kill {node}")
        await asyncio.sleep(down_s)
        await (ray.start() if part == "head" else ray.send(f"add {node}"))

    async def _freeze_node(self, for_s: float) -> None:
        ray = self._fleet.ray
        assert ray is not None
        node = self._random.choice(ray.nodes)
        await ray.send(f"freeze {node}")
        try:
            await asyncio.sleep(for_s)
        finally:
            await ray.send(f"thaw {node}")

    def _add_stall(self, members: Sequence[Member], for_s: float) -> None:
        for member in members:
            self._bound.add_stall(member.name, monotonic(), monotonic() + for_s)

    async def _restart(self, links: Sequence[Link], injection: Injection) -> None:
        """Runs the user's command; without a command it cuts all connections to Postgres."""
        if self._restart_store is None:
            await _cut(links, injection.manner, injection.for_s)
            return
        restart = await asyncio.create_subprocess_shell(self._restart_store, start_new_session=True)
        try:
            async with asyncio.timeout(_RESTART_S):
                code = await restart.wait()
        finally:
            if restart.returncode is None:
                restart.kill()
        if code != 0:
            self._proof.breach(RESTART_FAILED, f"the command ended with {code}")


async def _cut(links: Sequence[Link], manner: Manner, for_s: float) -> None:
    for link in links:
        link.cut(manner)
    try:
        await asyncio.sleep(for_s)
    finally:
        for link in links:
            link.heal()


async def _slow_down(links: Sequence[Link], for_s: float) -> None:
    for link in links:
        link.delay_s = _PIECE_DELAY_S
    try:
        await asyncio.sleep(for_s)
    finally:
        for link in links:
            link.delay_s = 0.0
