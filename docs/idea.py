"""Draws docs/idea.png, the picture of the one idea: `python docs/idea.py`."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

INK, BLUE, ORANGE, GREEN, PALE = "#22303c", "#0072b2", "#d55e00", "#009e73", "#eef3f7"


def arrow(ax, start, end, color, style="-|>", width=2.2, bend=0.0):
    patch = FancyArrowPatch(
        start, end, arrowstyle=style, mutation_scale=18, lw=width, color=color, connectionstyle=f"arc3,rad={bend}",
        shrinkA=0, shrinkB=0, zorder=5,
    )  # fmt: skip
    ax.add_patch(patch)


def curved_side(ax):
    """The manifold as a hill, with its tangent line at x."""
    t = np.linspace(-2.2, 2.6, 200)
    hill = lambda s: 1.25 - 0.28 * s**2  # noqa: E731
    ax.fill_between(t, hill(t), -1.2, color=PALE, zorder=1)
    ax.plot(t, hill(t), color=INK, lw=2.4, zorder=3)
    ax.text(-2.0, -0.65, "a manifold of matrices", color=INK, fontsize=12.5, style="italic")
    x = np.array([-0.7, hill(-0.7)])
    slope = 0.56 * 0.7
    along = np.array([1, slope]) / np.hypot(1, slope)
    ax.plot(*zip(x - 1.2 * along, x + 2.4 * along, strict=True), color="#9aa7b2", lw=1.3, ls="--", zorder=2)
    step = x + 1.75 * along
    s = 1.12
    y = np.array([s, hill(s)])
    arrow(ax, x, step, ORANGE)
    arrow(ax, step, y + np.array([0.02, 0.05]), GREEN, bend=-0.25)
    arrow(ax, x, x + np.array([-0.85, 0.85]), BLUE)
    for p, name, shift in ((x, "x", (0.02, -0.28)), (y, "next x", (-0.62, -0.28))):
        ax.plot(*p, "o", color=INK, ms=9, zorder=6)
        ax.text(p[0] + shift[0], p[1] + shift[1], name, fontsize=14, color=INK, ha="left", va="center")
    ax.text(x[0] - 0.95, x[1] + 1.0, "Euclidean gradient g", fontsize=12.5, color=BLUE, ha="center")
    ax.text(step[0] - 0.95, step[1] + 0.1, "push(x, $-$lr step)", fontsize=12.5, color=ORANGE, ha="center")
    ax.text(1.36, 1.42, "retract", fontsize=12.5, color=GREEN)


def flat_side(ax):
    """The coordinates: a flat plane, and the chain that acts there."""
    left, width = 5.0, 4.3
    ax.add_patch(FancyBboxPatch((left, -0.9), width, 3.5, boxstyle="round,pad=0.05", fc=PALE, ec=INK, lw=1.4))
    ax.text(
        left + width / 2,
        2.33,
        "coordinates: plain matrices, flat",
        ha="center",
        fontsize=12.5,
        style="italic",
        color=INK,
    )
    links = ["h", "momentum", "orthogonalise\nAdam, Shampoo, ...", "clip, decay"]
    for i, name in enumerate(links):
        y = 1.75 - 0.72 * i
        box = FancyBboxPatch((left + 0.75, y - 0.24), width - 1.5, 0.48, boxstyle="round,pad=0.02", fc="white", ec=INK)
        ax.add_patch(box)
        ax.text(left + width / 2, y, name, ha="center", va="center", fontsize=11.5, color=INK)
        if i:
            arrow(ax, (left + width / 2, y + 0.46), (left + width / 2, y + 0.27), INK, width=1.5)
    arrow(ax, (-0.1, 2.18), (left + 0.72, 1.85), BLUE, bend=-0.16)
    ax.text(2.75, 2.78, "h = pull(x, g)", fontsize=13, color=BLUE, ha="center")
    arrow(ax, (left + 0.72, -0.42), (1.1, 1.84), ORANGE, bend=0.22)
    ax.text(2.6, 0.72, "step = chain(h)", fontsize=13, color=ORANGE, ha="center")


def main():
    figure, ax = plt.subplots(figsize=(11, 4.6), dpi=150)
    curved_side(ax)
    flat_side(ax)
    ax.set_xlim(-2.5, 9.6)
    ax.set_ylim(-1.25, 3.3)
    ax.axis("off")
    figure.savefig(Path(__file__).with_name("idea.png"), bbox_inches="tight", facecolor="white")


if __name__ == "__main__":
    main()
