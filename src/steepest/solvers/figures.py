"""Pictures of runs and of checks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from steepest.solvers.diagnostics import Check
    from steepest.solvers.result import Record, Result

INK, FAINT = "#333333", "#e4e4e4"
RIGHT, WRONG = "#1b7f5c", "#c0392b"
COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#8c6d31"]
"""Okabe and Ito's, which the colour-blind can tell apart."""
TINY = 1e-17
"""Where a gradient of zero is drawn."""
DASHES = ["-", "--", ":", "-."]


def convergence(runs: Mapping[str, Result], optimum: float | None = None) -> Any:
    """A matplotlib figure of several runs: gradient norm, and the value above `optimum` where that is given, against
    iterations and against seconds, on logarithmic scales; seconds on one too where runs took very different times.

    Methods without gradients have no line in the first row; where no run has one, the value itself is shown. Values at
    or below `optimum` are drawn at the bottom, at the precision of numbers of its size. A dot ends each run, a hollow
    one where it has not got the accuracy that it was asked for.

    Args:
        runs: results by the names in the legend.
        optimum: the lowest value that is known.
    """
    rows = _rows(runs, optimum)
    figure = _figure(10.5 if len(runs) > 1 else 9, 3.3 * len(rows) + 0.2)
    grid = figure.subplots(len(rows), 2, squeeze=False, sharey="row", sharex="col")
    for axes_row, (label, height, log) in zip(grid, rows, strict=True):
        for axes, unit in zip(axes_row, ("iterations", "seconds"), strict=True):
            for i, run in enumerate(runs.values()):
                x = [r.iteration if unit == "iterations" else r.seconds for r in run.history]
                _curve(axes, x, [height(r) for r in run.history], i, run.success)
            _plain(axes, "log" if log else "linear")
        axes_row[0].set_ylabel(label, color=INK)
    grid[-1][0].set_xlabel("iterations", color=INK)
    grid[-1][0].set_xlim(left=0)
    grid[-1][1].set_xlabel("seconds", color=INK)
    ends = [run.history[-1].seconds for run in runs.values() if run.history]
    if ends and max(ends) > 8 * min(ends):
        grid[-1][1].set_xscale("log")
    else:
        grid[-1][1].set_xlim(left=0)
    if len(runs) > 1:
        from matplotlib.lines import Line2D

        lines = [Line2D([], [], color=_colour(i), ls=_dash(i), lw=1.6) for i in range(len(runs))]
        figure.legend(lines, list(runs), loc="outside right upper", frameon=False, labelcolor=INK)
    elif runs:
        name, run = next(iter(runs.items()))
        figure.suptitle(f"{name}: {run.reason}", fontsize=10, color=INK)
    return figure


def slopes(check: Check) -> Any:
    """A matplotlib figure of a check: the errors of the Taylor polynomial against the length of the step, the stretch
    at which the slope was measured, and lines of the slopes of right and wrong derivatives."""
    figure = _figure(6.4, 4.8)
    axes = figure.subplots()
    shown = [(t, e) for t, e in zip(check.ts, check.errors, strict=True) if math.isfinite(e) and e > 0]
    axes.loglog(*zip(*shown, strict=True) if shown else ([], []), ".", color="#8a8a8a", ms=4, label="error, measured")
    bottom = check.rounding / 30
    if check.stretch is not None:
        _slope_lines(axes, check)
    elif shown:
        bottom = min(bottom, min(e for _, e in shown) / 3)
    axes.axhspan(bottom, check.rounding, color="#f0f0f0", zorder=0, lw=0)
    axes.text(check.ts[0], check.rounding, "rounding", va="top", ha="left", fontsize=8.5, color="#777777")
    axes.set_ylim(bottom, 3 * max([check.rounding * 100, *(e for _, e in shown)]))
    _plain(axes, "log")
    axes.set_xlabel("t, length of the step", color=INK)
    degree = "first" if check.expected == 2 else "second"
    axes.set_ylabel(f"|f - Taylor polynomial of {degree} degree|", color=INK)
    verdict = f"{check.what} is {'right' if check.passed else 'WRONG'}"
    measured = f": slope {check.slope:.2f}, expected {check.expected}" if check.stretch else ""
    axes.set_title(verdict + measured, color=RIGHT if check.passed else WRONG, fontsize=11, loc="left")
    axes.legend(frameon=False, loc="lower right", fontsize=9, labelcolor=INK)
    return figure


def _slope_lines(axes: Any, check: Check) -> None:
    """The stretch, and through its upper end a line for each slope."""
    assert check.stretch is not None
    low, high = check.stretch
    part = [(t, e) for t, e in zip(check.ts, check.errors, strict=True) if low <= t <= high]
    axes.loglog(*zip(*part, strict=True), color=RIGHT if check.passed else WRONG, lw=2.5, label="where it is measured")
    t1, e1 = part[-1]
    names = {check.expected: "right", check.expected - 1: "wrong"}
    if check.expected == 3:
        names[1] = "wrong gradient"
    for slope, name in names.items():
        ends = [low, t1]
        dash = "--" if slope == check.expected else ":"
        heights = [e1 * (t / t1) ** slope for t in ends]
        axes.loglog(ends, heights, dash, color=INK, lw=1.1, label=f"slope {slope}: {name}")


def _rows(runs: Mapping[str, Result], optimum: float | None) -> list[tuple[str, Callable[[Record], float], bool]]:
    """Label, height of a record and whether on a logarithmic scale, for each row."""
    rows: list[tuple[str, Callable[[Record], float], bool]] = []
    if any(math.isfinite(r.gradient_norm) for run in runs.values() for r in run.history):
        rows.append(("gradient norm", lambda r: r.gradient_norm or TINY, True))
    if optimum is not None:
        least = max(abs(optimum), 1.0) * 2.0**-53
        rows.append(("value above the optimum", lambda r: max(r.value - optimum, least), True))
    elif not rows:
        rows.append(("value", lambda r: r.value, False))
    return rows


def _curve(axes: Any, x: Sequence[float], y: Sequence[float], i: int, success: bool) -> None:
    pairs = [(a, b) for a, b in zip(x, y, strict=True) if math.isfinite(b)]
    if not pairs:
        return
    axes.plot(*zip(*pairs, strict=True), color=_colour(i), ls=_dash(i), lw=1.6)
    axes.plot(*pairs[-1], "o", color=_colour(i), ms=5, mfc=_colour(i) if success else "white", zorder=3)


def _colour(i: int) -> str:
    return COLOURS[i % len(COLOURS)]


def _dash(i: int) -> str:
    return DASHES[i // len(COLOURS) % len(DASHES)]


def _figure(width: float, height: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _plain(axes: Any, scale: str) -> None:
    axes.set_yscale(scale)
    axes.grid(color=FAINT, lw=0.7)
    axes.set_axisbelow(True)
    axes.yaxis.set_tick_params(which="minor", left=False)
    axes.tick_params(colors=INK, labelsize=9)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#999999")
