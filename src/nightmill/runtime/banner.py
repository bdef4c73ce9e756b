"""What `serve` and `work` say once they have started: where they are, what answers, and what to try next.

A field is a name and a text. A terminal gets the texts wrapped below each other; a log gets one line each.
"""

import asyncio
import os
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, TypeAlias

import nightmill
from nightmill.api.upstream_wire import shown_url
from nightmill.core.loopback import is_loopback
from nightmill.core.upstream_setting import UpstreamState
from nightmill.errors import UnavailableError
from nightmill.runtime.stop_signals import unfinished_text
from nightmill.settings import DEFAULT_NAME, Settings, UpstreamSettings
from nightmill.settings.effective import EffectiveUpstream, effective_of, managed_upstreams
from nightmill.store import Store
from nightmill.store.database_url import shown_database
from nightmill.upstream.diagnosis import look_at

Say: TypeAlias = Callable[[str], None]
Field: TypeAlias = tuple[str, str]

EMULATED: Final = "EMULATED: every answer is made up; no model is asked"

_LOOK_S: Final = 3.0
_MOST_UPSTREAMS: Final = 16
_NAME_WIDTH: Final = 11
_NARROWEST: Final = 60
_ANY_ADDRESS: Final = frozenset({"0.0.0.0", "::"})  # noqa: S104 - compared, not bound


@dataclass(frozen=True, slots=True)
class Listening:
    """Where the API listens."""

    host: str
    port: int

    @property
    def origin(self) -> str:
        return _origin(self.host, self.port)

    @property
    def origin_here(self) -> str:
        """The same for clients on this machine."""
        return _origin("127.0.0.1" if self.host in _ANY_ADDRESS else self.host, self.port)


