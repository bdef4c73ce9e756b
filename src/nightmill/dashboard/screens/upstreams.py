"""The screens of upstreams: all of them, one over time, and what a test of one found."""

from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import quote

from starlette.responses import Response

from nightmill.dashboard.calls import path_of
from nightmill.dashboard.navigation import UPSTREAMS
from nightmill.dashboard.pages import Screen, respond
from nightmill.dashboard.visit import ActionFunction, Visit, action, screen

_Document = dict[str, Any]

RANGES: Final = {"10 minutes": 600, "6 hours": 21_600, "7 days": 604_800}
_DEFAULT_RANGE_S: Final = 600
_MOST_TRENDS: Final = 12
"""Upstreams whose trend is drawn in the list; each is a query."""
_MODELS_SHOWN: Final = 3
_TREND_WIDTH: Final = 120
_TREND_HEIGHT: Final = 24
_EVERY_S: Final = 4.0
_DONE: Final = {
    "pause": "{} is paused. Attempts in flight finish; lines that only it can answer wait.",
    "drain": "{} drains. Attempts in flight finish, and other upstreams with its models take its lines.",
    "resume": "{} is active. Lines are sent again within seconds.",
    "reset": "{} is as in the settings file again.",
}
_FIXED: Final = "The settings fix this limit."
_NOT_REPORTED: Final[_Document] = {
    "workers": 0,
    "in_flight": 0,
    "waiting": 0,
    "per_model": [],
    "gauges": None,
    "listed_models": None,
    "listed_models_read_at": None,
}
_SHOWN_APART: Final = frozenset({"object", "name", "state", "revision", "origin", "url", "live", "recent"})


async def show(visit: Visit) -> Screen:
    found = await visit.api.get(path_of("nightmill", "v1", "upstreams"))
    upstreams: list[_Document] = found["data"]
    for number, upstream in enumerate(upstreams):
        samples = await _samples(visit, upstream["name"]) if number < _MOST_TRENDS else []
        upstream.update(_summary(upstream))
        upstream["trend"] = trend([sample["answered_per_s"] for sample in samples])
    document = {"upstreams": upstreams, "problems": found["problems"], "totals": _totals(upstreams)}
    return Screen(
        template="upstreams.html", title="Upstreams", document=document, live=("rows",), every_s=_EVERY_S
    )


async def show_one(visit: Visit) -> Screen:
    name = visit.path("name")
    upstream = await visit.api.get(path_of("nightmill", "v1", "upstreams", name))
    over_s = _range_of(visit.query("over"))
    path = path_of("nightmill", "v1", "upstreams", name, "samples")
    found = await visit.api.get(path, {"over_s": over_s})
    document = {
        "upstream": {**upstream, **_summary(upstream)},
        "settings": {
            key: value
            for key, value in upstream.items()
            if key not in _SHOWN_APART and value not in (None, [], {}, "")
        },
        "over_s": over_s,
        "ranges": RANGES,
        "plots": plots_of(found["data"]),
        "limit_changes": found["limit_changes"],
    }
    return Screen(
        template="upstream.html",
        title=f"Upstream {name}",
        document=document,
        live=("head", "figures", "plots", "changes"),
        every_s=_EVERY_S,
    )


def changing(verb: str) -> ActionFunction:
    """Pauses, drains, resumes or resets, and goes back to the page of the button."""

    async def change(visit: Visit) -> Response:
        name = visit.path("name")
        form = await visit.form()
        done = await visit.api.post(path_of("nightmill", "v1", "upstreams", name, verb))
        is_removed = bool(done.get("deleted"))
        notice = f"{name} is removed: it was added at run time." if is_removed else _DONE[verb].format(name)
        is_listed = form.get("from") == "list" or is_removed
        target = "ui/upstreams" if is_listed else f"ui/upstreams/{quote(name, safe='')}"
        return visit.redirect(target, notice=notice)

    return change


async def test(visit: Visit) -> Response:
    """Asks the upstream now, which may take a minute, and shows each step."""
    name = visit.path("name")
    found = await visit.api.post(path_of("nightmill", "v1", "upstreams", name, "test"))
    shown = Screen(template="upstream_test.html", title=f"Test of {name}", document={"test": found})
    return respond(visit.request, shown, area=UPSTREAMS.name, shows_content=visit.shows_content)


def health_of(upstream: Mapping[str, Any]) -> tuple[str, str]:
    """The state of an upstream as a word, and why it is not simply active."""
    live = upstream["live"]
    if upstream["state"] == "paused":
        return "paused", "No attempt starts; lines that only it can answer wait."
    if upstream["state"] == "draining":
        return "draining", "No attempt starts; others with its models take its lines."
    if live is None:
        return "away", "No worker reports it."
    if live["stalled"]:
        return "held", f"Answers can't be written: {live['stalled']}"
    holds = [model for model in live["per_model"] if model["held"]]
    if holds:
        first = holds[0]
        words = f"{first['model']}: {first['held']['reason']}" if first["model"] else first["held"]["reason"]
        return "held", words + (f" (and {len(holds) - 1} more models)" if len(holds) > 1 else "")
    limited_by = live["rate_limit"]
    return "active", f"Attempts wait because of {limited_by}." if limited_by else ""


