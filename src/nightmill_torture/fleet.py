"""The members of a run, each behind links of its own. One machine is a fleet of one member without links.

The upstreams are links to the emulator, so that its one record has the requests to all of them. A link that
is cut is an upstream that was killed: connections break, and new ones are refused.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

from nightmill.runtime.supervisor import free_port
from nightmill_torture.link import Ends, Link
from nightmill_torture.member import Member, clean_environment, serve_command, work_command
from nightmill_torture.plan import UPSTREAMS, Injection, Plan, host_name, server_name
from nightmill_torture.ray_cluster import RayCluster, ray_cluster
from nightmill_torture.storage import Storage


@dataclass(frozen=True, slots=True)
class Fleet:
    """`port` leads to the API: to the only server, or to a load balancer. `upstreams` are links by name."""

    servers: Sequence[Member]
    hosts: Sequence[Member]
    ray: RayCluster | None
    upstreams: Mapping[str, Link]
    port: int

    @property
    def members(self) -> list[Member]:
        return [*self.servers, *self.hosts]

    def victims(self, injection: Injection) -> list[Member]:
        """The members that the fault meets, or whose requests may suffer."""
        fault = injection.fault
        if fault.scope in ("store", "blobs"):
            return self.members
        if fault.scope == "upstream":
            return list(self.hosts or self.servers)
        if fault.scope == "ray" or (self.ray is not None and fault.part == "worker"):
            return list(self.hosts)  # a worker on Ray may belong to any of them
        return [member for member in self.members if member.name == injection.target]


@asynccontextmanager
async def open_fleet(
    plan: Plan, storage: Storage, *, upstream: str, environment: Mapping[str, str]
) -> AsyncGenerator[Fleet]:
    """Members that are not started yet. Every process ends with the context."""
    outside = clean_environment(environment)
    workers = plan.workers_per_member

    async def member(name: str, command: Callable[[int], list[str]], *, port: int = 0) -> Member:
        links = await storage.open_links(stack)
        made = Member(
            command(port),
            environment={**outside, **storage.environment, **ray_environment, **sending, **links.environment},
            log=plan.folder / f"{name}.log",
            name=name,
            links=links,
            port=port,
            upstreams=[f"UPSTREAMS__{upstream.upper()}" for upstream in UPSTREAMS],
        )
        stack.push_async_callback(made.close)
        return made

    def serve(port: int) -> list[str]:
        return serve_command(port, workers=0 if plan.is_fleet else workers)

    def work(_: int) -> list[str]:
        return work_command(workers=workers)

    async with AsyncExitStack() as stack:
        target = urlsplit(upstream)

        async def connect(_: str) -> Ends:
            return await asyncio.open_connection(target.hostname, target.port)

        upstreams = {name: await stack.enter_async_context(Link(connect)) for name in UPSTREAMS}
        sending = _upstream_environment(plan, upstreams)
        ray, ray_environment = None, dict[str, str]()
        if plan.engine == "ray":
            ray = await stack.enter_async_context(
                ray_cluster(plan.folder, nodes=plan.nodes, cpus=plan.workers_per_member, environment=outside)
            )
            ray_environment = _ray_environment(plan, ray)
        ports = [free_port() for _ in range(plan.servers)]
        servers = [await member(server_name(place), serve, port=port) for place, port in enumerate(ports)]
        hosts = [await member(host_name(place), work) for place in range(plan.worker_hosts)]
        port = ports[0]
        if len(ports) > 1:
            port = (await stack.enter_async_context(Link(_Balancer(ports).connect))).port
        yield Fleet(servers, hosts, ray, upstreams, port)


def _upstream_environment(plan: Plan, links: Mapping[str, Link]) -> dict[str, str]:
    """Settings of the upstreams."""
    found: dict[str, str] = {}
    for name, link in links.items():
        start = f"NIGHTMILL_UPSTREAMS__{name.upper()}__"
        found[start + "URL"] = f"http://127.0.0.1:{link.port}/v1"
        found[start + "MODELS"] = ",".join(UPSTREAMS[name])
        found[start + "CONCURRENCY"] = str(plan.upstream_concurrency)
    return found


def _ray_environment(plan: Plan, ray: RayCluster) -> dict[str, str]:
    """Settings of a worker host that starts its workers on the cluster and holds the other roles itself."""
    return {
        "NIGHTMILL_ENGINE": "ray",
        "NIGHTMILL_RAY__ADDRESS": ray.address,
        "NIGHTMILL_RAY__MIN_WORKERS": str(plan.workers_per_member),
        "NIGHTMILL_RAY__MAX_WORKERS": str(plan.workers_per_member),
        "NIGHTMILL_RAY__TELL_AUTOSCALER": "false",
    }


class _Balancer:
    """A load balancer without health checks: the next server that takes the connection."""

    def __init__(self, ports: Sequence[int]) -> None:
        self._ports = ports
        self._turn = 0

    async def connect(self, _: str) -> Ends:
        for _port in self._ports:
            self._turn += 1
            with suppress(OSError):
                return await asyncio.open_connection("127.0.0.1", self._ports[self._turn % len(self._ports)])
        raise ConnectionError("no API server accepts connections")
