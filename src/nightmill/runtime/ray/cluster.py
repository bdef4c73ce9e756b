"""The operations of one launcher on a Ray cluster: connect; list, start, poll, call and kill actors; request
resources.

Actors are named, detached and of one namespace. Each operation is idempotent, any number of launchers may use
the cluster at once, and a launcher can read everything it needs again from the cluster. How many actors there
should be is decided in `plan`.

Every operation blocks and must be called from one thread that lives as long as the process: a cluster that
Ray starts for us ends with the thread that started it. Any error of Ray becomes `ClusterLost`.
"""

import contextlib
import importlib
import logging
import os
import socket
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast
from urllib.parse import urlsplit

from nightmill.core.loopback import is_loopback
from nightmill.errors import NightmillError, SetupError
from nightmill.runtime.ray.leased_actor import ActorReport, Command
from nightmill.settings import RaySettings

_OBJECT_STORE_BYTES: Final = 100 << 20
"""Nightmill stores no objects in Ray; Ray's own choice would be a third of the machine's memory."""
_CONNECT_S: Final = 2.0
_REQUEST_S: Final = 15.0
_CLIENT_PORT: Final = 10_001
_QUIET: Final = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "0",
}
# Ray's name for "this machine is the whole cluster, so stay on loopback"; it works on Linux too.
_STAY_ON_LOOPBACK: Final = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}


class ClusterLost(NightmillError):  # noqa: N818 - named after the event
    """The cluster does not answer, or Ray failed in a way that only a new connection repairs."""


@dataclass(frozen=True, slots=True)
class Dead:
    """The actor of that name is dead. `reason` is Ray's, in one line."""

    reason: str


Answer = ActorReport | Dead | None
"""None: the actor has not answered yet, or is being restarted."""


class Cluster:
    """A connection to a cluster. Call `connect` first."""

    def __init__(self, settings: RaySettings) -> None:
        self._settings = settings
        self._ray: Any = None
        self._handles: dict[str, Any] = {}
        self._pending: dict[str, Any] = {}

    @property
    def is_ours(self) -> bool:
        """Whether this process starts the cluster and ends it."""
        return self._settings.address is None

    def connect(self) -> None:
        """Connects to the cluster of the settings, or starts one on this machine.

        Raises:
            ClusterLost: no cluster answers at the address.
            SetupError: the cluster has another version of Ray or Python.
        """
        address = self._settings.address
        os.environ.update(_QUIET)
        if address is None or _is_on_loopback(address):
            os.environ.update(_STAY_ON_LOOPBACK)
        if address is not None:
            _probe(address)
        self._ray = importlib.import_module("ray")
        options: dict[str, Any] = {
            "namespace": self._settings.namespace,
            "log_to_driver": False,
            "logging_level": logging.ERROR,
            "address": address or "local",
        }
        if address is None:
            os.environ.setdefault("RAY_raylet_start_wait_time_s", "90")  # Ray gives up after 30
            options |= {"include_dashboard": False, "object_store_memory": _OBJECT_STORE_BYTES}
        with _failures(f"can't connect to Ray at {address or 'this machine'}"):
            try:
                self._ray.init(**options)
            except RuntimeError as error:
                if "ersion mismatch" in str(error):
                    raise SetupError(_mismatch(error)) from None
                raise

    def close(self) -> None:
        """Disconnects. A cluster that this process started ends."""
        if self._ray is not None:
            with _failures("can't disconnect from Ray"):
                self._ray.shutdown()

    def names(self, prefix: str) -> list[str]:
        """Names of the actors that are alive, being restarted or waiting for a node."""
        with _failures("Ray does not list its actors"):
            found = cast("list[str]", self._ray.util.list_named_actors())
        return [name for name in found if name.startswith(prefix)]

    def start(
        self,
        name: str,
        actor: type,
        arguments: Mapping[str, Any],
        *,
        cpus: float,
        resources: Mapping[str, float],
    ) -> None:
        """Starts an actor, unless one of that name exists."""
        options: dict[str, Any] = {
            "name": name,
            "lifetime": "detached",
            "get_if_exists": True,
            "max_restarts": -1,
            "max_task_retries": 0,
            "num_cpus": cpus,
            "resources": dict(resources),
            "scheduling_strategy": "SPREAD",
        }
        if self._settings.runtime_env:
            options["runtime_env"] = self._settings.runtime_env
        with _failures(f"can't start the actor {name}"):
            self._handles[name] = self._ray.remote(actor).options(**options).remote(**arguments)

    def poll(self, names: Sequence[str], command: Command, *, wait_s: float) -> dict[str, Answer]:
        """Sends the command to each actor and returns the answers that arrive within `wait_s`.

        An actor that has not answered an earlier command gets no second one; its answer may arrive now.
        """
        answers: dict[str, Answer] = {}
        with _failures("Ray delivers no calls to its actors"):
            for name in names:
                if name in self._pending:
                    continue
                handle = self._handle(name)
                if handle is None:
                    answers[name] = Dead("the actor does not exist any more")
                else:
                    self._pending[name] = handle.renew.remote(command)
            pending = {name: self._pending[name] for name in names if name in self._pending}
            if pending:
                done, _ = self._ray.wait(list(pending.values()), num_returns=len(pending), timeout=wait_s)
                answered = set(done)
                for name, reference in pending.items():
                    answers[name] = self._answer(name) if reference in answered else None
        return answers

    def call(self, name: str, method: str, *arguments: object, wait_s: float) -> object | None:
        """Calls a method of the actor; returns None when no result arrives in time, or the actor is dead."""
        with _failures(f"Ray does not reach the actor {name}"):
            handle = self._handle(name)
            if handle is None:
                return None
            try:
                return self._ray.get(getattr(handle, method).remote(*arguments), timeout=wait_s)
            except (self._ray.exceptions.RayActorError, self._ray.exceptions.GetTimeoutError):
                return None

    def kill(self, name: str) -> None:
        """Ends the actor at once; Ray does not restart it. Its leases lapse or are released by others."""
        with _failures(f"Ray does not kill the actor {name}"):
            handle = self._handle(name)
            if handle is not None:
                self._ray.kill(handle, no_restart=True)
        self.forget(name)

    def forget(self, name: str) -> None:
        self._handles.pop(name, None)
        self._pending.pop(name, None)

    def request_resources(self, bundles: Sequence[Mapping[str, float]]) -> None:
        """Tells the autoscaler what must fit the cluster at once; an empty list lets the cluster shrink."""
        wanted = [dict(bundle) for bundle in bundles]
        with _failures("Ray's autoscaler takes no requests"):
            if (self._settings.address or "").startswith("ray://"):  # only a program inside the cluster may
                request = self._ray.remote(_request_resources).options(num_cpus=0).remote(wanted)
                self._ray.get(request, timeout=_REQUEST_S)
            else:
                _request_resources(wanted)

    # --- inside ------------------------------------------------------------------------------------

    def _handle(self, name: str) -> Any:
        if name not in self._handles:
            try:
                self._handles[name] = self._ray.get_actor(name)
            except ValueError:
                return None
        return self._handles[name]

    def _answer(self, name: str) -> Answer:
        reference = self._pending.pop(name)
        exceptions = self._ray.exceptions
        try:
            return cast("ActorReport", self._ray.get(reference))
        except exceptions.ActorUnavailableError:
            return None
        except exceptions.RayActorError as error:
            self.forget(name)
            return Dead(_one_line(error))
        except exceptions.RayTaskError as error:
            return Dead(_one_line(error))


