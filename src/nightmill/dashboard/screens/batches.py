"""The screen "Batches": all batches, the unfinished first, and what can be done to many of them at once.

The whole view is in its address (`list_address`): filters, search and page. Rows, counts and the summary are
live.
"""

import asyncio
from collections.abc import Sequence
from typing import Any, Final
from urllib.parse import urlencode

from nightmill.dashboard.batch_rows import row_of, summary_of
from nightmill.dashboard.list_address import EVERY_PROJECT, UNFINISHED, ListAddress, api_query
from nightmill.dashboard.list_views import (
    applied_filters,
    chips,
    count_of,
    matching_of,
    menus,
    metadata_menu,
    ranges,
    views,
)
from nightmill.dashboard.navigation import BATCHES
from nightmill.dashboard.pages import LIVE_PARAMETER, Screen
from nightmill.dashboard.visit import Visit, screen

_ACTIVE_S: Final = 2.0
_IDLE_S: Final = 5.0
_SEARCH_S: Final = 1.0
_MOST_SHARE: Final = 0.05
"""An open page may keep the server busy for this part of the time."""
_LIST: Final = "/nightmill/v1/batches"
_LIVE: Final = ("summary", "chips", "matching", "rows")


async def show(visit: Visit) -> Screen:
    begun = visit.now
    address = ListAddress.of(visit.request.query_params.multi_items(), now=begun)
    pairs = address.api_pairs()
    page = {"limit": address.rows, "after": address.get("after"), "order": "unfinished_first"}
    found, by_status = await asyncio.gather(
        visit.api.get(_LIST, {**api_query(pairs), **page}),
        _facets(visit, address.api_pairs(without=("status",))),
    )
    matching = matching_of(address, by_status)
    facets = by_status
    # The menus, whose counts depend on the statuses too, are not live.
    if matching is None or (address.get("status") and LIVE_PARAMETER not in visit.request.query_params):
        facets = await _facets(visit, pairs)
        matching = int(facets["total"])
    is_of_all = address.get("project") == EVERY_PROJECT
    rows = [row_of(batch, shows_project=is_of_all) for batch in found["data"]]
    has_all = address.get("status") in (None, UNFINISHED)
    summary = summary_of(rows, unfinished=count_of(by_status, UNFINISHED) if has_all else None)
    document: dict[str, Any] = {
        "batches": rows,
        "summary": summary,
        "matching": matching,
        "filter": urlencode(pairs),
        "search": address.get("q") or "",
        "find_line": address.find_line(),
        "chips": chips(address, by_status),
        "ranges": ranges(address),
        "times": {"from": address.get("from") or "", "to": address.get("to") or ""},
        "menus": menus(address, facets),
        "metadata": metadata_menu(address, facets),
        "views": views(address),
        "applied": applied_filters(address),
        "filtered": bool(address.filters),
        "kept_pairs": {
            "search": address.hidden("q"),
            "times": address.hidden("range", "from", "to"),
            "metadata": address.hidden(),
        },
        "paging": {
            "number": address.page_number,
            "first": address.first_page if address.get("after") else None,
            "previous": address.page_before,
            "next": address.next_page(found["next_after"]) if found["next_after"] else None,
        },
    }
    return Screen(
        template="batches.html",
        title="Batches",
        document=document,
        live=_LIVE,
        every_s=max(_ACTIVE_S if summary["of_rows"] else _IDLE_S, (visit.now - begun) / _MOST_SHARE),
    )


async def _facets(visit: Visit, pairs: Sequence[tuple[str, str]]) -> dict[str, Any]:
    return await visit.api.get(f"{_LIST}/facets", api_query(pairs))


async def find(visit: Visit) -> Screen:
    """Lines with a custom_id, in the newest of the batches that match the rest of the address."""
    address = ListAddress.of(visit.request.query_params.multi_items(), now=visit.now)
    wanted = address.get("q")
    document: dict[str, Any] = {
        "search": wanted or "",
        "kept_pairs": address.hidden("q"),
        "applied": [one for one in applied_filters(address) if one["name"] != "q"],
        "lines": None,
    }
    if wanted is not None:
        pairs = [*address.api_pairs(without=("q",)), ("custom_id", wanted), ("within_s", str(_SEARCH_S))]
        found = await visit.api.get(f"{_LIST}/search", {**api_query(pairs), "after": address.get("after")})
        document["lines"] = {
            "found": [
                {"batch_id": one["batch"]["id"], "number": one["line"], "status": one["batch"]["status"]}
                for one in found["data"]
            ],
            "searched": found["searched"],
            "unreadable": found["unreadable"],
            "searched_to": found["searched_to"],
            "next": address.find_line(found["next_after"]) if found["next_after"] else None,
        }
    return Screen(template="find_line.html", title="Find a line", document=document)


routes = (
    screen("/", show, area=BATCHES),
    screen("/ui/find", find, area=BATCHES),
)
