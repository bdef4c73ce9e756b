"""The filter of the list of batches as it stands in the address of its page.

`./?status=failed&model=llama3.2&range=night` is a view that can be kept as a bookmark: a range such as the
last night is reckoned from the time at which the page is read. `ListAddress` gives the parameters of the API
for an address, and the addresses that are one click away. No I/O.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Final
from urllib.parse import urlencode
from zoneinfo import ZoneInfo

from nightmill.errors import RequestError

UNFINISHED: Final = "unfinished"
PAUSED: Final = "paused"
OPEN_STATUSES: Final = ("validating", "in_progress", "finalizing", "cancelling")
EVERY_PROJECT: Final = "*"
FIND: Final = "ui/find"
NIGHT: Final = "night"
RANGES: Final[Mapping[str, str]] = {
    "1h": "last hour",
    NIGHT: "last night",
    "24h": "last 24 h",
    "7d": "last 7 days",
    "30d": "last 30 days",
}
FACETS: Final = ("model", "endpoint", "upstream", "project", "metadata")
"""Parameters whose values the page offers with their counts."""

_RANGE_S: Final[Mapping[str, int]] = {"1h": 3_600, "24h": 86_400, "7d": 604_800, "30d": 2_592_000}
_NIGHT_ENDS_H: Final = 8
_NIGHT: Final = timedelta(hours=16)
_STEP_S: Final = 60
_REPEATED: Final = ("status", "metadata")
_KNOWN: Final = ("q", "status", *FACETS, "range", "from", "to", "tz", "rows", "after", "back")
_PAGING: Final = ("after", "back")
_NO_FILTER: Final = (*_PAGING, "tz", "rows")
_MOST_BACK: Final = 30
_ROWS: Final = 50
_MOST_ROWS: Final = 100
_LONGEST: Final = 1_000


@dataclass(frozen=True, slots=True)
class ListAddress:
    """The query of an address, as names and values.

    Args:
        pairs: those that the page knows, in the order of the address.
        now: Unix seconds.
    """

    pairs: tuple[tuple[str, str], ...]
    now: float

    @classmethod
    def of(cls, pairs: Iterable[tuple[str, str]], *, now: float) -> "ListAddress":
        """Of the query of a request.

        Raises:
            RequestError: a range, a time or a number can't be read. A page that showed more batches than
                were asked for would let an action reach them.
        """
        kept: dict[tuple[str, str], None] = {}
        for name, given in pairs:
            value = given.strip()[:_LONGEST]
            if name not in _KNOWN or not value:
                continue
            if name not in _REPEATED and name != "back":
                kept = {pair: None for pair in kept if pair[0] != name}
            kept[name, value] = None
        address = cls(tuple(kept), now)
        address.created()
        _ = address.rows
        return address

    def get(self, name: str) -> str | None:
        return next((value for given, value in self.pairs if given == name), None)

    def all(self, name: str) -> list[str]:
        return [value for given, value in self.pairs if given == name]

    @property
    def filters(self) -> tuple[tuple[str, str], ...]:
        """The pairs that leave batches out."""
        return tuple(pair for pair in self.pairs if pair[0] not in _NO_FILTER)

    @property
    def rows(self) -> int:
        """How many batches a page has. Raises RequestError."""
        value = self.get("rows") or str(_ROWS)
        if not value.isascii() or not value.isdigit() or not 1 <= int(value) <= _MOST_ROWS:
            message = f"'rows' must be a number from 1 to {_MOST_ROWS}."
            raise RequestError(message, param="rows", code="invalid_value")
        return int(value)

    @property
    def zone(self) -> tzinfo:
        """The time zone in which the address was made; UTC if this machine does not know it."""
        try:
            return ZoneInfo(self.get("tz") or "UTC")
        except (ValueError, KeyError, OSError):
            return UTC

    # --- for the API ------------------------------------------------------------------------------------

    def created(self) -> tuple[int | None, int | None]:
        """The bounds of the creation, in Unix seconds. Raises RequestError."""
        name = self.get("range")
        if name is None:
            return self._moment("from"), self._moment("to")
        if name == NIGHT:
            begin, end = night_before(self.now, self.zone)
            return int(begin), int(end)
        if name not in _RANGE_S:
            raise RequestError(
                f"There is no range '{name[:40]}'. Use one of: {', '.join(RANGES)}.",
                param="range",
                code="invalid_value",
            )
        # In steps, so that the addresses of a page that is open do not change every second.
        return int(self.now) // _STEP_S * _STEP_S - _RANGE_S[name], None

    def _moment(self, name: str) -> int | None:
        value = self.get(name)
        if value is None:
            return None
        try:
            found = datetime.fromisoformat(value)
            return int((found if found.tzinfo else found.replace(tzinfo=self.zone)).timestamp())
        except (ValueError, OverflowError, OSError):
            message = f"'{name}' is no time: '{value[:40]}'. Write it like 2026-11-29T22:00."
            raise RequestError(message, param=name, code="invalid_value") from None

    def api_pairs(self, *, without: Sequence[str] = ()) -> list[tuple[str, str]]:
        """The filter as parameters of `GET /nightmill/v1/batches`.

        Args:
            without: names of parameters of the address that are left out.
        """
        found: list[tuple[str, str]] = []
        if "status" not in without:
            found += _statuses(self.all("status"))
        for name in ("q", *FACETS):
            if name not in without:
                found += [(name, value) for value in self.all(name)]
        after, before = self.created()
        if after is not None and "range" not in without:
            found.append(("created_after", str(after)))
        if before is not None and "range" not in without:
            found.append(("created_before", str(before)))
        return found

    # --- addresses of the page ------------------------------------------------------------------------

    def having(self, name: str, value: str) -> str:
        """The same view with this value in place of others of the name, on its first page."""
        dropped = {name, *_PAGING, *(("from", "to") if name == "range" else ())}
        return _url([*(pair for pair in self.pairs if pair[0] not in dropped), (name, value)])

    def adding(self, name: str, value: str) -> str:
        """The same view with one more value of the name."""
        kept = [pair for pair in self.pairs if pair[0] not in _PAGING and pair != (name, value)]
        return _url([*kept, (name, value)])

    def lacking(self, name: str, value: str | None = None) -> str:
        """The same view without the name, or without one of its values."""
        return _url(
            pair
            for pair in self.pairs
            if pair[0] not in _PAGING and (pair[0] != name or (value is not None and pair[1] != value))
        )

    def next_page(self, after: str) -> str:
        """The page behind a batch."""
        behind = self.all("back")[-_MOST_BACK:]
        kept = [pair for pair in self.pairs if pair[0] not in _PAGING]
        here = self.get("after")
        return _url(
            [*kept, *(("back", one) for one in [*behind, *([here] if here else [])]), ("after", after)]
        )

    @property
    def page_before(self) -> str | None:
        """The page from which this one was reached; None on the first."""
        if self.get("after") is None:
            return None
        *earlier, last = self.all("back") or [""]
        kept = [pair for pair in self.pairs if pair[0] not in _PAGING]
        paging = [*(("back", one) for one in earlier), *([("after", last)] if last else [])]
        return _url([*kept, *paging])

    @property
    def page_number(self) -> int | None:
        """From 1; None where the address no longer holds all pages before."""
        if self.get("after") is None:
            return 1
        before = len(self.all("back"))
        return before + 2 if before < _MOST_BACK else None

    @property
    def first_page(self) -> str:
        """The first page of the same view."""
        return _url(pair for pair in self.pairs if pair[0] not in _PAGING)

    def find_line(self, after: str | None = None) -> str:
        """The page that searches the lines of these batches for a custom_id.

        Args:
            after: where the search goes on.
        """
        kept = [pair for pair in self.pairs if pair[0] not in _PAGING]
        return _url([*kept, *([("after", after)] if after else [])], FIND)

    def hidden(self, *names: str) -> list[dict[str, str]]:
        """The pairs that a form of the page repeats, without the names that it sets itself."""
        return [
            {"name": name, "value": value} for name, value in self.pairs if name not in (*names, *_PAGING)
        ]


def night_before(now: float, zone: tzinfo) -> tuple[float, float]:
    """From 16:00 of the day before to 08:00 of today, in Unix seconds: what is left to run over night."""
    today = datetime.fromtimestamp(now, zone)
    end = today.replace(hour=_NIGHT_ENDS_H, minute=0, second=0, microsecond=0)
    return (end - _NIGHT).timestamp(), end.timestamp()


def api_query(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Pairs by name, as `ApiCalls.get` takes them."""
    found: dict[str, list[str]] = {}
    for name, value in pairs:
        found.setdefault(name, []).append(value)
    return found


def _statuses(given: Sequence[str]) -> list[tuple[str, str]]:
    """`paused` is no status of the API: a paused batch is in progress, or is being validated."""
    wanted = dict.fromkeys(one for name in given for one in statuses_of(name))
    found = [("status", name) for name in wanted if name != PAUSED]
    if PAUSED in wanted:
        found.append((PAUSED, "true"))
    elif given == ["in_progress"]:
        found.append((PAUSED, "false"))
    return found


def statuses_of(name: str) -> Sequence[str]:
    """The statuses that a name in an address stands for."""
    return OPEN_STATUSES if name == UNFINISHED else (name,)


def _url(pairs: Iterable[tuple[str, str]], path: str = "./") -> str:
    query = urlencode(list(pairs))
    return f"{path}?{query}" if query else path