def trend(values: Sequence[float | None]) -> str | None:
    """The points of a line over the values, for an SVG polyline; None with fewer than two values."""
    known = [(number, value) for number, value in enumerate(values) if value is not None]
    if len(known) < 2:
        return None
    most = max(value for _, value in known) or 1.0
    width = max(len(values) - 1, 1)
    return " ".join(
        f"{_TREND_WIDTH * number / width:.1f},{(_TREND_HEIGHT - 2) * (1 - value / most) + 1:.1f}"
        for number, value in known
    )


def plots_of(samples: Sequence[Mapping[str, Any]]) -> list[_Document]:
    """What the samples show over time; a plot without a value is left out."""
    wanted: list[tuple[str, str, dict[str, str]]] = [
        ("limit", "Attempts in flight and their limit", {"limit": "limit", "in_flight": "in flight"}),
        (
            "answers",
            "Lines answered, and attempts refused, per second",
            {
                "answered_per_s": "answered",
                "refused_per_s": "refused (429, 503, 529)",
                "failed_per_s": "failed",
            },
        ),
        ("tokens", "Output tokens per second", {"output_tokens_per_s": "output tokens"}),
        ("engine", "Requests in the engine", {"engine_running": "running", "engine_waiting": "waiting"}),
    ]
    plots: list[_Document] = []
    times = [sample["at"] for sample in samples]
    for name, label, fields in wanted:
        series = [
            {"label": shown, "values": [sample[field] for sample in samples], "colour": _COLOURS[field]}
            for field, shown in fields.items()
        ]
        if len(times) > 1 and any(value is not None for one in series for value in one["values"]):
            plots.append({"name": name, "label": label, "times": times, "series": series})
    return plots


_COLOURS: Final = {
    "limit": "--quiet",
    "in_flight": "--flight",
    "answered_per_s": "--ok",
    "refused_per_s": "--warn",
    "failed_per_s": "--failed",
    "output_tokens_per_s": "--ok",
    "engine_running": "--flight",
    "engine_waiting": "--warn",
}


async def _samples(visit: Visit, name: str) -> list[_Document]:
    path = path_of("nightmill", "v1", "upstreams", name, "samples")
    found: list[_Document] = (await visit.api.get(path, {"over_s": _DEFAULT_RANGE_S}))["data"]
    return found


def _summary(upstream: Mapping[str, Any]) -> _Document:
    """What both screens say of an upstream beside the API's own fields."""
    live: _Document = upstream["live"] or _NOT_REPORTED
    is_fixed = isinstance(upstream.get("concurrency"), int)
    models: list[_Document] = [
        {**model, "why": _why(model, is_fixed=is_fixed)} for model in live["per_model"]
    ]
    limits = [model["limit"] for model in models if model["limit"] is not None]
    offered: list[str] = upstream.get("models") or live["listed_models"] or []
    health, reason = health_of(upstream)
    return {
        "url": upstream.get("url"),
        "now": {**live, "per_model": models},
        "health": {"status": health, "reason": reason},
        "limit": sum(limits) if limits else None,
        "whys": list(dict.fromkeys(model["why"] for model in models if model["why"])),
        "advice": list(dict.fromkeys(model["advice"] for model in models if model["advice"])),
        "answered_per_s": round(sum(model["answered_per_s"] for model in models), 2),
        "tokens_per_s": round(sum(model["tokens_per_s"] for model in models), 2),
        "offered": {"first": offered[:_MODELS_SHOWN], "more": max(0, len(offered) - _MODELS_SHOWN)},
    }


def _why(model: _Document, *, is_fixed: bool) -> str:
    """Why the limit of a model is what it is.

    Args:
        is_fixed: whether the upstream's settings name a limit; then no rule has found it.
    """
    return model["why"] or (_FIXED if is_fixed and not model["rule"] else "")


def _totals(upstreams: Sequence[Mapping[str, Any]]) -> _Document:
    lives = [upstream["live"] for upstream in upstreams if upstream["live"]]
    recents = [upstream["recent"] for upstream in upstreams if upstream["recent"]]
    active = [upstream for upstream in upstreams if upstream["state"] == "active"]
    limits = [upstream["limit"] for upstream in active if upstream["limit"] is not None]
    return {
        "in_flight": sum(live["in_flight"] for live in lives),
        "limit": sum(limits) if limits else None,
        "waiting": sum(live["waiting"] for live in lives),
        "answered_per_s": round(sum(upstream["answered_per_s"] for upstream in upstreams), 2),
        "tokens_per_s": round(sum(upstream["tokens_per_s"] for upstream in upstreams), 2),
        "answered": sum(recent["answered"] for recent in recents),
        "refused": sum(recent["refused"] for recent in recents),
        "failed": sum(recent["failed"] for recent in recents),
    }


def _range_of(text: str | None) -> int:
    return next((over_s for over_s in RANGES.values() if text == str(over_s)), _DEFAULT_RANGE_S)


routes = (
    screen("/ui/upstreams", show, area=UPSTREAMS),
    screen("/ui/upstreams/{name}", show_one, area=UPSTREAMS),
    action("/ui/upstreams/{name}/test", test, area=UPSTREAMS),
    *(action(f"/ui/upstreams/{{name}}/{verb}", changing(verb), area=UPSTREAMS) for verb in _DONE),
)