def _request_resources(bundles: list[dict[str, float]]) -> None:
    importlib.import_module("ray.autoscaler.sdk").request_resources(bundles=bundles)


@contextlib.contextmanager
def _failures(what: str) -> Generator[None]:
    """Turns any error of Ray into `ClusterLost`: Ray's errors have no common base, and only a new connection
    helps.
    """
    try:
        yield
    except NightmillError:
        raise
    except Exception as error:
        raise ClusterLost(f"{what}: {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:300]


def _mismatch(error: RuntimeError) -> str:
    found = " ".join(str(error).split())
    return (
        "the cluster has another version of Ray or Python than this process; install the same versions"
        f" ({found[:300]})"
    )


def _probe(address: str) -> None:
    """Tests the connection first, because Ray itself retries for a minute and then aborts the process."""
    endpoint = _endpoint(address)
    if endpoint is None:
        return
    host, port = endpoint
    try:
        socket.create_connection((host, port), timeout=_CONNECT_S).close()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ClusterLost(f"no Ray cluster answers at {address} ({reason}); retrying") from None


def _endpoint(address: str) -> tuple[str, int] | None:
    if address == "auto":
        return None
    parts = urlsplit(address if "://" in address else f"gcs://{address}")
    port = parts.port or (_CLIENT_PORT if parts.scheme == "ray" else None)
    return (parts.hostname, port) if parts.hostname and port else None


def _is_on_loopback(address: str) -> bool:
    """Whether the cluster listens on loopback only. Ray replaces 127.0.0.1 by the machine's outer address."""
    endpoint = _endpoint(address)
    if endpoint is None or address.startswith("ray://"):
        return False
    host, port = endpoint
    if not is_loopback(host):
        return False
    with contextlib.suppress(OSError):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(("8.8.8.8", 53))  # sends nothing; Ray finds the address in the same way
            outer = probe.getsockname()[0]
        socket.create_connection((outer, port), timeout=_CONNECT_S).close()
        return False
    return True
