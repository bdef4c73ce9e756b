"""`python plots.py RESULTS.json FOLDER`: five pictures; it runs in a venv with matplotlib."""

import json
import statistics
import sys
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt

_OURS, _OTHER, _BOUND = "#2a6f97", "#b0b7bd", "#d1495b"
mpl.rcParams.update(
    {
        "figure.figsize": (7, 3.6),
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "svg.hashsalt": "nightmill",
        "axes.grid": True,
        "grid.alpha": 0.3,
    }
)


def _window(rows: dict, folder: Path) -> None:
    """Lines per second by concurrency limit, on an upstream that takes 50 ms."""
    samples = [sample for figure in rows["busy"] for sample in figure["samples"] if "window" in sample]
    windows = sorted({sample["window"] for sample in samples})
    if not windows:
        return

    def rate(window: int, name: str) -> float:
        return statistics.median(sample[name] for sample in samples if sample["window"] == window)

    figure, axes = plt.subplots()
    axes.plot(windows, [window / 0.05 for window in windows], "--", color=_BOUND, label="window / latency")
    axes.plot(windows, [rate(w, "wrk_rate") for w in windows], "s-", color=_OTHER, label="wrk")
    axes.plot(windows, [rate(w, "rate") for w in windows], "o-", color=_OURS, label="nightmill")
    axes.set(xscale="log", yscale="log", xlabel="requests in flight", ylabel="answers a second")
    axes.set_xticks(windows, [str(window) for window in windows])
    axes.set_title("An upstream that takes 50 ms for each answer", loc="left")
    axes.legend(frameon=False)
    _save(figure, folder / "window.svg")


def _memory(rows: dict, folder: Path) -> None:
    """Peak resident memory of each process against the number of lines."""
    of_usual_answers = next(it for it in rows["memory"] if it["name"].startswith("CPU per line"))
    many = sorted(of_usual_answers["samples"], key=lambda sample: sample["lines"])
    figure, axes = plt.subplots()
    for name, label, color in (
        ("api", "API", "#8fb8de"),
        ("keeper", "intake, finalizer, maintenance", "#e0a458"),
        ("worker 0", "dispatcher", _OURS),
    ):
        axes.plot(
            [s["lines"] for s in many], [s["memory_mib"][name] for s in many], "o-", color=color, label=label
        )
    axes.set(xscale="log", xlabel="lines in the batch", ylabel="peak resident memory, MiB", ylim=(0, 160))
    axes.set_title("Memory does not follow the size of the batch", loc="left")
    axes.legend(frameon=False)
    _save(figure, folder / "memory.svg")


def _parts(rows: dict, folder: Path) -> None:
    """CPU per line by part, beside wrk's per request."""
    figures = {figure["name"]: figure["value"] for figure in rows["dispatch"]}
    parts = (
        ("dispatcher", figures["of it in the dispatcher"], _OURS),
        ("finalizer", figures["of it in the finalizer"], "#e0a458"),
        ("intake", figures["of it in intake"], "#efcb8b"),
        ("API", figures["of it in the API"], "#8fb8de"),
    )
    figure, axes = plt.subplots(figsize=(7, 2.4))
    left = 0.0
    for name, value, color in parts:
        axes.barh("nightmill", value, left=left, color=color, label=f"{name} {value:.1f}")
        left += value
    wrk = figures["wrk, CPU per request in the same rounds"]
    axes.barh("wrk, which only sends", wrk, color=_OTHER, label=f"wrk {wrk:.1f}")
    axes.set(xlabel="CPU microseconds a line")
    axes.set_title("What a line costs, create to completed, by part", loc="left")
    axes.legend(frameon=False, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.35))
    axes.grid(visible=False, axis="y")
    _save(figure, folder / "parts.svg")


def _peers(rows: dict, folder: Path) -> None:
    """CPU per line of nightmill and its peers for the same lines, on a logarithmic axis."""
    figures = [figure for figure in rows["peers"] if figure["value"] is not None]
    figures.sort(key=lambda figure: -figure["value"])
    names = [
        figure["name"].rpartition(",")[0].rpartition(",")[0] or figure["name"].split(",")[0]
        for figure in figures
    ]
    values = [figure["value"] for figure in figures]
    figure, axes = plt.subplots(figsize=(7, 0.5 * len(names) + 1.2))
    colors = [_OURS if name == "nightmill" else _OTHER for name in names]
    bars = axes.barh(names, values, color=colors)
    axes.bar_label(bars, [f"{value:,.0f} us" for value in values], padding=3)
    axes.set(xscale="log", xlim=(1, max(values) * 4), xlabel="CPU microseconds a line (logarithmic)")
    axes.set_title("The same lines, the same upstream, the same run", loc="left")
    axes.grid(visible=False, axis="y")
    _save(figure, folder / "peers.svg")


def _fleet(rows: dict, folder: Path) -> None:
    """CPU per line by part and number of workers, for each storage."""
    samples = [sample for figure in rows["fleet"] for sample in figure["samples"] if "lines_per_s" in sample]
    samples = [sample for sample in samples if "us" in sample]
    bars = list(dict.fromkeys((sample["place"], sample["workers"]) for sample in samples))
    parts = (
        ("worker", "workers", _OURS),
        ("keeper", "intake, finalizer, maintenance", "#e0a458"),
        ("api", "API", "#8fb8de"),
        ("parents", "parents", "#efcb8b"),
        ("postgres", "Postgres", "#6a994e"),
        ("s3", "S3 server", _BOUND),
    )

    def us(place: str, workers: int, part: str) -> float:
        of = [s["us"].get(part, 0.0) for s in samples if (s["place"], s["workers"]) == (place, workers)]
        return statistics.median(of)

    figure, axes = plt.subplots(figsize=(7, 0.42 * len(bars) + 1.4))
    names = [f"{place}, {workers}" for place, workers in bars]
    left = [0.0] * len(bars)
    for part, label, color in parts:
        widths = [us(place, workers, part) for place, workers in bars]
        axes.barh(names, widths, left=left, color=color, label=label)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.bar_label(axes.containers[-1], [f"{whole:.0f} us" for whole in left], padding=3)
    axes.set(xlabel="CPU microseconds a line", xlim=(0, max(left) * 1.15))
    axes.invert_yaxis()
    axes.set_title("What a line costs, by part, against workers", loc="left")
    axes.legend(frameon=False, ncols=3, loc="upper center", bbox_to_anchor=(0.4, -0.16))
    axes.grid(visible=False, axis="y")
    _save(figure, folder / "fleet.svg")


def _save(figure: plt.Figure, path: Path) -> None:
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None})
    figure.savefig(path.with_suffix(".png"), bbox_inches="tight", dpi=110)
    plt.close(figure)


def _main() -> None:
    rows = json.loads(Path(sys.argv[1]).read_text())["rows"]
    pictures = {"busy": _window, "memory": _memory, "dispatch": _parts, "peers": _peers, "fleet": _fleet}
    for name, draw in pictures.items():
        if rows.get(name):
            draw(rows, Path(sys.argv[2]))


if __name__ == "__main__":
    _main()
