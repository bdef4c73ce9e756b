"""The form of a new batch: its fields as they are written, and the request that they make. No I/O."""

from collections.abc import Mapping
from math import isfinite
from typing import Any, Final

from nightmill.dashboard.visit import Form

UNTOUCHED: Final[Mapping[str, str]] = {
    "endpoint": "",
    "window": "",
    "metadata": "",
    "priority": "0",
    "start": "wait",
    "canary": "5",
    "canary_max_failed": "10",
    "max_failures": "",
    "max_output_tokens": "",
    "max_cost": "",
    "record_attempts": "",
    "on_invalid": "",
}
"""The fields as the page first shows them. `start` is `wait` (for a person, after the first lines), `go_on`
(if few of the first lines fail) or `all`."""


class WrongFieldError(Exception):
    """A field can't be read."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


def fields_of(form: Form) -> dict[str, str]:
    """The fields that the form has, as they were written."""
    return {name: form.get(name) for name in UNTOUCHED}


def batch_of(fields: Mapping[str, str], file_id: str) -> dict[str, Any]:
    """The body of the request that creates the batch. Raises WrongFieldError."""
    own: dict[str, Any] = {}
    if fields["on_invalid"] == "skip":
        own["on_invalid"] = "skip"
    if (priority := _whole(fields, "priority", "the priority")) is not None:
        own["priority"] = priority
    if fields["start"] in ("wait", "go_on"):
        own["canary"] = _whole(fields, "canary", "the number of first lines") or 0
        if fields["start"] == "wait":
            # A person sees the failures and decides.
            own |= {"canary_pause": True, "canary_max_failed": 1.0}
        elif (percent := _number(fields, "canary_max_failed", "the share that may fail")) is not None:
            own["canary_max_failed"] = percent / 100
    failures = fields["max_failures"]
    if failures.endswith("%"):
        share = _read(failures.removesuffix("%"), float, "the most failed lines")
        own["max_failures"] = share / 100
    elif failures:
        own["max_failures"] = float(_read(failures, int, "the most failed lines"))
    if (tokens := _whole(fields, "max_output_tokens", "the most output tokens")) is not None:
        own["max_output_tokens"] = tokens
    if (cost := _number(fields, "max_cost", "the most cost")) is not None:
        own["max_cost"] = cost
    if fields["record_attempts"]:
        own["record_attempts"] = True
    created: dict[str, Any] = {
        "input_file_id": file_id,
        "endpoint": fields["endpoint"],
        "completion_window": fields["window"],
        "nightmill": own,
    }
    if metadata := _pairs(fields["metadata"]):
        created["metadata"] = metadata
    return created


def _pairs(text: str) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        key, equals, value = line.partition("=")
        if not equals or not key.strip():
            raise WrongFieldError("Write each line of the metadata as key = value.")
        pairs[key.strip()] = value.strip()
    return pairs


def _whole(fields: Mapping[str, str], name: str, what: str) -> int | None:
    return _read(fields[name], int, what) if fields[name] else None


def _number(fields: Mapping[str, str], name: str, what: str) -> float | None:
    return _read(fields[name], float, what) if fields[name] else None


def _read(text: str, kind: type[Any], what: str) -> Any:
    try:
        value = kind(text.replace(",", "").replace("\u2009", ""))
    except ValueError:
        raise WrongFieldError(f"Write {what} as a number; '{text[:20]}' is none.") from None
    if not isfinite(value):
        raise WrongFieldError(f"Write {what} as a number; '{text[:20]}' is none.")
    return value
