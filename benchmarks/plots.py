"""Figures as plots, in light and in dark: docs/images/<section>-<theme>.svg.

    plots.py figures.json    # in its own environment: `draw` starts it there

The files are the same for the same figures: no date, no random identifiers.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
from collections import Counter, defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

IMAGES: Final = Path(__file__).parent.parent / "docs" / "images"
SERVICE: Final = "softmax-service"
MIB: Final = 1 << 20
KILO: Final = 1000
# More names would hide the lines.
MOST_NAMED: Final = 6
THEMES: Final = {
    "light": {"ink": "#1f2328", "muted": "#8c959f", "grid": "#d8dee4", "accent": "#0969da", "second": "#bc4c00"},
    "dark": {"ink": "#e6edf3", "muted": "#7d8590", "grid": "#30363d", "accent": "#58a6ff", "second": "#f0883e"},
}
Theme = dict[str, str]


def draw(figures: Path) -> None:
    """Draw the plots of a file of figures, in the environment that has the library for it."""
    # Not at the top: this module also runs where the rest of the package's dependencies are not.
    from benchmarks.environments import python_of  # noqa: PLC0415

    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    command = [str(python_of("plots")), "-m", "benchmarks.plots", str(figures.absolute())]
    subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, check=True)  # noqa: S603 - ours


def throughput(results: Mapping[str, Any], theme: Theme) -> Any:
    """Messages a second of each program, from the slowest to the fastest round, a panel for each number of classes."""
    by_classes: defaultdict[int, list[Any]] = defaultdict(list)
    for row in results["summary"]:
        by_classes[row["classes"]].append(row)
    figure, axes = _panels(1, len(by_classes), width=11, height=1.2 + 0.3 * len(results["programs"]), sharey=True)
    names = _by_rate(results)
    for axis, (classes, rows) in zip(axes, sorted(by_classes.items()), strict=True):
        for row in rows:
            place, colour = names.index(row["program"]), _colour(row["program"], theme)
            axis.plot([row["lowest_rate"], row["highest_rate"]], [place, place], color=colour, linewidth=3, alpha=0.4)
            axis.plot([row["rate"]], [place], "o", color=colour)
            label = f"{row['rate']:,.0f}"
            axis.annotate(label, (row["rate"], place), (0, 5), textcoords="offset points", ha="center", size=7)
        _logarithmic(axis)
        axis.margins(x=0.15)
        axis.set_title(f"K = {classes}", loc="left")
        axis.set_xlabel("messages a second")
    axes[0].set_yticks(range(len(names)), names)
    _emphasise(axes[0], theme)
    return figure


def latency(results: Mapping[str, Any], theme: Theme) -> Any:
    """The median, a dot, and the 99th percentile, a bar's end, of each program, a panel for each rate."""
    rates = sorted({row["rate"] for row in results["latency"]})
    names = list(dict.fromkeys(row["program"] for row in results["latency"]))[::-1]
    figure, axes = _panels(1, len(rates), width=11, height=1.2 + 0.35 * len(names), sharey=True)
    for axis, rate in zip(axes, rates, strict=True):
        for row in results["latency"]:
            if row["rate"] == rate:
                place, colour = names.index(row["program"]), _colour(row["program"], theme)
                axis.plot([row["p50"], row["p99"]], [place, place], color=colour, linewidth=3, alpha=0.4)
                axis.plot([row["p50"]], [place], "o", color=colour)
                label = f"{row['p50']:,.3g} · {row['p99']:,.3g}"
                axis.annotate(label, (row["p50"], place), (0, 6), textcoords="offset points", size=7)
        _logarithmic(axis)
        axis.margins(x=0.2, y=0.15)
        axis.set_title(f"{rate:,} messages a second", loc="left")
        axis.set_xlabel("milliseconds: p50 · p99")
    axes[0].set_yticks(range(len(names)), names)
    _emphasise(axes[0], theme)
    return figure


def soak(results: Mapping[str, Any], theme: Theme) -> Any:
    """Memory, waiting messages and their ages over time."""
    minutes = [row["minute"] for row in results["minutes"]]
    figure, axes = _panels(3, 1, width=9, height=6, sharex=True)
    seconds = [sample["second"] / 60 for sample in results["samples"]]
    memory, waiting, age = axes
    memory.plot(seconds, [sample["rss"] / MIB for sample in results["samples"]], color=theme["accent"], linewidth=1)
    memory.set_ylim(bottom=0)
    memory.set_title("resident memory, MiB", loc="left")
    waiting.plot(seconds, [s["waiting"] for s in results["samples"]], color=theme["accent"], linewidth=0.6)
    waiting.set_ylim(bottom=0)
    waiting.set_title("messages without their output", loc="left")
    for name, colour in (("p50_ms", theme["accent"]), ("p99_ms", theme["second"])):
        values = [row[name] for row in results["minutes"]]
        age.plot(minutes, values, color=colour, label=name[:3])
        age.annotate(name[:3], (minutes[-1], values[-1]), (4, 0), textcoords="offset points", color=colour)
    age.set_ylim(bottom=0)
    age.set_title("age at the output, ms, by minute", loc="left")
    age.set_xlabel("minutes")
    return figure


