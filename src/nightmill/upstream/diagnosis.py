"""Tries an upstream, and says in plain sentences what is wrong with it and what to do.

The steps go from the settings over the connection and the list of models to one cheap request for each model,
and end at the first thing that makes the rest pointless. Guarantees: every wait has a deadline; a text holds
no key and, of what the server sent, no more than a status, an error code and names of models.
"""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from nightmill.core.answer_error import failed_answer
from nightmill.core.failure import AnswerError, FailureKind, kind_of
from nightmill.core.outcome import Answered, Broken, Outcome, Unreachable
from nightmill.core.output_line import answered, is_json
from nightmill.core.probe import probe_body
from nightmill.core.request_line import RequestLine
from nightmill.errors import SetupError
from nightmill.settings import UpstreamSettings
from nightmill.upstream.advice import advice_on, advice_on_silence
from nightmill.upstream.answer import body_of_ok
from nightmill.upstream.connect import open_upstream
from nightmill.upstream.http1 import NOT_TRUSTED, REFUSED, UNKNOWN_HOST
from nightmill.upstream.port import Upstream
from nightmill.upstream.probe import is_nightmill, models_in
from nightmill.upstream.target import Target, target_of

_CHAT, _COMPLETIONS, _EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
_USUAL_ENDPOINTS = (_CHAT, _COMPLETIONS, _EMBEDDINGS)
_OK = 200
_BAD_REQUEST = 400
_NO_LISTING = frozenset({404, 405, 501})
_EXTRA_TIMEOUT_S = 5.0
"""For requests that only explain the first, to which some servers give no answer."""
_MAX_ANSWER_BYTES = 4 << 20
_MOST_MODELS = 8
_MOST_NAMES = 5
_LONGEST_NAME = 128
_ENDPOINT_AT_END = re.compile(r"/(?:chat/completions|completions|embeddings|responses|models)\Z")
_KEY_HEADERS = frozenset({"authorization", "api-key", "x-api-key"})
_REFUSED_PARAMETERS = frozenset({"unsupported_parameter", "unsupported_value"})
_ANY_LINE = RequestLine(b'""', b"{}")


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that was tried: "settings", "connection", "models" or "request", and what came of it."""

    name: str
    is_ok: bool
    text: str


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What was tried, in order. `is_usable` says whether lines can be sent to the upstream.

    An upstream without a list of models is usable if the models of the settings answer.
    """

    is_usable: bool
    steps: tuple[Step, ...]


async def diagnose(
    settings: UpstreamSettings,
    *,
    url: str,
    models: Sequence[str] = (),
    endpoints: Sequence[str] = (),
    timeout_s: float = 30.0,
) -> Diagnosis:
    """Tries the upstream at `url` with the client that sends lines.

    Args:
        settings: key, headers, transport; their `url` is not read.
        models: the models to ask, as they are sent; without any, the first that the upstream lists.
        endpoints: the endpoints that the upstream is used for; without any, every endpoint will do.
        timeout_s: for each request.
    """
    try:
        target = target_of(url, settings)
        upstream = open_upstream(settings, url=url)
    except SetupError as error:
        return Diagnosis(is_usable=False, steps=(Step("settings", is_ok=False, text=f"{error}."),))
    trial = _Trial(upstream, target, settings, timeout_s=timeout_s)
    try:
        is_usable = await trial.run(tuple(name for name in models if name != "*"), tuple(endpoints))
    finally:
        await upstream.close()
    return Diagnosis(is_usable, tuple(trial.steps))


async def look_at(settings: UpstreamSettings, *, url: str, timeout_s: float) -> Diagnosis:
    """As `diagnose`, but asks for the list of models only, and no model.

    The last step has the result. A server without such a list is usable.
    """
    try:
        target = target_of(url, settings)
        upstream = open_upstream(settings, url=url)
    except SetupError as error:
        return Diagnosis(is_usable=False, steps=(Step("settings", is_ok=False, text=f"{error}."),))
    trial = _Trial(upstream, target, settings, timeout_s=timeout_s)
    try:
        is_usable = await trial.look()
    finally:
        await upstream.close()
    return Diagnosis(is_usable, tuple(trial.steps))


