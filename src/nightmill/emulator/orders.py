"""Words in a line that order a fault for it: `[emulate: 429]`, `[emulate: slow, delay 3]`.

They may stand in any text of the body. Several in a body follow each other: the first requests with this body
get the first fault, the next ones the second, and then the body is answered. The words hold no character that
JSON escapes, so they are found in the raw body.
"""

import re
from functools import lru_cache
from typing import Any, Final, cast, get_args

from msgspec import structs

from nightmill.emulator.content import BadBodyError
from nightmill.emulator.faults import Fault, Kind

MARK: Final = b"[emulate:"

_ORDER: Final = re.compile(rb"\[emulate:([^\]\"\\\[]{0,200})(\]?)")
_KINDS: Final = get_args(Kind)
_EXAMPLE: Final = "write for instance [emulate: 429, times 2] or [emulate: slow, delay 3]"
_OPTIONS: Final = "times, delay, retry-after, status and code"


def orders_in(body: bytes) -> list[Fault]:
    """The faults that a body orders, in the order of its text.

    Raises:
        BadBodyError: the words are no order.
    """
    found: list[Fault] = []
    for match in _ORDER.finditer(body):
        if not match[2]:
            raise BadBodyError(f"An order to the emulator has no end; {_EXAMPLE}.")
        found.append(_order(match[1].decode("utf-8", "replace").strip()))
    return found


@lru_cache(maxsize=1_024)
def _order(text: str) -> Fault:
    what, *options = [part.strip() for part in text.split(",")]
    if what in _KINDS:
        fault = Fault(cast("Kind", what))
    elif what.removeprefix("status ").isdecimal():
        fault = Fault("status", status=_status(what.removeprefix("status ")))
    else:
        raise BadBodyError(
            f"The emulator has no fault {what!r}; {_EXAMPLE}. The faults are a status, {', '.join(_KINDS)}."
        )
    changes: dict[str, Any] = {"times": None if fault.is_final else 1}
    for option in options:
        changes |= _option(option)
    return structs.replace(fault, **changes)


def _option(text: str) -> dict[str, Any]:
    name, _, value = text.partition(" ")
    value = value.strip()
    try:
        match name:
            case "times":
                return {"times": None if value == "always" else max(1, int(value))}
            case "delay":
                return {"delay_s": min(max(float(value.removesuffix("s")), 0.0), 3_600.0)}
            case "retry-after":
                return {"headers": {"retry-after": str(int(value.removesuffix("s")))}}
            case "status":
                return {"status": _status(value)}
            case "code":
                return {"code": value}
            case _:
                raise BadBodyError(f"An order to the emulator has no {name!r}, only {_OPTIONS}; {_EXAMPLE}.")
    except ValueError:
        raise BadBodyError(f"An order to the emulator has {name!r} without a number; {_EXAMPLE}.") from None


def _status(text: str) -> int:
    if not text.isdecimal() or not 200 <= int(text) <= 599:
        raise BadBodyError(f"An order to the emulator has the status {text!r}, and not one from 200 to 599.")
    return int(text)