def dashboard(results: Mapping[str, Any], theme: Theme) -> Any:
    """The panels of the Grafana dashboard that are lines over time, with what Prometheus answered."""
    shown = [panel for panel in results["panels"] if panel["type"] == "timeseries"]
    columns = 4
    rows = -(-len(shown) // columns)
    figure, axes = _panels(rows, columns, width=14, height=2.1 * rows)
    colours = [theme["accent"], theme["second"], "#2da44e", "#bf8700", "#8250df", "#cf222e", "#1b7c83", theme["muted"]]
    for axis, panel in zip(axes, shown, strict=False):
        for number, series in enumerate(panel["series"]):
            points = [(at / 60, value) for at, value in series["points"]]
            axis.plot(
                *zip(*points, strict=True), color=colours[number % len(colours)], linewidth=0.8, label=series["name"]
            )
        if 0 < len(panel["series"]) <= MOST_NAMED:
            axis.legend(fontsize=5, frameon=False, loc="upper right")
        axis.set_title(f"{panel['title']}{_unit(panel['unit'])}", loc="left", fontsize=8)
        axis.tick_params(labelsize=6)
        axis.set_ylim(bottom=0)
    for axis in axes[len(shown) :]:
        axis.set_visible(False)
    return figure


def _unit(name: str) -> str:
    """A Grafana unit in a title."""
    short = name.removeprefix("si:").removeprefix("suffix:")
    return {"short": "", "none": "", "": "", "percentunit": ", share", "ops": ", a second"}.get(short, f", {short}")


def _by_rate(results: Mapping[str, Any]) -> list[str]:
    """Programs from the slowest, at the bottom, to the fastest, where most of them were measured."""
    counts = Counter(row["classes"] for row in results["summary"])
    ((classes, _),) = counts.most_common(1)
    return [r["program"] for r in sorted(results["summary"], key=lambda r: r["rate"]) if r["classes"] == classes]


def _logarithmic(axis: Any) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter  # noqa: PLC0415 - only where plots are drawn

    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
    axis.xaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{value:,g}" if value < KILO else f"{value / KILO:,g}k")
    )
    axis.xaxis.set_minor_formatter(NullFormatter())


def _colour(program: str, theme: Theme) -> str:
    return theme["accent" if program == SERVICE else "muted"]


def _emphasise(axis: Any, theme: Theme) -> None:
    for label in axis.get_yticklabels():
        if label.get_text() == SERVICE:
            label.set_color(theme["accent"])
            label.set_fontweight("bold")


def _panels(rows: int, columns: int, width: float, height: float, **options: Any) -> tuple[Any, list[Any]]:
    from matplotlib import pyplot as plt  # noqa: PLC0415 - only where plots are drawn

    figure, axes = plt.subplots(rows, columns, figsize=(width, height), squeeze=False, layout="constrained", **options)
    return figure, list(axes.flat)


def _style(theme: Theme) -> dict[str, Any]:
    ink = dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), theme["ink"])
    return {
        **ink,
        "axes.edgecolor": theme["grid"],
        "axes.facecolor": "none",
        "axes.grid": True,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "figure.facecolor": "none",
        "font.size": 9,
        "grid.color": theme["grid"],
        "grid.linewidth": 0.5,
        "savefig.facecolor": "none",
        "svg.fonttype": "none",
        "svg.hashsalt": "softmax-service",
    }


def main() -> None:
    """Draw what the figures are of."""
    import matplotlib as mpl  # noqa: PLC0415 - only where plots are drawn
    from matplotlib import pyplot as plt  # noqa: PLC0415

    mpl.use("svg")
    parser = argparse.ArgumentParser(description="Draw plots from kept figures.")
    parser.add_argument("figures", type=Path)
    results = json.loads(parser.parse_args().figures.read_text(encoding="utf-8"))
    plots: dict[str, Callable[[Mapping[str, Any], Theme], Any]] = {
        "summary": throughput,
        "latency": latency,
        "minutes": soak,
        "panels": dashboard,
    }
    plot = next(plot for key, plot in plots.items() if key in results)
    IMAGES.mkdir(exist_ok=True)
    for name, theme in THEMES.items():
        with plt.rc_context(_style(theme)):
            figure = plot(results, theme)
            figure.savefig(IMAGES / f"{plot.__name__}-{name}.svg", metadata={"Date": None})
            plt.close(figure)


if __name__ == "__main__":
    main()
