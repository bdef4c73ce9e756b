"""A fault that the emulator can inject. When it does is decided in `fault_plan`, how in `faulty_answers`."""

from typing import Annotated, Final, Literal, TypeAlias

import msgspec
from msgspec import Meta, Struct

from nightmill.core.failure import STATUSES, FailureKind
from nightmill.errors import SetupError

Kind: TypeAlias = Literal[
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
OF_THE_ANSWER: Final = frozenset({"refusal", "length", "content_filter", "empty"})
"""Kinds that change what a complete answer says. A model gives the same answer again."""


class Fault(Struct, frozen=True, forbid_unknown_fields=True):
    """A fault to inject.

    `match` is a text in the body ('' matches every body). `times` is the number of requests with the fault,
    None for all. `status`, `headers`, `code` and `body` apply to `status` and `html`, `location` to
    `redirect`, `delay_s` to `slow` (before the answer) and `trickle` (between two bytes).
    """

    fault: Kind
    match: str = ""
    times: Annotated[int, Meta(ge=1)] | None = 1
    status: int = 503
    code: str | None = None
    headers: dict[str, str] = {}
    body: str | None = None
    location: str = "/elsewhere"
    delay_s: float = 1.0

    @property
    def is_final(self) -> bool:
        """Whether a real server would answer the same request in the same way again."""
        if self.fault in OF_THE_ANSWER:
            return True
        return self.fault == "status" and STATUSES.get(self.status) is FailureKind.REQUEST


def read_faults(text: str) -> list[Fault]:
    """Raises SetupError when the JSON is not a list of faults."""
    try:
        return msgspec.json.decode(text, type=list[Fault])
    except msgspec.DecodeError as invalid:
        raise SetupError(f"the emulator's faults can't be read: {invalid}") from None
