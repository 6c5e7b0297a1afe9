"""Methods for finite sums: passes over the data against the gap, and how a planted saddle is left.

    python benchmarks/solvers_finite_sum.py            # two to three minutes; writes docs/solvers-finite-sum.png
    python benchmarks/solvers_finite_sum.py --quick    # fewer terms and epochs, to see that it runs

Each method gets the rate, each half of the one before, with which it ends lowest.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from steepest import SPD, Grassmann, Sphere
from steepest.manifolds import Manifold
from steepest.runs.files import atomic
from steepest.runs.pictures import picture
from steepest.solvers import SRG, SVRG, PerturbedSRG, Stochastic, SumMethod, minimize_sum

PICTURE = Path(__file__).parent.parent / "docs" / "solvers-finite-sum.png"
METHODS = {"SGD": Stochastic(), "SVRG": SVRG(), "SRG": SRG()}
COLORS = {"SGD": "#999999", "SVRG": "#1f77b4", "SRG": "#d62728", "PerturbedSRG": "#2ca02c"}


@dataclasses.dataclass(frozen=True)
class Problem:
    """A mean of n terms with its optimum."""

    term: Callable[[Any, Tensor], Tensor]
    n: int
    manifold: Manifold
    x0: Tensor
    optimum: float
    rates: list[float]
    batch_size: int


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def components(n: int) -> Problem:
    """The subspace of the five largest of twenty principal components; the gap after the fifth is a third."""
    scale = torch.cat([torch.linspace(2, 1.2, 5), torch.linspace(1, 0.2, 15)]).double()
    data = randn(n, 20, seed=0) * scale
    optimum = -float(torch.linalg.eigvalsh(data.T @ data / n)[-5:].sum())
    x0 = torch.linalg.qr(randn(20, 5, seed=1))[0]
    rates = [0.2 * 2.0**-k for k in range(4)]
    return Problem(lambda x, i: -(data[i] @ x).square().sum(-1), n, Grassmann(), x0, optimum, rates, 20)


def mean(n: int) -> Problem:
    """The mean of positive definite matrices, with eigenvalues two decades apart."""
    manifold, eye = SPD(), torch.eye(5, dtype=torch.float64)
    q = torch.linalg.qr(randn(n, 5, 5, seed=2))[0]
    points = (q * (1.5 * randn(n, 1, 5, seed=3)).exp()) @ q.mT
    optimum = float(manifold.dist(manifold.mean(points), points).square().mean() / 2)
    rates = [0.8 * 2.0**-k for k in range(4)]
    return Problem(lambda x, i: manifold.dist(x, points[i]).square() / 2, n, manifold, eye, optimum, rates, 5)


def saddle() -> Problem:
    """Rayleigh's quotient from the second of twenty eigenvectors, where the gradient is rounding alone: the first
    eigenvalue is 1.3 times as large."""
    q, sample = torch.linalg.qr(randn(20, 20, seed=4))[0], torch.linalg.qr(randn(200, 20, seed=5))[0] * 200**0.5
    data = (sample * torch.cat([torch.tensor([1.3, 1.0]), torch.linspace(0.9, 0.1, 18)]).double().sqrt()) @ q.T
    vectors = torch.linalg.eigh(data.T @ data / 200)[1]
    return Problem(lambda x, i: -(data[i] @ x).square(), 200, Sphere(), vectors[:, -2], -1.3, [0.1], 10)


Curve = list[tuple[float, float]]


def curve(problem: Problem, method: SumMethod, passes: int, tolerance: float = 0.0) -> Curve:
    """Passes and gaps, epoch by epoch."""

    def enough(record: Any, x: Any) -> bool:
        return record.note["passes"] >= passes or record.value - problem.optimum < 1e-14

    result = minimize_sum(
        problem.term,
        problem.n,
        problem.x0,
        problem.manifold,
        method,
        epochs=10 * passes,
        batch_size=problem.batch_size,
        tolerance=tolerance,
        callback=enough,
        progress=False,
    )
    return [(r.note["passes"], max(r.value - problem.optimum, 1e-15)) for r in result.history]


def compared(problem: Problem, passes: int) -> dict[str, tuple[float, Curve]]:
    """The best rate of each method, and its curve."""
    found = {}
    for name, method in METHODS.items():
        runs = {rate: curve(problem, dataclasses.replace(method, rate=rate), passes) for rate in problem.rates}
        best = min(runs, key=lambda rate: (max(runs[rate][-1][1], 1e-13), runs[rate][-1][0]))
        found[name] = best, runs[best]
    return found


def escapes(passes: int) -> dict[str, Curve]:
    """From the saddle: the plain methods, and the perturbed one with three seeds."""
    problem, (rate,) = saddle(), saddle().rates
    runs = {name: curve(problem, family(rate), passes) for name, family in {"SVRG": SVRG, "SRG": SRG}.items()}
    return runs | {"PerturbedSRG": curve(problem, PerturbedSRG(rate), passes)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--output", type=Path, default=PICTURE)
    options = parser.parse_args()
    torch.set_num_threads(1)
    n, passes = (400, 12) if options.quick else (1000, 45)
    results = {
        "principal components": compared(components(n), passes),
        "mean of matrices": compared(mean(n // 10), passes),
    }
    left = escapes(2 * passes)
    for title, found in results.items():
        for name, (rate, points) in found.items():
            print(f"{title:24} {name:6} rate {rate:<8g} gap {points[-1][1]:.1e} after {points[-1][0]:.0f} passes")
    for name, points in left.items():
        print(f"{'saddle':24} {name:12} gap {points[-1][1]:.1e} after {points[-1][0]:.0f} passes")
    with picture((9.5, 3.6)) as (figure, buffer):
        axes = figure.subplots(1, 2)
        for found, style in zip(results.values(), ("-", "--"), strict=True):
            for name, (_, points) in found.items():
                axes[0].semilogy(
                    *zip(*points, strict=True), style, color=COLORS[name], label=name if style == "-" else None
                )
        axes[0].set(
            title="Components (lines), mean (dashed)", xlabel="passes over the data", ylabel="gap to the optimum"
        )
        for name, points in left.items():
            axes[1].semilogy(
                *zip(*[(p, g) for p, g in points], strict=True), color=COLORS[name], label=name, marker="."
            )
        axes[1].set(title="From a planted saddle", xlabel="passes over the data", ylabel="gap to the optimum")
        for a in axes:
            a.legend()
    if not options.quick:
        with atomic(options.output) as path:
            path.write_bytes(buffer.getvalue())


if __name__ == "__main__":
    main()
