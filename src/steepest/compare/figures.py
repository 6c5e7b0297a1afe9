"""The report's pictures, as PNG bytes. An optimiser has one colour in all; with a geometry its line is dashed."""

from __future__ import annotations

import contextlib
import io
import math
import statistics
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from steepest.compare.labels import end_labels
from steepest.compare.model import KINDS
from steepest.runs.pictures import picture

# Dark enough on white to be read as text; the first eight are told apart by every kind of colour vision.
COLORS = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#B8860B", "#4A9FD8", "#7B3294", "#8C510A", "#222222", "#66A61E",
    "#B2182B", "#5C6BC0", "#00838F", "#C51B7D", "#808080", "#2E7D32", "#E0607E", "#8D8B1F", "#4B0082", "#A0522D",
    "#005F73", "#E76F51", "#3A5A40", "#9D4EDD", "#BC6C25", "#2A9D8F", "#EF476F", "#577590",
)  # fmt: skip
DASHES: dict[str, Any] = {"none": "-", "orthogonal": (0, (4, 1.5))}
MARKERS = {"none": "o", "orthogonal": "D"}
KIND_DASHES: dict[str, Any] = dict(zip(KINDS, ["-", (0, (4, 1.5)), (0, (1, 1)), (0, (6, 1, 1, 1))], strict=True))
WIDTH = 9.0
COLUMNS = 5
"""Panels in a row."""
START = 0.35
"""Share of training after which a typical curve is in sight; with all of it, the end would be too small to read."""


def draw(results: dict[str, Any]) -> dict[str, bytes]:
    """All pictures by name; none of the losses where every method diverged."""
    methods = results["methods"]
    colors = {name: COLORS[i % len(COLORS)] for i, name in enumerate(results["settings"]["optimizers"])}
    pictures = {}
    if done := [m for m in methods if m["summary"]["loss"] is not None]:
        pictures = {
            "losses": losses(done, colors),
            "loss-tokens": curves(done, colors, against_time=False),
            "loss-time": curves(done, colors, against_time=True),
            "sweeps": sweeps(methods, colors),
            "updates": updates(done, colors),
        }
    return pictures | {"memory": memory(methods, colors)}


def losses(methods: list[dict[str, Any]], colors: dict[str, str]) -> bytes:
    """The loss at the end: a dot for each seed, a bar at their mean."""
    _, top = window(methods)
    shown = [m["summary"] for m in methods if m["summary"]["loss"] <= top]
    low, top = min(s["least"] for s in shown), max(top, *(s["greatest"] for s in shown))
    with picture((WIDTH * 0.8, 0.9 + 0.23 * len(methods))) as (figure, buffer):
        axes = figure.subplots()
        for row, method in enumerate(methods):
            color, mean = colors[method["optimizer"]], method["summary"]["loss"]
            values = [run["loss"] for run in method["runs"] if run["loss"] is not None]
            if method["summary"] not in shown:
                axes.text(top, row, f"{mean:.3f} →", color=color, ha="right", va="center", fontsize=9)
                continue
            axes.plot(values, [row] * len(values), MARKERS[method["geometry"]], color=color, ms=5, alpha=0.55, mew=0)
            axes.plot([mean], [row], "|", color=color, ms=13, mew=2)
            axes.text(max(values) + 0.012 * (top - low), row, f"{mean:.3f}", va="center", fontsize=9, color="#222222")
        axes.set_yticks(range(len(methods)), [m["name"] for m in methods])
        axes.set(title="Held-out loss at the end of training", xlabel="nats per character; less is better")
        axes.set(xlim=(low - 0.04 * (top - low), top + 0.1 * (top - low)), ylim=(len(methods) - 0.4, -0.6))
    return buffer.getvalue()


def window(methods: Iterable[dict[str, Any]]) -> tuple[float, float]:
    """Range of losses that shows how most methods differ; the few that are far above it would squeeze all others."""
    finals = [m["summary"]["loss"] for m in methods]
    best, middle = min(finals), statistics.median(finals)
    top = min(max(finals), best + max(4 * (middle - best), 0.1 * best))
    room = max(top - best, 0.02 * best)
    return best - 0.08 * room, top + 0.12 * room


