"""Bures-Wasserstein against affine-invariant geometry on ill-conditioned problems: docs/bures_wasserstein.png.

Han, Mishra, Jawanpuria and Gao 2021 (2110.10464) find that the Riemannian Hessian at a solution X* is conditioned like
kappa(X*) under the Bures-Wasserstein metric and like kappa(X*)^2 under the affine-invariant one, for problems that are
well conditioned in X itself. So steepest descent should need about kappa and kappa^2 iterations. Two of their problems
at a small size: least squares |X - B|^2 / 2, and a Lyapunov equation, tr(X A X) / 2 - tr(X C), whose solution is X*.

    python benchmarks/bures_wasserstein.py            # about three minutes
    python benchmarks/bures_wasserstein.py --size 50
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from steepest import SPD

PLOT = Path(__file__).parent.parent / "docs" / "bures_wasserstein.png"
METRICS = ("affine-invariant", "bures-wasserstein")
CONDITIONS = (3, 10, 30, 100, 300, 1000)
TOLERANCE = 1e-5
"""Of |X - X*| / |X*|, in the Frobenius norm."""


def symmetric(eigenvalues, generator):
    """A symmetric matrix with the given eigenvalues in a random basis."""
    q, _ = torch.linalg.qr(torch.randn(len(eigenvalues), len(eigenvalues), generator=generator, dtype=torch.float64))
    return (q * eigenvalues) @ q.mT


def problem(name, n, condition, generator):
    """The solution, the function and its Euclidean gradient."""
    best = symmetric(torch.logspace(0, -torch.log10(torch.tensor(float(condition))), n, dtype=torch.float64), generator)
    if name == "least squares":
        return best, lambda x: (x - best).square().sum() / 2, lambda x: x - best
    a = symmetric(torch.linspace(1, 3, n, dtype=torch.float64), generator)
    c = (a @ best + best @ a) / 2
    return best, lambda x: (x * (x @ a)).sum() / 2 - (x * c).sum(), lambda x: (x @ a + a @ x) / 2 - c


def descend(manifold, best, f, gradient, most):
    """Steepest descent from the identity, with a step found by doubling and halving (Armijo): iterations, seconds."""
    x, t = torch.eye(len(best), dtype=best.dtype), 1.0
    value, start = f(x), time.process_time()
    for k in range(most):
        if (x - best).norm() <= TOLERANCE * best.norm():
            return k, time.process_time() - start
        frame = manifold.frame(x)
        h = manifold._pull(frame, gradient(x))
        size, t = h.square().sum(), 2 * t
        while f(y := manifold._move(frame, -t * h)) > value - t / 2 * size and t > 1e-12:
            t /= 2
        x, value = y, f(y)
    return None, None


def measure(n, most):
    """Rows (problem, metric, condition, iterations, seconds)."""
    rows = []
    for name in ("least squares", "Lyapunov equation"):
        for metric in METRICS:
            for condition in CONDITIONS:
                best, f, gradient = problem(name, n, condition, torch.Generator().manual_seed(0))
                k, seconds = descend(SPD(metric), best, f, gradient, most)
                rows.append((name, metric, condition, k, seconds))
                done = f"{k:6d} iterations, {seconds:7.2f} s" if k is not None else f"not in {most} iterations"
                print(f"{name:18s} {metric:18s} condition {condition:5d}: {done}", flush=True)
                if k is None:
                    break
    return rows


def draw(rows, n):
    """Iterations and seconds over the condition number, for both problems and metrics."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    styles = {"least squares": "-", "Lyapunov equation": "--"}
    colours = {"affine-invariant": "C3", "bures-wasserstein": "C0"}
    for axis, column, label in ((axes[0], 3, "iterations"), (axes[1], 4, "seconds")):
        for name, style in styles.items():
            for metric, colour in colours.items():
                points = [(r[2], r[column]) for r in rows if r[:2] == (name, metric) and r[3] is not None]
                axis.loglog(
                    *zip(*points, strict=True), style, color=colour, marker="o", ms=4, label=f"{metric}, {name}"
                )
        axis.set(xlabel="condition number of the solution", ylabel=label)
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=7.5)
    figure.suptitle(f"Steepest descent to {TOLERANCE:g} relative error, n = {n}", fontsize=11)
    figure.savefig(PLOT, dpi=150)
    print(f"wrote {PLOT}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=20, help="n of the n x n matrices")
    parser.add_argument("--most", type=int, default=20_000, help="iterations after which a run counts as failed")
    options = parser.parse_args()
    torch.set_num_threads(1)
    draw(measure(options.size, options.most), options.size)


if __name__ == "__main__":
    main()
