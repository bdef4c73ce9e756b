"""What stands around the list of batches: status chips, menus of values with their counts, quick ranges,
views, and the filters that apply. No I/O.

Each is a link to the same page with another address. Counts come from the facets of the API.
"""

from collections.abc import Mapping
from typing import Any, Final

from nightmill.dashboard.list_address import (
    EVERY_PROJECT,
    FACETS,
    NIGHT,
    OPEN_STATUSES,
    PAUSED,
    RANGES,
    UNFINISHED,
    ListAddress,
    statuses_of,
)

_STATUSES: Final = (
    UNFINISHED,
    "in_progress",
    PAUSED,
    "validating",
    "finalizing",
    "cancelling",
    "completed",
    "failed",
    "expired",
    "cancelled",
)
_ENDED_BADLY: Final = ("failed", "expired")
_NAMES: Final[Mapping[str, str]] = {
    "model": "Model",
    "endpoint": "Endpoint",
    "upstream": "Upstream",
    "project": "Project",
    "metadata": "Metadata",
}
_MOST_VALUES: Final = 12

Facets = Mapping[str, Any]


def chips(address: ListAddress, facets: Facets) -> list[dict[str, Any]]:
    """A chip for each status, with how many batches have it under the rest of the filter.

    Args:
        facets: counted without the statuses of the address.
    """
    chosen = address.all("status")
    found = [_chip("All", facets["total"], is_chosen=not chosen, href=address.lacking("status"))]
    for status in _STATUSES:
        is_chosen = status in chosen
        href = address.lacking("status", status) if is_chosen else address.having("status", status)
        found.append(
            _chip(
                status.replace("_", " ").capitalize(),
                count_of(facets, status),
                is_chosen=is_chosen,
                href=href,
                status=status,
            )
        )
    return found


def _chip(label: str, count: int, *, is_chosen: bool, href: str, status: str | None = None) -> dict[str, Any]:
    return {"label": label, "status": status, "count": count, "is_chosen": is_chosen, "href": href}


def count_of(facets: Facets, status: str) -> int:
    """How many batches a chip stands for. Paused batches are not counted as in progress too."""
    statuses: Mapping[str, int] = {item["value"]: item["count"] for item in facets["status"]}
    paused = int(facets["paused"])
    if status == UNFINISHED:
        return sum(statuses.get(name, 0) for name in OPEN_STATUSES)
    if status == PAUSED:
        return paused
    return max(0, statuses.get(status, 0) - (paused if status == "in_progress" else 0))


def matching_of(address: ListAddress, facets: Facets) -> int | None:
    """How many batches the address means, by the counts of `chips`; None where they do not say it."""
    chosen = address.all("status")
    match chosen:
        case []:
            return int(facets["total"])
        case [one]:
            return count_of(facets, one)
        case _ if PAUSED in chosen:
            return None
        case _:
            wanted = {name for one in chosen for name in statuses_of(one)}
            return sum(item["count"] for item in facets["status"] if item["value"] in wanted)


def ranges(address: ListAddress) -> list[dict[str, Any]]:
    """The quick ranges of the time of creation."""
    chosen = address.get("range")
    return [
        {
            "name": name,
            "label": label.capitalize(),
            "is_chosen": name == chosen,
            "href": address.lacking("range") if name == chosen else address.having("range", name),
        }
        for name, label in RANGES.items()
    ]


def menus(address: ListAddress, facets: Facets) -> list[dict[str, Any]]:
    """A menu for each facet but the metadata, with its values and their counts."""
    found: list[dict[str, Any]] = []
    for name in FACETS:
        if name == "metadata":
            continue
        chosen = address.get(name)
        items = [_item(address, name, item) for item in facets[name]]
        if name == "project" and items:
            items.insert(0, _every_project(address, chosen))
        found.append({"name": name, "label": _NAMES[name], "items": items, "chosen": chosen})
    return found


def _item(address: ListAddress, name: str, item: Mapping[str, Any]) -> dict[str, Any]:
    value = str(item["value"])
    is_chosen = address.get(name) == value
    href = address.lacking(name) if is_chosen else address.having(name, value)
    return {"value": value, "count": item["count"], "is_chosen": is_chosen, "href": href}


def _every_project(address: ListAddress, chosen: str | None) -> dict[str, Any]:
    is_chosen = chosen == EVERY_PROJECT
    href = address.lacking("project") if is_chosen else address.having("project", EVERY_PROJECT)
    return {"value": "all projects", "count": None, "is_chosen": is_chosen, "href": href}


def metadata_menu(address: ListAddress, facets: Facets) -> list[dict[str, Any]]:
    """The keys of metadata, each with its most frequent values."""
    return [
        {
            "key": group["key"],
            "items": [_pair(address, group["key"], item) for item in group["values"][:_MOST_VALUES]],
        }
        for group in facets["metadata"]
    ]


def _pair(address: ListAddress, key: str, item: Mapping[str, Any]) -> dict[str, Any]:
    pair = f"{key}={item['value']}"
    is_chosen = pair in address.all("metadata")
    href = address.lacking("metadata", pair) if is_chosen else address.adding("metadata", pair)
    return {"value": item["value"], "count": item["count"], "is_chosen": is_chosen, "href": href}


def views(address: ListAddress) -> list[dict[str, str]]:
    """Views that answer a common question, for every project of the address."""
    bare = ListAddress(tuple(pair for pair in address.pairs if pair[0] in ("project", "tz")), address.now)
    night = ListAddress((*bare.pairs, ("range", NIGHT)), address.now)
    wrong = ListAddress((*bare.pairs, *(("status", name) for name in _ENDED_BADLY)), address.now)
    return [
        {"label": "What runs now", "href": bare.having("status", UNFINISHED)},
        {"label": "What came in last night", "href": bare.having("range", NIGHT)},
        {"label": "What failed or expired last night", "href": wrong.having("range", NIGHT)},
        {"label": "What is paused", "href": bare.having("status", PAUSED)},
        {"label": "What completed last night", "href": night.having("status", "completed")},
    ]


def applied_filters(address: ListAddress) -> list[dict[str, str]]:
    """Each filter of the address in words, with the address of the view without it. Status chips and the
    project show themselves."""
    found: list[dict[str, str]] = []
    for name, value in address.filters:
        if name == "status":
            continue
        text = {
            "q": f"contains “{value}”",
            "range": RANGES.get(value, value),
            "from": f"created from {value.replace('T', ' ')}",
            "to": f"created before {value.replace('T', ' ')}",
        }.get(name, f"{name}: {value}")
        found.append({"name": name, "text": text, "href": address.lacking(name, value)})
    return found