def curves(methods: list[dict[str, Any]], colors: dict[str, str], *, against_time: bool) -> bytes:
    """Held-out loss on the way: mean over the seeds, and a band from the least to the greatest."""
    low, top = window(methods)
    early = [np.interp(START, *_shares(m)) for m in methods]
    low, top = min(low, *(m["summary"]["least"] for m in methods)), max(top, statistics.median(early))
    height = max(4.4, 1.1 + 0.185 * len(methods))
    with picture((WIDTH, height)) as (figure, buffer):
        axes = figure.subplots()
        ends = []
        for method in methods:
            color, dashes = colors[method["optimizer"]], DASHES[method["geometry"]]
            x, y = _curves(method, against_time)
            axes.fill_between(x, y.min(0), y.max(0), color=color, alpha=0.13, lw=0)
            axes.plot(x, y.mean(0), color=color, ls=dashes, lw=1.5)
            ends.append((x[-1], y.mean(0)[-1], f"{method['name']} {y.mean(0)[-1]:.3f}", color))
        axes.set(xlim=(0, max(end[0] for end in ends)), ylim=(low, top), ylabel="nats per character")
        axes.set_title(f"Held-out loss against {'time' if against_time else 'tokens'}")
        axes.set_xlabel("seconds of training, without evaluations" if against_time else "characters trained on")
        end_labels(axes, ends, height)
        if not against_time:
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    return buffer.getvalue()


