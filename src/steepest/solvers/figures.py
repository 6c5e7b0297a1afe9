"""Pictures of runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from steepest.solvers.result import Result


def convergence(runs: Mapping[str, Result], optimum: float | None = None) -> Any:
    """A matplotlib figure of several runs: gradient norm, and the value above `optimum` where that is given, against
    iterations and against seconds, all on logarithmic scales.

    Args:
        runs: results by the names in the legend.
        optimum: the lowest value that is known.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = ["gradient norm"] + (["value above the optimum"] if optimum is not None else [])
    figure = Figure(figsize=(9, 3.4 * len(rows)), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(rows), 2, squeeze=False, sharey="row")
    for i, row in enumerate(rows):
        for axes, unit in zip(grid[i], ("iterations", "seconds"), strict=True):
            for name, run in runs.items():
                x = [r.iteration if unit == "iterations" else r.seconds for r in run.history]
                y = [r.gradient_norm if i == 0 else max(r.value - (optimum or 0.0), 1e-17) for r in run.history]
                axes.semilogy(x, y, label=name, marker="." if len(x) < 40 else None)
            axes.set_xlabel(unit)
            axes.grid(color="#e4e4e4")
        grid[i][0].set_ylabel(row)
    if len(runs) > 1:
        grid[0][0].legend(frameon=False)
    return figure