class _Trial:
    """The steps of one diagnosis."""

    def __init__(
        self, upstream: Upstream, target: Target, settings: UpstreamSettings, *, timeout_s: float
    ) -> None:
        self._upstream = upstream
        self._target = target
        self._settings = settings
        self._timeout_s = timeout_s
        self._has_key = settings.api_key is not None or any(
            name.lower() in _KEY_HEADERS for name in settings.headers
        )
        self.steps: list[Step] = []

    async def look(self) -> bool:
        """Appends the steps up to the list of models; returns whether lines may be answered."""
        listing = await self._connect()
        if listing is None or await self._is_nightmill():
            return False
        return await self._read(listing) is not None or (
            listing.status in _NO_LISTING and bool(self._settings.models)
        )

    async def run(self, models: tuple[str, ...], endpoints: tuple[str, ...]) -> bool:
        """Appends the steps; returns whether the upstream is usable."""
        base = f"{self._target.scheme}://{self._target.authority}{self._target.prefix}"
        self._ok("settings", f"The base URL is {base}.")
        listing = await self._connect()
        if listing is None or await self._is_nightmill():
            return False
        listed = await self._read(listing)
        if listed is None and (not models or listing.status not in _NO_LISTING):
            return False
        asked = models or (listed or ())[:1]
        if not asked:
            return self._failed("models", "The list of models is empty: load a model into the server.")
        is_usable = True
        for model in asked[:_MOST_MODELS]:
            is_usable &= await self._ask(model, listed, endpoints)
        if len(asked) > _MOST_MODELS:
            self._ok("request", f"{len(asked) - _MOST_MODELS} more models were not asked.")
        return is_usable

    # --- connection --------------------------------------------------------------------------------

    async def _connect(self) -> Answered | None:
        """The answer to the request for the list of models; None when there is no HTTP answer."""
        outcome = await self._get(self._target.path_of("/v1/models"))
        other = "http" if self._target.is_secure else "https"
        if self._may_speak(outcome) and await self._speaks(other):
            spoken = "speaks plain HTTP" if other == "http" else "expects TLS"
            self._failed("connection", f"The server {spoken}: use {other}:// in url.")
            return None
        if not isinstance(outcome, Answered):
            text = advice_on_silence(outcome, host=self._target.host, port=self._target.port)
            self._failed("connection", text)
            return None
        is_checked = self._target.is_secure and self._settings.tls_verify
        how = " over TLS with a trusted certificate" if is_checked else ""
        self._ok("connection", f"The server answers{how}.")
        return outcome

    def _may_speak(self, outcome: Outcome) -> bool:
        """Whether the outcome may be that of the wrong scheme."""
        match outcome:
            case Unreachable(reason):
                return self._target.is_secure and not reason.startswith((REFUSED, UNKNOWN_HOST, NOT_TRUSTED))
            case Broken():
                return not self._target.is_secure
            case Answered(status=status):
                return status == _BAD_REQUEST and not self._target.is_secure
            case _:
                return False

    async def _speaks(self, scheme: str) -> bool:
        """Whether the server answers over another scheme. The request carries no key."""
        host = f"[{self._target.host}]" if ":" in self._target.host else self._target.host
        timeout_s = min(_EXTRA_TIMEOUT_S, self._settings.connect_timeout_s)
        bare = UpstreamSettings(
            transport=self._settings.transport, connect_timeout_s=timeout_s, tls_verify=False
        )
        upstream = open_upstream(bare, url=f"{scheme}://{host}:{self._target.port}/v1")
        try:
            outcome = await upstream.get(
                "/v1/models", timeout_s=timeout_s, max_answer_bytes=_MAX_ANSWER_BYTES
            )
        finally:
            await upstream.close()
        return isinstance(outcome, Answered)

    # --- models ------------------------------------------------------------------------------------

    async def _is_nightmill(self) -> bool:
        version = body_of_ok(await self._get("/version", timeout_s=min(_EXTRA_TIMEOUT_S, self._timeout_s)))
        if version is None or not is_nightmill(version):
            return False
        self._failed("models", "The server is a nightmill itself: set url to that of the model server.")
        return True

    async def _read(self, answer: Answered) -> tuple[str, ...] | None:
        """The models in the answer; None if it is no list of models."""
        if answer.status == _OK:
            listed = models_in(answer.body)
            if listed is not None:
                count = "1 model" if len(listed) == 1 else f"{len(listed)} models"
                self._ok("models", f"The server lists {count}{_named(': ', listed)}.")
                return listed
            what = "JSON, but no list of models" if is_json(answer.body) else "not JSON, perhaps a web page"
            text = (
                f"The answer to GET {self._target.prefix}/models is {what}: url must be the base of the API."
            )
        elif answer.status in _NO_LISTING:
            text = f"There is no list of models at {self._target.prefix}/models ({answer.status})"
            right = await self._right_prefix()
            if right is not None:
                text += f", but there is one at {right}/models: set url to end in {right}."
            else:
                text += ": url must be the base of the API, which usually ends in /v1."
        else:
            error, _, _ = failed_answer(
                answer.body, status=answer.status, result="data", is_json=is_json(answer.body)
            )
            text = advice_on(error, has_key=self._has_key)
        self._failed("models", text)
        return None

    async def _right_prefix(self) -> str | None:
        """Another base path on the same host that has a list of models."""
        prefix = self._target.prefix
        candidates = (_ENDPOINT_AT_END.sub("", prefix), f"{prefix}/v1", "/v1")
        for candidate in dict.fromkeys(candidates):
            if candidate != prefix:
                body = body_of_ok(await self._get(f"{candidate}/models{self._target.query}"))
                if body is not None and models_in(body) is not None:
                    return candidate
        return None

    # --- requests ----------------------------------------------------------------------------------

    async def _ask(self, model: str, listed: tuple[str, ...] | None, endpoints: tuple[str, ...]) -> bool:
        """Sends cheap requests until one is answered; returns whether the model is usable."""
        asked = [name for name in endpoints or _USUAL_ENDPOINTS if probe_body(name, model) is not None]
        if not asked:
            return self._ok("request", f"{model}: there is no cheap request for its endpoints; not asked.")
        is_missing = listed is not None and model not in listed
        first: str | None = None
        for endpoint in asked:
            text, goes_on = await self._failure(endpoint, model)
            if text is None:
                return self._ok("request", _answers(model, endpoint, asked[0], is_missing=is_missing))
            first = first or text
            if not goes_on:
                return self._failed("request", f"{model}: {text}")
        if listed is not None and is_missing:
            return self._failed("request", _no_such_model(model, listed))
        if _EMBEDDINGS not in asked and (await self._failure(_EMBEDDINGS, model))[0] is None:
            text = f"It is an embedding model: it answers {_EMBEDDINGS}, not {asked[0]}."
            return self._failed("request", f"{model}: {text} Use it for batches of that endpoint.")
        return self._failed("request", f"{model}: {first}")

    async def _failure(self, endpoint: str, model: str) -> tuple[str | None, bool]:
        """What is wrong with the answer to a cheap request, and whether another endpoint may be answered.

        The text is None after a result.
        """
        body = probe_body(endpoint, model)
        assert body is not None
        outcome = await self._upstream.send(endpoint, body, timeout_s=self._timeout_s)
        if not isinstance(outcome, Answered):
            return advice_on_silence(outcome, host=self._target.host, port=self._target.port), False
        error = _error_in(outcome, endpoint)
        if error is None or error.code in _REFUSED_PARAMETERS:
            return None, True
        is_about_endpoint = kind_of(error) in (FailureKind.REQUEST, FailureKind.FAULT)
        return advice_on(error, has_key=self._has_key), is_about_endpoint or error.status in _NO_LISTING

    # --- helpers -----------------------------------------------------------------------------------

    async def _get(self, path: str, *, timeout_s: float | None = None) -> Outcome:
        return await self._upstream.get(
            path, timeout_s=timeout_s or self._timeout_s, max_answer_bytes=_MAX_ANSWER_BYTES
        )

    def _ok(self, name: str, text: str) -> bool:
        self.steps.append(Step(name, is_ok=True, text=text))
        return True

    def _failed(self, name: str, text: str) -> bool:
        self.steps.append(Step(name, is_ok=False, text=text))
        return False


def _error_in(answer: Answered, endpoint: str) -> AnswerError | None:
    row = answered(
        b"", _ANY_LINE, endpoint=endpoint, status=answer.status, request_id=b'""', body=answer.body
    )
    return row.error


def _answers(model: str, endpoint: str, first: str, *, is_missing: bool) -> str:
    text = f"{model} answers {endpoint}"
    if endpoint != first:
        text += f", not {first}"
        if endpoint == _EMBEDDINGS:
            text += ": it is an embedding model"
    return f"{text}, though the list of models does not name it." if is_missing else f"{text}."


def _no_such_model(model: str, listed: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(model, listed, n=_MOST_NAMES, cutoff=0.4)
    names = _named(" Near names: ", near) or _named(" It lists ", listed)
    return f"{model}: the server has no such model.{names}{'.' if names else ''}"


def _named(before: str, models: Sequence[str]) -> str:
    """The first few names that can be printed; empty without any."""
    names = [name for name in models if name.isprintable() and 0 < len(name) <= _LONGEST_NAME]
    more = ", ..." if len(names) > _MOST_NAMES else ""
    return f"{before}{', '.join(names[:_MOST_NAMES])}{more}" if names else ""