def _origin(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def say_fields(fields: Iterable[Field], *, say: Say) -> None:
    """Says each field, wrapped to the terminal if standard error is one. A field without a name belongs to
    the one before it.
    """
    width = _terminal_width()
    for name, text in fields:
        if width is None:
            say(f"{name}: {text}" if name else text)
            continue
        lines = textwrap.wrap(text, width - _NAME_WIDTH - 2, break_long_words=False, break_on_hyphens=False)
        for number, line in enumerate(lines):
            say(f"  {'' if number else name:<{_NAME_WIDTH}}{line}")


async def say_listening(
    settings: Settings, listening: Listening, store: Store, *, data: str, say: Say
) -> None:
    """Says where the server is and how to use it, and then what answers.

    Args:
        data: see `data_found`.
    """
    say(f"nightmill {nightmill.__version__} listens on {listening.origin}/v1")
    needs_keys = not settings.keyless_on_loopback
    with suppress(UnavailableError):
        needs_keys = needs_keys or await store.api_keys.any_exist()
    has_dashboard = settings.dashboard.enabled
    say_fields(
        server_fields(listening, needs_keys=needs_keys, has_dashboard=has_dashboard, data=data), say=say
    )
    # A log is read later and by others, for whom lines to type are noise.
    if sys.stderr.isatty():
        say_fields(first_commands(listening, needs_keys=needs_keys), say=say)
    if settings.worker.processes == 0:
        say_fields([("upstream", "what the processes of 'nightmill work' ask")], say=say)
    else:
        await say_upstreams(settings, store, say=say)


async def data_found(settings: Settings, store: Store, *, is_new: bool) -> str:
    """Where the data is and what a start finds there. Call it before the roles begin.

    Args:
        is_new: whether this start has made the data folder.
    """
    unfinished = None
    with suppress(UnavailableError):
        unfinished = sum((await store.batches.backlog()).batches.values())
    return data_text(settings, unfinished=unfinished, is_new=is_new)


def server_fields(
    listening: Listening, *, needs_keys: bool, has_dashboard: bool, data: str
) -> Iterator[Field]:
    """The fields of a server, but for its upstreams."""
    yield "data", data
    if needs_keys:
        yield "keys", "needed; make another with: nightmill keys create NAME"
    elif is_loopback(listening.host):
        yield "keys", "none needed from this machine, which alone can reach this address"
    if has_dashboard:
        yield "dashboard", f"{listening.origin_here}/"
    yield "docs", f"{listening.origin_here}/docs"


def first_commands(listening: Listening, *, needs_keys: bool) -> Iterator[Field]:
    """What a reader of a terminal can try next."""
    yield "try", f"export OPENAI_BASE_URL={listening.origin_here}/v1"
    yield "", f"export OPENAI_API_KEY={'$KEY' if needs_keys else 'unused'}"
    yield "", "nightmill submit FILE.jsonl --watch"


def data_text(settings: Settings, *, unfinished: int | None, is_new: bool) -> str:
    """Where the data is, and what is there."""
    place = str(settings.folder.absolute())
    if settings.store is not None:
        place = shown_database(settings.store)
        place += f" and {shown_url(settings.blobs.url) or settings.folder.absolute()}"
    if is_new:
        return f"{place} (new; name another with --folder)"
    return place if unfinished is None else f"{place} ({unfinished_text(unfinished, when='now')})"


async def say_upstreams(settings: Settings, store: Store, *, say: Say) -> None:
    """Asks every upstream whether it is there, all at once, and says what came of it."""
    try:
        upstreams = effective_of(settings, await store.upstreams.settings())
    except UnavailableError:
        return
    managed = managed_upstreams(settings)
    shown = upstreams[:_MOST_UPSTREAMS]
    texts = await asyncio.gather(
        *(
            _managed_text(settings) if upstream.name in managed else _upstream_text(upstream)
            for upstream in shown
        )
    )
    fields = [
        ("upstream", text if upstream.name == DEFAULT_NAME else f"{upstream.name}: {text}")
        for upstream, text in zip(shown, texts, strict=True)
    ]
    if len(upstreams) > len(shown):
        fields.append(
            ("upstream", f"{len(upstreams) - len(shown)} more; list them with: nightmill upstreams")
        )
    if settings.engine == "ray" and settings.ray.model.name is not None:
        fields.append(("upstream", f"the model {settings.ray.model.name} on the Ray cluster"))
    say_fields(fields, say=say)


async def _managed_text(settings: Settings) -> str:
    if settings.model.path is None:
        return EMULATED
    return f"{settings.model.path.name} in a process of its own, {_at_once(settings.upstream)}"


async def _upstream_text(upstream: EffectiveUpstream) -> str:
    settings = upstream.settings
    place = f"{shown_url(settings.url)}, {_at_once(settings)}"
    if upstream.state is not UpstreamState.ACTIVE:
        return f"{place}. It is {upstream.state.value}."
    quick = settings.model_copy(update={"connect_timeout_s": min(settings.connect_timeout_s, _LOOK_S)})
    try:
        async with asyncio.timeout(_LOOK_S * 2):
            seen = await look_at(quick, url=settings.url or "", timeout_s=_LOOK_S)
    except TimeoutError:
        return f"{place}. AWAY: it has not answered yet. Batches are accepted and wait for it."
    text = seen.steps[-1].text
    if seen.is_usable:
        return f"{place}. {text}"
    is_there = any(step.name == "connection" and step.is_ok for step in seen.steps)
    return f"{place}. {'NOT USABLE' if is_there else 'AWAY'}: {text} Batches wait for it."


def _at_once(settings: UpstreamSettings) -> str:
    if settings.concurrency == "auto":
        return f"concurrency auto (at most {settings.max_concurrency:,})"
    return f"{settings.concurrency:,} {'line' if settings.concurrency == 1 else 'lines'} at once"


def _terminal_width() -> int | None:
    """The width of the terminal on standard error; None if it is none."""
    if not sys.stderr.isatty():
        return None
    try:
        columns = os.get_terminal_size(sys.stderr.fileno()).columns
    except OSError:
        columns = 0
    return max(columns or 80, _NARROWEST)
