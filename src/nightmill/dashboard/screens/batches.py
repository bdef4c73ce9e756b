"""The screen "Batches": all batches, the unfinished first, and what can be done to many of them at once.

The whole view is in its address (`list_address`): filters, search and page. Rows, counts and the summary are
live.
"""

from collections.abc import Sequence
from typing import Any, Final
from urllib.parse import urlencode

from nightmill.dashboard.batch_rows import row_of, summary_of
from nightmill.dashboard.list_address import EVERY_PROJECT, IN_LINES, UNFINISHED, ListAddress, api_query
from nightmill.dashboard.list_views import (
    applied_filters,
    chips,
    count_of,
    menus,
    metadata_menu,
    ranges,
    views,
)
from nightmill.dashboard.navigation import BATCHES
from nightmill.dashboard.pages import Screen
from nightmill.dashboard.visit import Visit, screen

_ACTIVE_S: Final = 2.0
_IDLE_S: Final = 5.0
_LIST: Final = "/nightmill/v1/batches"
_LIVE: Final = ("summary", "chips", "matching", "rows")


async def show(visit: Visit) -> Screen:
    address = ListAddress.of(visit.request.query_params.multi_items(), now=visit.now)
    pairs = address.api_pairs()
    found = await visit.api.get(
        _LIST,
        {
            **api_query(pairs),
            "limit": address.rows,
            "after": address.get("after"),
            "order": "unfinished_first",
        },
    )
    facets = await _facets(visit, pairs)
    by_status = facets
    if address.get("status") is not None:
        by_status = await _facets(visit, address.api_pairs(without=("status",)))
    rows = [row_of(batch, shows_project=address.get("project") == EVERY_PROJECT) for batch in found["data"]]
    summary = summary_of(rows, unfinished=count_of(facets, UNFINISHED))
    document: dict[str, Any] = {
        "batches": rows,
        "summary": summary,
        "matching": facets["total"],
        "filter": urlencode(pairs),
        "search": {"text": address.get("q") or "", "in_lines": address.get("in") == IN_LINES},
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
        every_s=_ACTIVE_S if summary["of_rows"] else _IDLE_S,
    )


async def _facets(visit: Visit, pairs: Sequence[tuple[str, str]]) -> dict[str, Any]:
    return await visit.api.get(f"{_LIST}/facets", api_query(pairs))


routes = (screen("/", show, area=BATCHES),)
