"""Writes results into docs/benchmarks.md, between its markers, and the plots beside it."""

import json
import math
import re
import subprocess
from pathlib import Path
from typing import Any

from bench import tools

_PAGE = Path("docs/benchmarks.md")
_FOLDER = Path("docs/benchmarks")
_RESULTS = _FOLDER / "results.json"
_PLOTS = Path(__file__).with_name("plots.py")


def publish(results: dict[str, Any]) -> None:
    _FOLDER.mkdir(exist_ok=True)
    _RESULTS.write_text(json.dumps(_rounded(results), separators=(",", ":")) + "\n")
    page = _PAGE.read_text()
    page = _between(page, "machine", _machine(results))
    page = _between(page, "figures", "\n\n".join(_table(rows) for rows in results["rows"].values() if rows))
    _PAGE.write_text(page)
    try:
        programs = tools.venv("plots", "matplotlib")
    except tools.CannotInstallError as error:
        print(f"SKIPPED the plots: {error}")
        return
    subprocess.run([str(programs / "python"), str(_PLOTS), str(_RESULTS), str(_FOLDER)], check=True)


def _machine(results: dict[str, Any]) -> str:
    machine, versions = results["machine"], results["versions"]
    listed = ", ".join(f"{name} {version}" for name, version in versions.items())
    return (
        f"{results['when']}: {machine['processor']}, {machine['memory']}, Linux {machine['kernel']}, "
        f"Python {machine['python']}; {listed}."
    )


def _table(figures: list[dict[str, Any]]) -> str:
    rows = [
        f"### {figures[0]['row'].capitalize()}",
        "",
        "| what | figure | target | ratio | |",
        "|---|---|---|---|---|",
    ]
    for figure in figures:
        target = (
            "" if figure["target"] is None else f"{figure['better']} {figure['target']:.4g} {figure['unit']}"
        )
        ratio = "" if not figure["target"] else f"{figure['value'] / figure['target']:.2f}"
        remark = "; ".join(filter(None, [figure["verdict"].lower(), figure["note"]]))
        value = f"{_text(figure['value'])} {figure['unit']}"
        rows.append(f"| {figure['name']} | {value} | {target} | {ratio} | {remark} |")
    return "\n".join(rows)


def _text(value: float) -> str:
    if math.isnan(value):
        return "-"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _between(page: str, name: str, text: str) -> str:
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    return pattern.sub(lambda found: f"{found[1]}{text}\n{found[2]}", page)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return None if math.isnan(value) else float(f"{value:.4g}")
    if isinstance(value, dict):
        return {name: _rounded(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(part) for part in value]
    return value
