"""The flags of `submit` that only nightmill understands."""

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from nightmill.client import BatchOptions


class OnInvalidChoice(StrEnum):
    """The choices of `--on-invalid`; `core.batch_options.OnInvalid` is slow to import."""

    FAIL = "fail"
    SKIP = "skip"


OnInvalid = Annotated[
    OnInvalidChoice | None,
    typer.Option(
        "--on-invalid",
        metavar="fail|skip",
        help="With 'skip' invalid lines go to the error file and the others are sent [fail].",
    ),
]
Canary = Annotated[
    int | None,
    typer.Option(
        "--canary",
        metavar="N",
        min=0,
        help="Send the first N lines, the others only if few of them fail [0].",
    ),
]
CanaryMaxFailed = Annotated[
    float | None,
    typer.Option(
        "--canary-max-failed", metavar="SHARE", min=0, max=1, help="The share of those that may fail [0.1]."
    ),
]
CanaryPause = Annotated[
    bool, typer.Option("--canary-pause", help="Pause after those lines, until 'nightmill resume'.")
]
MaxFailures = Annotated[
    float | None,
    typer.Option(
        "--max-failures",
        metavar="N|SHARE",
        min=0,
        help="Stop when more lines have failed: a number, or a share of all lines such as 0.05.",
    ),
]
MaxOutputTokens = Annotated[
    int | None,
    typer.Option("--max-output-tokens", metavar="N", min=1, help="Stop when the answers have more tokens."),
]
MaxCost = Annotated[
    float | None,
    typer.Option("--max-cost", metavar="AMOUNT", min=0, help="Stop when the answers cost more."),
]
RecordAttempts = Annotated[
    bool, typer.Option("--record-attempts", help="Keep a record of each attempt to send a line.")
]


def batch_options(
    *,
    on_invalid: OnInvalidChoice | None,
    canary: int | None,
    canary_max_failed: float | None,
    canary_pause: bool,
    max_failures: float | None,
    max_output_tokens: int | None,
    max_cost: float | None,
    record_attempts: bool,
) -> "BatchOptions | None":
    """What the flags set; None if none is given, so that any OpenAI-compatible server can be used."""
    # Imported here: the openai package takes most of a second to import.
    from nightmill.client import BatchOptions, OnInvalid

    given = {
        "on_invalid": None if on_invalid is None else OnInvalid(on_invalid.value),
        "canary": canary,
        "canary_max_failed": canary_max_failed,
        "canary_pause": canary_pause or None,
        "max_failures": max_failures,
        "max_output_tokens": max_output_tokens,
        "max_cost": max_cost,
        "record_attempts": record_attempts or None,
    }
    set_ones: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    return BatchOptions(**set_ones) if set_ones else None
