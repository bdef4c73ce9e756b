"""The verbs of a Ray cluster, for one launcher: connect, see actors, start, ask, end, tell the autoscaler.

Duty: named, detached actors of one namespace. Promise: each verb is idempotent, any number of launchers may
use them, and all that a launcher knows it can read again from the cluster. Not its duty: what is wanted
(`plan`).

Every verb blocks and must be called from one thread that lives as long as the process: a cluster that Ray
starts for us ends with the thread that started it. Any error Ray has becomes `ClusterLost`.
"""

import contextlib
import importlib
import ipaddress
import logging
import os
import socket
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast
from urllib.parse import urlsplit

from nightmill.errors import NightmillError, SetupError
from nightmill.runtime.ray.leased_actor import Command, Report
from nightmill.settings import RaySettings

_OBJECT_STORE_BYTES: Final = 100 << 20
"""Nothing of ours goes through it; Ray's own choice would be a third of the machine's memory."""
_CONNECT_S: Final = 2.0
_ASK_S: Final = 15.0
_CLIENT_PORT: Final = 10_001
_QUIET: Final = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "0",
}
# Ray's name for "this machine is the whole cluster, so stay on loopback"; it works on Linux too.
_STAY_ON_LOOPBACK: Final = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}


class ClusterLost(NightmillError):  # noqa: N818 - it says what happened
    """The cluster does not answer, or Ray failed in a way that only a new connection mends."""


@dataclass(frozen=True, slots=True)
class Gone:
    """The actor of that name is dead. `reason` is Ray's own, in one line."""

    reason: str


Answer = Report | Gone | None
"""None: no answer yet, or it is being restarted."""


class Cluster:
    """A connection. `connect` first."""

    def __init__(self, settings: RaySettings) -> None:
        self._settings = settings
        self._ray: Any = None
        self._handles: dict[str, Any] = {}
        self._asked: dict[str, Any] = {}

    @property
    def is_ours(self) -> bool:
        """Whether it was started by and ends with this process."""
        return self._settings.address is None

    def connect(self) -> None:
        """Raises:
        ClusterLost: nobody answers there.
        SetupError: its Ray or Python is another than ours, or it wants other credentials.
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
        """A cluster of ours ends with it."""
        if self._ray is not None:
            with _failures("can't leave Ray"):
                self._ray.shutdown()

    def names(self, prefix: str) -> list[str]:
        """Of the actors of our namespace that are alive, being restarted or waiting for a place."""
        with _failures("Ray does not say which actors there are"):
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
        """Nothing happens when there is one of that name."""
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

    def ask(self, names: Sequence[str], command: Command, *, wait_s: float) -> dict[str, Answer]:
        """What each answers within `wait_s`. One that has not answered yet is not asked a second time."""
        answers: dict[str, Answer] = {}
        with _failures("Ray carries no questions to its actors"):
            for name in names:
                if name in self._asked:
                    continue
                handle = self._handle(name)
                if handle is None:
                    answers[name] = Gone("it has ended")
                else:
                    self._asked[name] = handle.attend.remote(command)
            asked = {name: self._asked[name] for name in names if name in self._asked}
            if asked:
                done, _ = self._ray.wait(list(asked.values()), num_returns=len(asked), timeout=wait_s)
                answered = set(done)
                for name, question in asked.items():
                    answers[name] = self._answer(name) if question in answered else None
        return answers

    def tell(self, name: str, verb: str, *arguments: object, wait_s: float) -> object | None:
        """What the actor's method says; None when it says nothing in time, or is dead."""
        with _failures(f"Ray does not reach the actor {name}"):
            handle = self._handle(name)
            if handle is None:
                return None
            try:
                return self._ray.get(getattr(handle, verb).remote(*arguments), timeout=wait_s)
            except (self._ray.exceptions.RayActorError, self._ray.exceptions.GetTimeoutError):
                return None

    def drop(self, name: str) -> None:
        """Ends the actor at once and for good. What it held is found by others."""
        with _failures(f"Ray does not end the actor {name}"):
            handle = self._handle(name)
            if handle is not None:
                self._ray.kill(handle, no_restart=True)
        self.forget(name)

    def forget(self, name: str) -> None:
        self._handles.pop(name, None)
        self._asked.pop(name, None)

    def ask_for(self, bundles: Sequence[Mapping[str, float]]) -> None:
        """Tells the autoscaler what must fit the cluster at once; nothing at all lets it shrink."""
        wanted = [dict(bundle) for bundle in bundles]
        with _failures("Ray's autoscaler takes no requests"):
            if (self._settings.address or "").startswith("ray://"):  # from outside only a program inside can
                asking = self._ray.remote(_ask_for).options(num_cpus=0).remote(wanted)
                self._ray.get(asking, timeout=_ASK_S)
            else:
                _ask_for(wanted)

    # --- inside ------------------------------------------------------------------------------------

    def _handle(self, name: str) -> Any:
        if name not in self._handles:
            try:
                self._handles[name] = self._ray.get_actor(name)
            except ValueError:
                return None
        return self._handles[name]

    def _answer(self, name: str) -> Answer:
        question = self._asked.pop(name)
        exceptions = self._ray.exceptions
        try:
            return cast("Report", self._ray.get(question))
        except exceptions.ActorUnavailableError:
            return None
        except exceptions.RayActorError as error:
            self.forget(name)
            return Gone(_one_line(error))
        except exceptions.RayTaskError as error:
            return Gone(_one_line(error))


def _ask_for(bundles: list[dict[str, float]]) -> None:
    importlib.import_module("ray.autoscaler.sdk").request_resources(bundles=bundles)


@contextlib.contextmanager
def _failures(what: str) -> Generator[None]:
    """Ray has no common root of errors; nothing but a new connection mends those that come through here."""
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
    return f"the cluster's Ray or Python is another than this one's; make both the same ({found[:300]})"


def _probe(address: str) -> None:
    """Ray itself tries for a minute, and aborts the process then."""
    place = _place(address)
    if place is None:
        return
    host, port = place
    try:
        socket.create_connection((host, port), timeout=_CONNECT_S).close()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ClusterLost(f"no Ray cluster answers at {address} ({reason}); it is tried again") from None


def _place(address: str) -> tuple[str, int] | None:
    if address == "auto":
        return None
    parts = urlsplit(address if "://" in address else f"gcs://{address}")
    port = parts.port or (_CLIENT_PORT if parts.scheme == "ray" else None)
    return (parts.hostname, port) if parts.hostname and port else None


def _is_on_loopback(address: str) -> bool:
    """Whether the cluster listens on loopback only. Ray takes 127.0.0.1 to mean this machine's outer
    address."""
    place = _place(address)
    if place is None or address.startswith("ray://"):
        return False
    host, port = place
    if host != "localhost" and not _is_loopback(host):
        return False
    with contextlib.suppress(OSError):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(("8.8.8.8", 53))  # sends nothing: it is how Ray finds the address, too
            outer = probe.getsockname()[0]
        socket.create_connection((outer, port), timeout=_CONNECT_S).close()
        return False
    return True


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
