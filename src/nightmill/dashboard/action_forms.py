"""From the fields of a form to the order of an action, as the API takes it.

A form names batches by `ids`, or by `filter`: the query with which `GET /nightmill/v1/batches` lists them. No
I/O.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, cast
from urllib.parse import parse_qsl

from nightmill.core.batch import Status
from nightmill.core.steering import SteeringAction
from nightmill.errors import RequestError

WAIT_S: Final = 10.0
"""A cancellation and a retry can't be undone, so they can be called off for so long."""

_WAITING: Final = (SteeringAction.CANCEL, SteeringAction.RETRY)
_NUMBERS: Final[Mapping[str, type[int] | type[float]]] = {
    "created_after": int,
    "created_before": int,
    "priority": int,
    "older_than_s": float,
}
_TEXTS: Final = ("endpoint", "model", "upstream", "q", "id_prefix")
_PAGING: Final = ("limit", "after", "order")
_VALUES: Final = {
    SteeringAction.PRIORITIZE: "priority",
    SteeringAction.DEADLINE: "deadline_in_s",
    SteeringAction.LIMIT: "concurrency",
}
_EVERY_STATUS: Final = [status.value for status in Status]


class Fields(Protocol):
    """The fields of a form, or of the query of an address."""

    def get(self, name: str) -> str: ...
    def all(self, name: str) -> list[str]: ...


@dataclass(frozen=True, slots=True)
class ActionForm:
    """An action that a person has chosen.

    Args:
        filter: the query of the list; None where `ids` are given.
        next: the page to go back to, as the form says.
    """

    action: SteeringAction
    ids: Sequence[str]
    filter: str | None
    values: Mapping[str, Any]
    next: str

    @classmethod
    def of(cls, fields: Fields) -> "ActionForm":
        """Raises RequestError when the form names no action or no batches."""
        try:
            action = SteeringAction(fields.get("action"))
        except ValueError:
            message = "Choose batches in the list first, and then what to do with them."
            raise RequestError(message, param="action", code="invalid_value") from None
        filters = fields.all("filter")
        ids = [] if filters else [batch_id for batch_id in fields.all("ids") if batch_id]
        if not filters and not ids:
            message = "No batch is selected. Go back, select some, and repeat the action."
            raise RequestError(message, param="ids", code="invalid_value")
        return cls(action, ids, filters[0] if filters else None, _values(action, fields), fields.get("next"))

    @property
    def delay_s(self) -> float:
        return WAIT_S if self.action in _WAITING else 0.0

    def order(self, *, is_admin: bool) -> dict[str, Any]:
        """The body of `POST /nightmill/v1/batches/actions`.

        Args:
            is_admin: an admin key reaches the batches that its pages show, whichever project they are of.
        """
        body: dict[str, Any] = {"action": self.action, **self.values}
        if self.filter is None:
            return {**body, "ids": list(self.ids), **({"project": "*"} if is_admin else {})}
        chosen, project = filter_of_query(self.filter)
        return {**body, "filter": chosen, **({} if project is None else {"project": project})}

    def pairs(self) -> list[tuple[str, str]]:
        """The fields of the form, to send it again."""
        chosen = [("ids", batch_id) for batch_id in self.ids] if self.filter is None else []
        values = [(name, text) for name, value in self.values.items() for text in _texts(value)]
        filters = [] if self.filter is None else [("filter", self.filter)]
        return [("action", self.action.value), *chosen, *filters, *values, ("next", self.next)]


def filter_of_query(query: str) -> tuple[dict[str, Any], str | None]:
    """The filter as the body of an order has it, and the project.

    Raises:
        RequestError: a part is unknown. It is never left out, because more batches would match.
    """
    chosen: dict[str, Any] = {}
    project = None
    for name, value in parse_qsl(query):
        if name == "status":
            chosen.setdefault("status", []).append(value)
        elif name == "metadata" and "=" in value:
            key, _, text = value.partition("=")
            chosen.setdefault("metadata", {})[key] = text
        elif name == "paused" and value in ("true", "false"):
            chosen["paused"] = value == "true"
        elif name == "project":
            project = value
        elif name in _TEXTS:
            chosen[name] = value
        elif name in _NUMBERS:
            chosen[name] = _number(name, value, _NUMBERS[name])
        elif name not in _PAGING:
            raise RequestError(f"The filter has an unknown part '{name[:40]}'.", param="filter")
    return chosen or {"status": _EVERY_STATUS}, project


def _values(action: SteeringAction, fields: Fields) -> dict[str, Any]:
    if action is SteeringAction.RETRY:
        lines = {"codes": fields.all("codes"), "outcomes": fields.all("outcomes")}
        return {name: given for name, given in lines.items() if given}
    name = _VALUES.get(action)
    if name is None:
        return {}
    text = fields.get(name)
    if name == "concurrency" and not text:
        return {name: None}
    return {name: _number(name, text, int)}


def _texts(value: Any) -> list[str]:
    """The values of a field."""
    if isinstance(value, list):
        return [str(one) for one in cast("list[Any]", value)]
    return ["" if value is None else str(value)]


def _number(name: str, text: str, kind: type[int] | type[float]) -> int | float:
    try:
        return kind(text)
    except ValueError:
        message = f"'{name}' is not a number: '{text[:40]}'."
        raise RequestError(message, param=name, code="invalid_value") from None
