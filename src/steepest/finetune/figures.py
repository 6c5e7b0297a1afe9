"""The report's pictures, as PNG bytes."""

from __future__ import annotations

from typing import Any

import numpy as np

from steepest.runs.pictures import legend_below, picture, smooth

# Okabe and Ito's colours, told apart by every kind of colour vision; lines differ in their dashes, too.
RUN_COLORS = ("#0072B2", "#D55E00")
RUN_DASHES = ("-", (0, (4, 1.5)))
BASELINE_COLOR = "#9a9a9a"
SIZE = (5.6, 3.4)
FLAT = (5.6, 2.4)
MEASURED = {
    "change": ("change", "Change of the weights, |W' - W| / |W|", "log"),
    "condition-B": ("cond_B", "Condition number of B", "log from 1"),
    "condition-A": ("cond_A", "Condition number of A", "log from 1"),
    "stable-rank": ("stable_rank", "Stable rank of one step's change of B A", "linear from 1"),
}
"""Pictures of what is measured inside the adapter: key, title, and y axis."""


def draw(results: dict[str, Any]) -> dict[str, bytes]:
    """All pictures by name."""
    runs = results["runs"]
    return {
        "scores": scores(results["scores"], list(runs)),
        "loss-step": loss(runs, against_time=False),
        "loss-time": loss(runs, against_time=True),
        **{name: spread(runs, *drawn) for name, drawn in MEASURED.items() if measured(runs, drawn[0])},
        "cost": cost(runs),
    }


def measured(runs: dict[str, Any], key: str) -> bool:
    """Whether any run has that measurement; not all adapters have all of them."""
    return any(m.get(key) is not None for run in runs.values() for m in run["measured"])


def scores(table: dict[str, Any], runs: list[str]) -> bytes:
    """The headline metric of each method, with its 95% interval."""
    names = list(table)
    metric = next(iter(table[names[0]]["metrics"]))
    values = [next(iter(table[name]["metrics"].values())) for name in names]
    low, high = np.array([table[name]["interval"] for name in names]).T
    around = np.array([values - low, high - values]).clip(min=0)  # equal numbers may differ by rounding
    colors = [RUN_COLORS[runs.index(name)] if name in runs else BASELINE_COLOR for name in names]
    with picture(FLAT) as (figure, buffer):
        axes = figure.subplots()
        axes.barh(names, values, color=colors, height=0.62)
        axes.errorbar(values, names, xerr=around, fmt="none", ecolor="#222222", capsize=3, lw=1.2)
        for name, value, end in zip(names, values, high, strict=True):
            axes.text(end + 0.012 * max(high), name, f"{value:.3f}", va="center", color="#222222")
        axes.invert_yaxis()
        axes.set(title=f"{metric} on the held-out rows", xlim=(0, 1.15 * max(high)))
        axes.grid(axis="y", visible=False)
    return buffer.getvalue()


def loss(runs: dict[str, Any], *, against_time: bool) -> bytes:
    """Training loss: every step faintly, their running mean on top."""
    with picture(SIZE) as (figure, buffer):
        axes = figure.subplots()
        for (name, run), color, dashes in zip(runs.items(), RUN_COLORS, RUN_DASHES, strict=False):
            raw = np.array(run["loss"])
            x = _seconds(run) if against_time else np.arange(1, len(raw) + 1)
            axes.plot(x, raw, color=color, alpha=0.25, lw=0.8)
            axes.plot(x, smooth(raw), color=color, ls=dashes, lw=2, label=name)
        axes.set(
            title=f"Training loss against {'time' if against_time else 'steps'}",
            xlabel="seconds of training" if against_time else "step",
            ylim=(0, None),
            xlim=(0, None),
        )
        legend_below(figure, axes)
    return buffer.getvalue()


def _seconds(run: dict[str, Any]) -> np.ndarray:
    return np.cumsum(np.array(run["gradient_seconds"]) + np.array(run["optimizer_seconds"]))


def spread(runs: dict[str, Any], key: str, title: str, scale: str) -> bytes:
    """A measurement over time: the median over the layers as a line, from the least to the greatest as a band."""
    with picture(SIZE) as (figure, buffer):
        axes = figure.subplots()
        for (name, run), color, dashes in zip(runs.items(), RUN_COLORS, RUN_DASHES, strict=False):
            rows = [(m["step"], *m[key]) for m in run["measured"] if m.get(key) is not None]
            if rows:
                steps, low, middle, high = np.array(rows).T
                axes.fill_between(steps, low, high, color=color, alpha=0.15, lw=0)
                axes.plot(steps, middle, color=color, ls=dashes, lw=2, label=name)
        axes.set(title=title, xlabel="step", xlim=(0, max(len(run["loss"]) for run in runs.values())))
        if scale == "log from 1":
            _log_axis(axes)
        elif scale == "log":
            axes.set_yscale("log")
        else:
            axes.set_ylim(1, None)
        legend_below(figure, axes)
    return buffer.getvalue()


def _log_axis(axes: Any) -> None:
    """A logarithmic y axis from 1 with plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_yscale("log")
    top = axes.get_ylim()[1]
    axes.set_ylim(1, top)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if top < 300 else (1,)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value < 1e6 else f"{value:.0e}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def cost(runs: dict[str, Any]) -> bytes:
    """Median time of a step in its two parts, and memory of the optimiser's state."""
    names = list(runs)
    gradient, optimizer = (
        np.array([np.median(runs[name][key]) * 1e3 for name in names])
        for key in ("gradient_seconds", "optimizer_seconds")
    )
    memory = np.array([runs[name]["state_bytes"] / 2**20 for name in names])
    with picture(SIZE) as (figure, buffer):
        above, below = figure.subplots(2)
        above.barh(names, gradient, color="#c9c9c9", height=0.55, label="forward and backward")
        above.barh(names, optimizer, left=gradient, color="#222222", height=0.55, label="optimiser")
        _label_bars(
            above,
            gradient + optimizer,
            [f"{g:,.0f} + {o:,.1f}" for g, o in zip(gradient, optimizer, strict=True)],
            1.35,
        )
        above.set_title("Median time of a step, milliseconds")
        below.barh(names, memory, color=RUN_COLORS[: len(names)], height=0.55)
        _label_bars(below, memory, [f"{m:,.2f}" for m in memory], 1.2)
        below.set_title("Memory of the optimiser's state, MiB")
        legend_below(figure, above)
    return buffer.getvalue()


def _label_bars(axes: Any, ends: np.ndarray, texts: list[str], room: float) -> None:
    for y, (end, text) in enumerate(zip(ends, texts, strict=True)):
        axes.text(end + 0.015 * max(ends.max(), 1e-9), y, text, va="center", color="#222222", fontsize=9)
    axes.set_xlim(0, room * max(ends.max(), 1e-9))
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
