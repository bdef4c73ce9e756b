"""What `nightmill doctor` finds out about a server, over its API."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from enum import StrEnum
from typing import Any, Final, cast

import httpx2
import openai
from openai import OpenAI

import nightmill
from nightmill.cli.failures import described
from nightmill.cli.screen import clean
from nightmill.client.upstreams import UpstreamApi

_TIMEOUT_S: Final = 10.0
_TEST_TIMEOUT_S: Final = 90.0
_CLOCK_S: Final = 5.0
"""A greater difference of two clocks shows in times and deadlines."""
_SHOWN_MODELS: Final = 3


class Level(StrEnum):
    """How good or bad a finding is."""

    OK = "ok"
    SKIPPED = "skipped"
    WARNING = "warning"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was checked. `text` says what to do where something is wrong."""

    level: Level
    subject: str
    text: str


class ServerChecks:
    """The checks of one server; `is_reached` says afterwards whether there was one.

    Args:
        asks_models: send one short request to each model of each upstream, as `upstreams test` does.
        clock: Unix seconds of this machine.
    """

    def __init__(
        self, client: OpenAI, *, has_key: bool, asks_models: bool, clock: Callable[[], float] = time.time
    ) -> None:
        self._client = client.with_options(max_retries=0, timeout=_TIMEOUT_S)
        self._has_key = has_key
        self._asks_models = asks_models
        self._clock = clock
        self._base = str(client.base_url).rstrip("/")
        self._root = self._base.removesuffix("/v1")
        self.is_reached = False

    def findings(self) -> Iterator[Finding]:
        """From the connection to the upstreams; ends at the first thing that makes the rest pointless."""
        try:
            version = self._version()
        except openai.APIConnectionError as error:
            yield _failed("server", error)
            return
        self.is_reached = True
        try:
            response = self._get(f"{self._base}/batches?limit=1")
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            yield self._of_version(version)
            yield _failed("key", error)
            return
        except openai.OpenAIError as error:
            yield _failed("server", error)
            return
        yield self._of_version(version)
        yield Finding(Level.OK, "key", "it is accepted" if self._has_key else "none is needed here")
        yield from self._of_clock(response)
        yield from self._of_models()
        if version is not None:
            yield from self._of_readiness()
            yield from self._of_upstreams()

    def _version(self) -> str | None:
        """The version of a nightmill server; None for any other server."""
        try:
            answer = self._get(f"{self._root}/version").json()
        except openai.APIConnectionError:
            raise
        except (openai.OpenAIError, ValueError):
            return None
        fields = cast("dict[str, Any]", answer) if isinstance(answer, dict) else {}
        return str(fields.get("version")) if fields.get("name") == "nightmill" else None

    def _of_version(self, version: str | None) -> Finding:
        if version is None:
            text = f"a server that is not nightmill answers at {self._base}; less can be checked"
            return Finding(Level.OK, "server", text)
        text = f"nightmill {clean(version)} answers at {self._base}"
        if version == nightmill.__version__:
            return Finding(Level.OK, "server", text)
        return Finding(Level.WARNING, "server", f"{text}; this command is {nightmill.__version__}")

    def _of_clock(self, response: httpx2.Response) -> Iterator[Finding]:
        stamp = response.headers.get("date")
        if stamp is None:
            return
        # The header has whole seconds.
        ahead_s = self._clock() - parsedate_to_datetime(stamp).timestamp() - 0.5
        if abs(ahead_s) <= _CLOCK_S:
            yield Finding(Level.OK, "clock", "that of the server agrees with this machine's")
        else:
            how = f"{abs(ahead_s):,.0f} s {'behind' if ahead_s > 0 else 'ahead of'} this machine's"
            text = f"that of the server is {how}; set both by one time server"
            yield Finding(Level.WARNING, "clock", text)

    def _of_models(self) -> Iterator[Finding]:
        try:
            answer = self._get(f"{self._base}/models").json()
        except (openai.OpenAIError, ValueError) as error:
            yield _failed("models", error)
            return
        data = cast("dict[str, Any]", answer).get("data") if isinstance(answer, dict) else None
        names = [clean(str(model["id"])) for model in cast("Sequence[dict[str, Any]]", data or ())]
        if names:
            yield Finding(Level.OK, "models", _listed(names))
        else:
            text = "the list of models is empty: load a model into the upstream, or name upstream.models"
            yield Finding(Level.WARNING, "models", text)

    def _of_readiness(self) -> Iterator[Finding]:
        try:
            answer: dict[str, Any] = self._get(f"{self._root}/ready").json()
        except openai.OpenAIError as error:
            yield _failed("ready", error)
            return
        problems = [clean(problem) for problem in answer.get("problems", ())]
        yield from (Finding(Level.FAILED, "ready", problem) for problem in problems)
        if not problems:
            yield Finding(Level.OK, "ready", "batches are accepted, and their lines are being sent")

    def _of_upstreams(self) -> Iterator[Finding]:
        upstreams = UpstreamApi(self._client.with_options(timeout=_TEST_TIMEOUT_S))
        try:
            listed = upstreams.list()["data"]
        except (openai.AuthenticationError, openai.PermissionDeniedError):
            yield Finding(Level.SKIPPED, "upstreams", "the server shows them to an admin key only")
            return
        except openai.OpenAIError as error:
            yield _failed("upstreams", error)
            return
        if not listed:
            yield Finding(Level.FAILED, "upstreams", "there is none; add one with: nightmill upstreams add")
        for upstream in listed:
            yield self._of_upstream(upstreams, upstream)

    def _of_upstream(self, upstreams: UpstreamApi, upstream: dict[str, Any]) -> Finding:
        name = clean(upstream["name"])
        if upstream["state"] != "active":
            text = f"it is {upstream['state']}; continue with: nightmill upstreams resume {name}"
            return Finding(Level.WARNING, "upstream", f"{name}: {text}")
        if not self._asks_models:
            return Finding(Level.SKIPPED, "upstream", f"{name}: not tried, because of --quick")
        try:
            trial = upstreams.do(upstream["name"], "test")
        except openai.OpenAIError as error:
            return _failed("upstream", error)
        return finding_of_trial(name, trial["is_usable"], trial["steps"])

    def _get(self, url: str) -> httpx2.Response:
        return self._client.get(url, cast_to=httpx2.Response)


def finding_of_trial(name: str, is_usable: bool, steps: Sequence[dict[str, Any]]) -> Finding:
    """Of the steps of `upstreams test`: the first that failed, or the last.

    Args:
        name: of the upstream.
    """
    failed = [step for step in steps if not step["is_ok"]]
    shown = (failed or steps)[0 if failed else -1]
    level = Level.OK if is_usable and not failed else Level.WARNING if is_usable else Level.FAILED
    return Finding(level, "upstream", f"{name}: {clean(shown['text']).removesuffix('.')}")


def _failed(subject: str, error: Exception) -> Finding:
    known = described(error)
    return Finding(Level.FAILED, subject, known[0] if known else clean(str(error) or type(error).__name__))


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN_MODELS
    return ", ".join(names[:_SHOWN_MODELS]) + (f" and {more:,} more" if more > 0 else "")
