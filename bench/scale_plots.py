"""`python scale_plots.py SIMULATED.json FOLDER`: the pictures of docs/scale.md, in a venv with matplotlib."""

import json
import sys
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt

_OURS, _OTHER, _BOUND, _WARM = "#2a6f97", "#b0b7bd", "#d1495b", "#e0a458"
mpl.rcParams.update(
    {
        "figure.figsize": (7, 3.4),
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "svg.hashsalt": "nightmill",
        "axes.grid": True,
        "grid.alpha": 0.3,
    }
)


def _slot_requests(simulated: dict, folder: Path) -> None:
    """Load of the row of the upstream by number of workers, and how a thousand workers get their slots."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4))
    for spreads, label, color in ((False, "asked every beat", _BOUND), (True, "turns are taken", _OURS)):
        rows = [row for row in simulated["slot_requests"] if row["spreads"] is spreads]
        left.plot(
            [r["workers"] for r in rows],
            [r["slot_requests_per_s"] for r in rows],
            "o-",
            color=color,
            label=label,
        )
        last = rows[-1]["flying"]
        right.plot([at for at, _ in last], [share * 100 for _, share in last], color=color, label=label)
    left.set(xscale="log", xlabel="workers", ylabel="slot requests a second")
    left.set_title("Slot requests on one upstream's row", loc="left")
    left.legend(frameon=False)
    right.set(xlabel="seconds after all begin at once", ylabel="% of the slots in use", ylim=(0, 105))
    right.set_title(f"{rows[-1]['workers']:,} workers", loc="left")
    right.legend(frameon=False, loc="lower right")
    _save(figure, folder / "slot-requests.svg")


def _faults(simulated: dict, folder: Path) -> None:
    """Attempts in flight when workers die, and during an outage of Postgres."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True)
    for row, color in zip(simulated["deaths"], (_OURS, _WARM), strict=True):
        label = "freeze for 60 s" if row["frozen"] else "die"
        left.plot(
            [at for at, _ in row["flying"]], [s * 100 for _, s in row["flying"]], color=color, label=label
        )
    left.set(xlabel="seconds after a tenth of 200 workers ...", ylabel="% of the slots in use", ylim=(0, 105))
    left.set_title("A lease is 30 s", loc="left")
    left.legend(frameon=False, loc="lower right", title="... of them")
    for row, color in zip(simulated["outages"], (_OURS, _WARM), strict=True):
        label = f"{row['outage_s']:.0f} s"
        right.plot(
            [at for at, _ in row["flying"]], [s * 100 for _, s in row["flying"]], color=color, label=label
        )
    right.set(xlabel="seconds after Postgres went away from 1,000 workers")
    right.set_title("An outage", loc="left")
    right.legend(frameon=False, loc="lower right", title="it lasts")
    _save(figure, folder / "trouble.svg")


def _shares(simulated: dict, folder: Path) -> None:
    """Answers by project under both orders."""
    figure, axes = plt.subplots(figsize=(7, 2.2))
    colors = (_OURS, _WARM, _BOUND, "#8fb8de", "#6a994e")
    for row in simulated["tenants"]:
        left = 0.0
        for (name, share), color in zip(sorted(row["shares"].items()), colors, strict=True):
            label = name if row["fair"] else None
            axes.barh(
                "fair" if row["fair"] else "oldest first", share * 100, left=left, color=color, label=label
            )
            left += share * 100
    axes.set(xlabel="% of the answers of five minutes")
    axes.set_title("Five projects, the first with most", loc="left")
    axes.legend(frameon=False, ncols=5, loc="upper center", bbox_to_anchor=(0.5, -0.35), fontsize=8)
    axes.grid(visible=False, axis="y")
    _save(figure, folder / "shares.svg")


def _save(figure: plt.Figure, path: Path) -> None:
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)


def _main() -> None:
    simulated = json.loads(Path(sys.argv[1]).read_text())
    for draw in (_slot_requests, _faults, _shares):
        draw(simulated, Path(sys.argv[2]))


if __name__ == "__main__":
    _main()
