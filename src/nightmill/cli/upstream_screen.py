"""Upstreams as tables of 80 columns, from the JSON of the server."""

from collections.abc import Iterator, Sequence
from typing import Any, Final, cast

from nightmill.cli.screen import clean, local_time, out, out_fields, out_sentence, out_table, say

Tree = dict[str, Any]

_COLUMNS: Final = 80
_NAME, _MODEL, _LEAST_WHY = 16, 22, 12
_GAP = 2


def print_list(upstreams: Sequence[Tree], problems: Sequence[Tree]) -> None:
    """One row for each upstream, and one more for each further model in use; then advice and problems."""
    rows = [row for upstream in upstreams for row in _rows(upstream)]
    headings = ("NAME", "STATE", "MODEL", "IN FLIGHT", "WHY")
    fixed = sum(max(len(row[column]) for row in [headings, *rows]) for column in range(4))
    why = max(_LEAST_WHY, _COLUMNS - fixed - 4 * _GAP)
    out_table(headings, [(*row[:4], _cut(row[4], why)) for row in rows])
    for upstream in upstreams:
        for model in _models(upstream):
            if model["advice"]:
                say(f"{upstream['name']}: {clean(model['advice'])}")
    for problem in problems:
        say(f"{problem['name']} can't be read by this version: {clean(problem['message'])}")


def print_one(upstream: Tree) -> None:
    """Every setting that is set, and what the workers report."""
    live = upstream["live"]
    apart = {"object", "live", "name", "url", "state", "origin", "revision", "has_api_key"}
    out_fields(
        [
            ("name", upstream["name"]),
            ("url", upstream.get("url")),
            ("state", upstream["state"]),
            ("settings from", upstream["origin"]),
            ("revision", str(upstream["revision"])),
            ("api_key", "set" if upstream.get("has_api_key") else None),
            *((name, _text(value)) for name, value in upstream.items() if name not in apart),
            *(_live_fields(live) if live else [("workers", "none reports it")]),
        ]
    )
    for model in _models(upstream):
        out(f"{_model_name(model)}: {_share(model['in_flight'], model['limit'])} in flight, {_why(model)}")
        for sentence in filter(None, (model["why"], model["advice"])):
            out_sentence(f"  {clean(sentence)}")


def print_trial(found: Tree) -> None:
    """One line for each step, and whether the upstream is usable."""
    for step in found["steps"]:
        out_sentence(
            f"{'ok' if step['is_ok'] else 'failed':6}  {clean(step['name']):10}  {clean(step['text'])}"
        )
    say(f"{found['name']} {'can be used' if found['is_usable'] else 'cannot be used as it is'}")


def _live_fields(live: Tree) -> Iterator[tuple[str, str | None]]:
    yield "workers", str(live["workers"])
    yield "in flight", str(live["in_flight"])
    yield "waiting", str(live["waiting"])
    yield "listed models", _text(live["listed_models"])
    yield "reported", local_time(int(live["reported_at"]))
    gauges: Tree = live["gauges"] or {}
    for name, value in gauges.items():
        yield f"engine {name}".replace("engine engine", "engine"), _text(value)


def _rows(upstream: Tree) -> Iterator[tuple[str, str, str, str, str]]:
    name, state = _cut(upstream["name"], _NAME), upstream["state"]
    models = _models(upstream)
    if not models:
        why = "" if upstream["live"] else "no worker reports it"
        in_flight = str(upstream["live"]["in_flight"]) if upstream["live"] else "-"
        yield name, state, _cut(_offered(upstream), _MODEL), in_flight, why
    for number, model in enumerate(models):
        share = _share(model["in_flight"], model["limit"])
        row = (_cut(_model_name(model), _MODEL), share, _why(model))
        yield (name, state, *row) if number == 0 else ("", "", *row)


def _models(upstream: Tree) -> Sequence[Tree]:
    return upstream["live"]["per_model"] if upstream["live"] else ()


def _offered(upstream: Tree) -> str:
    live: Tree = upstream["live"] or {}
    models: Sequence[str] = upstream.get("models") or live.get("listed_models") or ()
    more = f" +{len(models) - 1}" if len(models) > 1 else ""
    return f"{models[0]}{more}" if models else "-"


def _model_name(model: Tree) -> str:
    return "all" if model["model"] is None else clean(model["model"])


def _share(in_flight: int, limit: int | None) -> str:
    return str(in_flight) if limit is None else f"{in_flight}/{limit}"


def _why(model: Tree) -> str:
    """The reason of the limit, or of the hold."""
    held: Tree | None = model["held"]
    if held is not None:
        return f"held: {clean(held['reason'])}"
    if model["rule"]:
        return clean(model["rule"])
    return "" if model["limit"] is None else "fixed by the settings"


def _text(value: object) -> str | None:
    """A value in words; None for one that is not set."""
    match value:
        case None:
            return None
        case list():
            return ", ".join(map(str, cast("list[object]", value))) or None
        case dict():
            members = cast("dict[str, object]", value)
            return ", ".join(f"{name}={below}" for name, below in members.items()) or None
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:g}"
        case _:
            return str(value) or None


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
