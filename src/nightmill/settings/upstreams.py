"""The settings of one upstream, and what several of them must agree on."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

from nightmill.core.batch import ENDPOINTS
from nightmill.core.quiet_hours import QuietHours
from nightmill.core.upstream_url import base_url

DEFAULT_NAME: Final = "default"
ANY_MODEL: Final = "*"
MAX_CONCURRENCY: Final = 1_024
OWN_FIELDS: Final = frozenset({"name", "url", "api_key", "headers", "models", "aliases", "endpoints"})
"""Fields that belong to one server. With several upstreams, `[upstream]` gives defaults for the others."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")


class Section(BaseModel):
    """Base of all sections: unknown names are refused, and values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class UpstreamSettings(Section):
    """The OpenAI-compatible server that answers the lines."""

    name: str = DEFAULT_NAME
    """Its name in logs, metrics and commands: letters, digits, `_`, `.` and `-`."""
    url: str | None = None
    """Base URL up to and with `/v1`, or `auto` to look for the usual local servers. `localhost:11434` means
    `http://localhost:11434/v1`."""
    api_key: SecretStr | None = None
    """Sent as a bearer token."""
    headers: dict[str, str] = Field(default_factory=dict)
    """Extra headers on every attempt."""
    models: tuple[str, ...] = ()
    """Models offered. If given, lines for any other model fail validation, unless another upstream offers the
    model. Not given: a single upstream is sent every model; of several, each is sent the models that it lists
    at `/v1/models`. `["*"]` stands for every model."""
    aliases: dict[str, str] = Field(default_factory=dict)
    """Other names of models: `{"gpt-4o-mini" = "qwen3-8b"}` sends lines for `gpt-4o-mini` with the model
    `qwen3-8b`. Nothing else in the line changes."""
    endpoints: tuple[str, ...] = ()
    """Endpoints that the server has, such as `/v1/chat/completions`. Not given: all."""
    weight: Annotated[float, Field(ge=0)] = 1.0
    """Of several upstreams with free slots for a model, the one with the greater weight is filled first. With
    0 an upstream is a reserve: it is sent lines only while no other upstream of the model takes any."""
    concurrency: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Attempts in flight at once, over all workers of all machines that ask this upstream. `auto` finds the
    number by what it brings, for each model that the upstream lists (docs/upstreams.md). A number fixes
    it."""
    max_concurrency: Annotated[int, Field(ge=1)] = MAX_CONCURRENCY
    """The most attempts in flight that `auto` tries."""
    share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """The part of the attempts that batches may have in flight, so that other users of the server keep the
    rest."""
    quiet_hours: str | None = None
    """Hours in which `share` does not apply, because few others use the server:
    `22:00-06:00 Europe/Berlin`, or `Mon-Fri 20:00-07:00 Europe/Berlin, Sat-Sun 00:00-24:00 Europe/Berlin`."""
    priority: int | None = None
    """Sent as `priority` in each line, which vLLM obeys with `--scheduling-policy priority`: a greater number
    waits for a smaller one. Other servers may refuse it."""
    gauges: bool = True
    """Read the server's `/metrics` to find the concurrency and to give way to its other users."""
    requests_per_minute: Annotated[int, Field(ge=0)] = 0
    """Attempts started in a minute, over all workers; 0 sets no limit."""
    tokens_per_minute: Annotated[int, Field(ge=0)] = 0
    """Tokens used in a minute, over all workers; 0 sets no limit. The tokens of an attempt are estimated from
    the attempts before it and corrected by its answer."""
    timeout_s: Annotated[float, Field(gt=0)] = 600.0
    """Longest duration of one attempt, in seconds. The time in a queue of the upstream is part of it: after a
    time-out fewer attempts are in flight (docs/faults.md)."""
    connect_timeout_s: Annotated[float, Field(gt=0)] = 10.0
    """Longest time to open a connection, in seconds."""
    max_attempts: Annotated[int, Field(ge=1)] = 8
    """Attempts of a line that fails while other lines are answered. An outage uses up none, whatever its
    status (docs/faults.md)."""
    transport: Literal["lean", "aiohttp"] = "lean"
    """`lean` is nightmill's own HTTP/1.1 client; `aiohttp` uses the proxies named in the environment."""
    tls_verify: bool = True
    """Check the upstream's certificate."""
    tls_ca: Path | None = None
    """A PEM file of certificates that are trusted beside those of the system."""
    tls_certificate: Path | None = None
    """A PEM file with the certificate that nightmill shows to the upstream."""
    tls_key: Path | None = None
    """The private key of `tls_certificate`; not given: it is in the same file."""
    max_answer_bytes: Annotated[int, Field(ge=1_024)] = 256 << 20
    """A longer answer is not read to its end: its line goes to the error file at once, with code
    `answer_too_long`. Memory holds two copies of an answer while it is settled."""

    @field_validator("url")
    @classmethod
    def _complete(cls, url: str | None) -> str | None:
        """Raises ValueError when it can't be a base URL."""
        return url if url is None or url == "auto" else base_url(url)

    @model_validator(mode="after")
    def _check(self) -> "UpstreamSettings":
        """Raises ValueError when the values contradict each other."""
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"the name {self.name!r} may hold letters, digits, '_', '.' and '-' only")
        if self.concurrency != "auto" and self.max_concurrency != MAX_CONCURRENCY:
            raise ValueError("max_concurrency has no effect with a fixed concurrency; leave one of them out")
        if self.quiet_hours is not None:
            if self.share == 1:
                raise ValueError("quiet_hours has no effect with share 1; set share to the part for the day")
            QuietHours.parse(self.quiet_hours)
        unknown = [endpoint for endpoint in self.endpoints if endpoint not in ENDPOINTS]
        if unknown:
            raise ValueError(f"endpoints: {unknown[0]!r} is not one of {', '.join(ENDPOINTS)}")
        if self.models and ANY_MODEL not in self.models:
            for asked, sent in self.aliases.items():
                if sent not in self.models:
                    raise ValueError(
                        f"aliases: {asked!r} stands for {sent!r}, which is not in models; add it"
                    )
        if self.tls_key is not None and self.tls_certificate is None:
            raise ValueError("tls_key has no effect without tls_certificate")
        return self


def check_upstreams(defaults: UpstreamSettings, upstreams: Sequence[UpstreamSettings]) -> None:
    """Checks several upstreams.

    Args:
        defaults: the section `[upstream]`.
        upstreams: the sections `[[upstreams]]`.

    Raises:
        ValueError: the sections contradict each other.
    """
    if not upstreams:
        return
    for field in sorted(OWN_FIELDS):
        if getattr(defaults, field) != UpstreamSettings.model_fields[field].get_default(
            call_default_factory=True
        ):
            message = (
                f"upstream.{field} belongs to one upstream, and there are [[upstreams]]; move it into the one"
                " that it is meant for"
            )
            raise ValueError(message)
    for upstream in upstreams:
        if upstream.url is None or upstream.url == "auto":
            raise ValueError(f"upstreams.{upstream.name}.url must be a URL such as http://host:8000/v1")