def _shares(method: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Share of the tokens and mean loss, at each evaluation."""
    x, y = _curves(method, against_time=False)
    return x / x[-1], y.mean(0)


def _curves(method: dict[str, Any], against_time: bool) -> tuple[np.ndarray, np.ndarray]:
    """Tokens or seconds `(points,)` and losses `(seeds, points)` of the runs that went to the end."""
    runs = [run for run in method["runs"] if run["loss"] is not None]
    y = np.array([[point["loss"] for point in run["curve"]] for run in runs])
    if against_time:
        return np.mean([run["timing"]["curve_seconds"] for run in runs], 0), y
    return np.array([point["tokens"] for point in runs[0]["curve"]]), y


def sweeps(methods: list[dict[str, Any]], colors: dict[str, str]) -> bytes:
    """A panel for each optimiser: loss against learning rate, with the chosen one ringed."""
    low, top = _sweep_window(methods)
    names = _names(methods)
    with _panels(names, colors) as (axes_of, buffer):
        for method in methods:
            axes, color = axes_of[method["optimizer"]], colors[method["optimizer"]]
            rates = [p["lr"] for p in method["sweep"]]
            values = [math.inf if p["loss"] is None else p["loss"] for p in method["sweep"]]
            inside = [v if v <= top else np.nan for v in values]
            axes.plot(rates, np.minimum(values, 2 * top), color=color, ls=DASHES[method["geometry"]], lw=1.2)
            axes.plot(rates, inside, MARKERS[method["geometry"]], color=color, ms=3.5)
            for rate, value in zip(rates, values, strict=True):
                if value > top:
                    mark = "×" if math.isinf(value) else "↑"
                    axes.text(rate, top, mark, ha="center", va="top", color=color, fontsize=9)
            if (best := min(values)) <= top:
                axes.plot([method["lr"]], [best], "o", ms=8, mfc="none", mec=color, mew=1.2)
            axes.set_xscale("log")
            axes.set_ylim(low, top)
            axes.margins(x=0.15)
        for axes in axes_of.values():
            _plain_rates(axes)
        _outer_labels(axes, "learning rate", "held-out loss")
    return buffer.getvalue()


def _sweep_window(methods: list[dict[str, Any]]) -> tuple[float, float]:
    """Range of losses that shows most of what was tried, and the best of each method that is not hopeless."""
    done = [m for m in methods if m["summary"]["loss"] is not None]
    tried = [[p["loss"] for p in m["sweep"] if p["loss"] is not None] for m in done]
    _, limit = window(done)
    top = max(float(np.quantile(np.concatenate(tried), 0.7)), *(b for b in map(min, tried) if b <= limit), 0.0)
    low = min(map(min, tried))
    room = max(top - low, 0.02 * low)
    return low - 0.08 * room, top + 0.15 * room


def _outer_labels(axes: Any, x: str, y: str) -> None:
    """Labels of the axes that all panels share; `axes` is any of these."""
    axes.figure.supxlabel(x, fontsize=9.5, color="#333333")
    axes.figure.supylabel(y, fontsize=9.5, color="#333333")


def _plain_rates(axes: Any) -> None:
    """A few decades as powers of ten."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.xaxis.set_major_locator(LogLocator(numticks=4))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(labelsize=8)


def updates(methods: list[dict[str, Any]], colors: dict[str, str]) -> bytes:
    """A panel for each optimiser: how much one step changes an entry, over training, by kind of parameter."""
    from matplotlib.lines import Line2D

    names = _names(methods)
    with _panels(names, colors, legend=True) as (axes_of, buffer):
        shown: set[str] = set()
        for method in sorted(methods, key=lambda m: m["geometry"]):
            if method["optimizer"] in shown:
                continue  # of an optimiser with and without geometry, the one without
            shown.add(method["optimizer"])
            axes = axes_of[method["optimizer"]]
            points = next(run for run in method["runs"] if run["loss"] is not None)["update_rms"]
            for kind in KINDS:
                rows = [(p["tokens"], p[kind]) for p in points if p.get(kind)]
                if rows:
                    axes.plot(*zip(*rows, strict=True), color=colors[method["optimizer"]], ls=KIND_DASHES[kind], lw=1.3)
            axes.set_yscale("log")
            axes.tick_params(labelsize=8)
            axes.set_xticks([])
        figure = next(iter(axes_of.values())).figure
        lines = [Line2D([], [], color="#333333", ls=KIND_DASHES[kind], lw=1.3) for kind in KINDS]
        words = ["matrices", "embedding", "head", "gains of norms"]
        figure.legend(lines, words, loc="outside lower center", ncols=4)
        figure.supylabel("change of an entry, RMS", fontsize=9.5, color="#333333")
    return buffer.getvalue()


def _names(methods: list[dict[str, Any]]) -> dict[str, str]:
    """The optimisers' own names, in the order of the alphabet."""
    return {m["optimizer"]: m["name"].partition(",")[0] for m in sorted(methods, key=lambda m: m["optimizer"])}


@contextlib.contextmanager
def _panels(
    names: dict[str, str], colors: dict[str, str], legend: bool = False
) -> Iterator[tuple[dict[str, Any], io.BytesIO]]:
    """A panel for each optimiser, by its key, with a common y axis."""
    columns = min(COLUMNS, len(names))
    rows = -(-len(names) // columns)
    size = WIDTH, 0.6 + (1.5 if rows > 1 else 2.2) * rows + 0.4 * legend
    with picture(size) as (figure, buffer):
        grid = figure.subplots(rows, columns, sharey=True, squeeze=False).flatten()
        for axes, (key, name) in zip(grid, names.items(), strict=False):
            axes.set_title(name, color=colors[key], fontsize=9.5)
        for axes in grid[len(names) :]:
            axes.axis("off")
        yield dict(zip(names, grid, strict=False)), buffer


def memory(methods: list[dict[str, Any]], colors: dict[str, str]) -> bytes:
    """Bytes of optimiser state for each parameter of the model."""
    ordered = sorted(methods, key=lambda m: (m["summary"]["state_bytes_per_parameter"], m["name"]))
    values = [m["summary"]["state_bytes_per_parameter"] for m in ordered]
    with picture((WIDTH * 0.8, 0.9 + 0.23 * len(ordered))) as (figure, buffer):
        axes = figure.subplots()
        rows = range(len(ordered))
        axes.barh(rows, values, color=[colors[m["optimizer"]] for m in ordered], height=0.6)
        for row, value in zip(rows, values, strict=True):
            axes.text(value + 0.01 * max(*values, 1e-9), row, f"{value:.2f}", va="center", fontsize=9, color="#222222")
        axes.set_yticks(rows, [m["name"] for m in ordered])
        axes.set(title="Memory of the optimiser's state", xlabel="bytes for each parameter of the model")
        axes.set(xlim=(0, 1.1 * max(*values, 1e-9)), ylim=(len(ordered) - 0.4, -0.6))
        axes.grid(axis="y", visible=False)
    return buffer.getvalue()
