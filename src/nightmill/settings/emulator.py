"""The settings of the emulator: how long it takes, how often it fails, and which faults it injects."""

import json
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from nightmill.settings.upstreams import Section

FaultKind = Literal[
    "status",
    "html",
    "redirect",
    "invalid_json",
    "refusal",
    "length",
    "content_filter",
    "empty",
    "slow",
    "hang",
    "trickle",
    "reset",
    "reset_midway",
    "truncate",
    "broken_chunks",
    "short_length",
    "close_after",
]
"""The same kinds as in `nightmill.emulator.faults`, which does not load pydantic; a test compares them."""

Status = Annotated[int, Field(ge=200, le=599)]


class FaultSettings(Section):
    """A fault that the emulator injects into the requests that match it."""

    fault: FaultKind
    """What goes wrong (docs/testing.md)."""
    match: str = ""
    """A text in the body; not given: every request matches."""
    times: Annotated[int, Field(ge=1)] | Literal["always"] = 1
    """How many requests get the fault."""
    status: Status = 503
    """The status of the faults `status` and `html`."""
    code: str | None = None
    """The `error.code` of the fault `status`."""
    headers: dict[str, str] = Field(default_factory=dict)
    """Further headers of the faults `status`, `html` and `redirect`."""
    body: str | None = None
    """The whole body of the faults `status` and `html`."""
    location: str = "/elsewhere"
    """Where the fault `redirect` leads."""
    delay_s: Annotated[float, Field(ge=0)] = 1.0
    """The wait of the fault `slow` before the answer, and of `trickle` between two bytes."""


def _decoded(given: Any) -> Any:
    """A list in JSON, as the environment has it, or the value itself."""
    if not isinstance(given, str):
        return given
    try:
        return json.loads(given)
    except ValueError:
        raise ValueError('write a list in JSON: [{"fault": "status", "status": 429}]') from None


class EmulatorSettings(Section):
    """The built-in upstream for trials and tests. It runs only when it is enabled (docs/testing.md)."""

    enabled: bool = False
    """Answer every line with generated text that says that it is emulated."""
    delay_s: Annotated[float, Field(ge=0)] = 0.0
    """Seconds before each answer; with `delay_p99_s` the median of them."""
    delay_p99_s: Annotated[float, Field(gt=0)] | None = None
    """Seconds that 99 of 100 answers take at most; the waits then have a log-normal distribution, as those of
    models do. Not given: every answer takes `delay_s`."""
    fail_rate: Annotated[float, Field(ge=0, le=1)] = 0.0
    """The share of requests that fail with one of `fail_statuses`."""
    fail_statuses: Annotated[tuple[Status, ...], Field(min_length=1)] = (500, 503)
    """Statuses of `fail_rate`. After 429, 500 or 503 nightmill sends the line again; with 400 the line
    fails."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Another number makes other requests fail or take long. With the same number, the outcome depends on the
    body and on how often it failed before, and not on the order of requests."""
    faults: Annotated[tuple[FaultSettings, ...], BeforeValidator(_decoded)] = ()
    """Faults to inject: each `[[emulator.faults]]` has `fault`, and may have `match`, `times`, `status`,
    `code`, `headers`, `body`, `location` and `delay_s`. The first that matches and is not used up is
    injected. In the environment they are a list in JSON."""

    @model_validator(mode="after")
    def _check(self) -> "EmulatorSettings":
        if self.delay_p99_s is not None and not 0 < self.delay_s < self.delay_p99_s:
            raise ValueError("delay_p99_s needs a smaller delay_s above 0, which is the median")
        return self
