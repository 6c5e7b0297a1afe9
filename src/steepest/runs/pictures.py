"""The look of all pictures, as PNG bytes; no global state of matplotlib is touched."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from typing import Any

import numpy as np

STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "axes.labelcolor": "#333333",
    "xtick.color": "#555555",
    "ytick.color": "#333333",
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "axes.axisbelow": True,
    "legend.frameon": False,
}


@contextlib.contextmanager
def picture(size: tuple[float, float]) -> Iterator[tuple[Any, io.BytesIO]]:
    """An empty figure of this size in inches, and the buffer that holds its PNG after the block."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    buffer = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size, dpi=160, layout="constrained")
        FigureCanvasAgg(figure)
        yield figure, buffer
        figure.savefig(buffer, format="png")


def legend_below(figure: Any, axes: Any, columns: int = 2) -> None:
    """The legend of `axes`, below the picture, where it hides nothing."""
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=columns)


def smooth(values: np.ndarray, share: float = 0.1) -> np.ndarray:
    """Exponential running mean over about a tenth of the values, without the bias of its start."""
    keep = 1 - 1 / max(1.0, share * len(values))
    mean, weight, out = 0.0, 0.0, []
    for value in values:
        mean, weight = keep * mean + (1 - keep) * value, keep * weight + (1 - keep)
        out.append(mean / weight)
    return np.array(out)
