"""Picks the upstream: URLs, a server found on this machine, a model file to serve, or the emulator.

Exactly one of these is picked, and the emulator only where the settings name it. A program that is started as
a child keeps its port over restarts.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from urllib.parse import urlsplit

from nightmill.core.upstream_url import is_own_address
from nightmill.errors import SetupError
from nightmill.runtime.child import EMULATOR
from nightmill.runtime.supervisor import Program, free_port
from nightmill.settings import EmulatorSettings, Settings
from nightmill.upstream.connect import check_upstream
from nightmill.upstream.probe import find_local_servers

NO_UPSTREAM = """there is no upstream to answer the lines; give one:
  --upstream http://127.0.0.1:8000/v1   an OpenAI-compatible server (vLLM, SGLang, Ollama, a provider)
  --upstream auto                       look for a server on this machine
  --model model.gguf                    run a model file here (pip install 'nightmill[llama]')
  --emulate                             made-up answers, for trying out and for tests"""

_NOT_ON_RAY = (
    "workers on a Ray cluster need an upstream that every node reaches: --upstream URL, or a model on the"
    " cluster (ray.model); --model and --emulate are of this machine"
)
_PROBE_TIMEOUT_S = 2.0
_LISTEN_POLL_S = 0.02


async def none_stored() -> bool:
    """Of a command whose store has no upstreams that were added at run time."""
    return False


async def choose_upstream(
    settings: Settings,
    *,
    say: Callable[[str], None],
    are_stored: Callable[[], Awaitable[bool]] = none_stored,
) -> tuple[Settings, list[Program]]:
    """Fills in the URL of a single upstream. Several upstreams have theirs already.

    Args:
        are_stored: whether the store has upstreams that were added at run time; called only if the settings
            name no upstream.

    Returns:
        The settings with the URL, and the programs that must run for the upstream.

    Raises:
        SetupError: none was named, more than one was, one can't be used, or `auto` found nothing.
    """
    asked = [
        bool(settings.all_upstreams),
        settings.model.path is not None,
        settings.emulator.enabled,
    ]
    if settings.engine == "ray":
        if settings.ray.model.name is not None and not any(asked):
            return settings, []  # the launcher starts the model on Ray
        if settings.ray.address is not None and not asked[0]:
            raise SetupError(_NOT_ON_RAY)
        asked.append(settings.ray.model.name is not None)
    if sum(asked) == 0:
        if await are_stored():
            return settings, []
        raise SetupError(NO_UPSTREAM)
    if sum(asked) > 1:
        raise SetupError(
            "name one kind of upstream: URLs (upstream), a model file (model), or the emulator (emulate)"
        )
    if settings.emulator.enabled:
        port = free_port()
        program = Program("emulator", EMULATOR, ("--port", str(port), *emulator_arguments(settings.emulator)))
        return _with_url(settings, port), [_upstream(program)]
    if settings.model.path is not None:
        from nightmill.runtime.llama import fitted, llama_program  # noqa: PLC0415 - an extra, seldom installed

        model, choice = fitted(settings.model)
        say(choice)
        port = free_port()
        # More attempts would only queue in the server, and that time counts towards an attempt's timeout.
        upstream = settings.upstream.model_copy(update={"concurrency": model.slots})
        settings = settings.model_copy(update={"upstream": upstream})
        return _with_url(settings, port), [_upstream(llama_program(model, port=port))]
    if settings.upstream.url == "auto":
        settings = await _found(settings, say=say)
    for upstream in settings.all_upstreams:
        check_upstream(upstream, url=upstream.url or "")
    return settings, []


def refuse_own_address(settings: Settings) -> None:
    """Raises SetupError when an upstream is the address that this server is to listen on."""
    host, port = settings.api.host, settings.api.port
    for upstream in settings.all_upstreams:
        if upstream.url != "auto" and is_own_address(upstream.url or "", host=host, port=port):
            message = (
                f"the upstream {upstream.url} is the address of this server itself; name that of the model"
                " server, or let this server listen elsewhere with --port"
            )
            raise SetupError(message)


def emulator_arguments(settings: EmulatorSettings) -> tuple[str, ...]:
    """The options of the emulator's process, as `nightmill.emulator.server` declares them."""
    arguments = ["--delay-s", str(settings.delay_s), "--seed", str(settings.seed)]
    if settings.delay_p99_s is not None:
        arguments += ["--delay-p99-s", str(settings.delay_p99_s)]
    if settings.fail_rate > 0:
        arguments += ["--fail-rate", str(settings.fail_rate)]
        arguments += ["--fail-status", *map(str, settings.fail_statuses)]
    if settings.faults:
        faults = [fault.model_dump() for fault in settings.faults]
        for fault in faults:
            fault["times"] = None if fault["times"] == "always" else fault["times"]
        arguments += ["--faults", json.dumps(faults)]
    return tuple(arguments)


async def _found(settings: Settings, *, say: Callable[[str], None]) -> Settings:
    servers = await find_local_servers(timeout_s=_PROBE_TIMEOUT_S)
    found = [server for server in servers if not server.is_nightmill]
    for server in servers:
        if server.is_nightmill:
            say(f"left out {server.url}: that is a nightmill, which answers nothing by itself")
    if not found:
        message = (
            "found no model server on this machine (looked for vLLM on port 8000, Ollama 11434, "
            "llama.cpp 8080, LM Studio 1234, SGLang 30000); start one, or name it with --upstream URL"
        )
        raise SetupError(message)
    for server in found:
        say(f"found {server.name} at {server.url} with {', '.join(server.models) or 'no models listed'}")
    if len(found) > 1:
        say(f"using {found[0].name}; choose another with --upstream URL")
    upstream = settings.upstream.model_copy(update={"url": found[0].url})
    return settings.model_copy(update={"upstream": upstream})


async def listens(url: str, *, within_s: float) -> bool:
    """Waits until a server accepts connections at `url`; returns whether it did within `within_s` seconds."""
    target = urlsplit(url)
    try:
        async with asyncio.timeout(within_s):
            while True:
                try:
                    _, writer = await asyncio.open_connection(target.hostname, target.port)
                except OSError:
                    await asyncio.sleep(_LISTEN_POLL_S)
                else:
                    writer.close()
                    return True
    except TimeoutError:
        return False


def _upstream(program: Program) -> Program:
    """The program, to be stopped after the workers that still wait for its answers."""
    return replace(program, stage=1)


def _with_url(settings: Settings, port: int) -> Settings:
    upstream = settings.upstream.model_copy(update={"url": f"http://127.0.0.1:{port}/v1"})
    return settings.model_copy(update={"upstream": upstream})
