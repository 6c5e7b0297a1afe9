"""Newton's equation by conjugate gradients, with and without a Nyström preconditioner, for docs/solvers.md.

    python benchmarks/solvers_nystrom.py            # two minutes; writes docs/solvers-nystrom.png
    python benchmarks/solvers_nystrom.py --quick    # small sizes, nothing is written

Each method runs on each problem until the norm of the gradient has fallen by 1e8: seconds of one thread's CPU time, and
numbers of products with the Hessian, as medians over starts. Functions have their constant matrices on the right, which
torch batches without copies of them.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from steepest.compare.figures import COLORS
from steepest.manifolds import Euclidean, Grassmann, Manifold, Sphere
from steepest.runs.pictures import legend_below, picture
from steepest.solvers import LBFGS, Method, Newton, NystromNewton, Problem, minimize

PICTURE = Path(__file__).parent.parent / "docs" / "solvers-nystrom.png"
FALL = 1e-8
SEEDS = 3


class Task(NamedTuple):
    name: str
    fun: Callable[[Any], Tensor]
    manifold: Manifold
    shape: Any


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def decaying(rows: int, n: int, power: float, seed: int) -> Tensor:
    """Gaussian rows whose covariance has the eigenvalues k^-power."""
    q = torch.linalg.qr(randn(n, n, seed=seed))[0]
    return (randn(rows, n, seed=seed + 1) * torch.arange(1.0, n + 1, dtype=torch.float64) ** (-power / 2)) @ q.mT


def logistic(n: int) -> Task:
    """Regularised logistic regression of features with a decaying spectrum."""
    a = decaying(4 * n, n, 2.0, 1)
    at = a.mT.contiguous()
    y = torch.sign(a @ randn(n, seed=3) + 0.1 * randn(4 * n, seed=4))
    return Task(
        "logistic regression",
        lambda x: torch.nn.functional.softplus(-y * (x @ at)).mean() + 5e-9 * x @ x,
        Euclidean(1),
        (n,),
    )


def spherical(n: int) -> Task:
    """Logistic regression with weights of a fixed norm."""
    a = decaying(4 * n, n, 2.0, 1)
    at = a.mT.contiguous()
    y = torch.sign(a @ randn(n, seed=3) + 0.1 * randn(4 * n, seed=4))
    return Task(
        "logistic regression, unit weights",
        lambda x: torch.nn.functional.softplus(-1000 * y * (x @ at)).mean(),
        Sphere(),
        (n,),
    )


def components(n: int) -> Task:
    """Principal components of data with a decaying spectrum."""
    a = decaying(2 * n, n, 1.5, 1)
    c = a.mT @ a / len(a)
    return Task("principal components", lambda x: -((x.mT @ c).mT * x).sum() / 2, Grassmann(), (n, 3))


def robust(n: int) -> Task:
    """A subspace by the sum of (smoothed) distances to it, with outliers."""
    """Points x are orthonormal, so that |a - x x^T a|^2 = |a|^2 - |x^T a|^2."""
    a = torch.cat([decaying(2 * n, n, 2.0, 1), 0.3 * randn(n // 2, n, seed=5) / n**0.5])
    at, size = a.mT.contiguous(), a.square().sum(1)
    return Task(
        "robust subspace",
        lambda x: (size - (x.mT @ at).square().sum(0) + 1e-4).sqrt().mean(),
        Grassmann(),
        (n, 3),
    )


TASKS = ((logistic, 1000), (spherical, 800), (components, 300), (robust, 300))


def contenders() -> dict[str, Method]:
    return {
        "Nyström-Newton": NystromNewton(),
        "Nyström-Newton, rank 100": NystromNewton(rank=100),
        "Newton-CG": Newton(),
        "L-BFGS": LBFGS(),
    }


class Run(NamedTuple):
    seconds: float
    products: int
    steps: int
    success: bool
    curve: list[tuple[float, int, float]]
    """CPU seconds, evaluations, and the gradient's norm relative to the first."""


def solve(task: Task, method: Method, seed: int) -> Run:
    x0 = task.manifold.random_point(task.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    start = Problem(task.fun, task.manifold).at(x0).norm
    began, curve = time.process_time(), list[tuple[float, int, float]]()

    def watch(record: Any, x: Any) -> None:
        curve.append((time.process_time() - began, record.evaluations, record.gradient_norm / start))

    r = minimize(task.fun, x0, task.manifold, method, tolerance=FALL * start, max_iterations=500, callback=watch)
    return Run(curve[-1][0], r.evaluations.products, r.iterations, r.success, curve)


def draw(found: dict[str, dict[str, Run]]) -> bytes:
    with picture((3.4 * len(found), 6.4)) as (figure, buffer):
        grid = figure.subplots(2, len(found), squeeze=False, sharey=True)
        for column, (task, runs) in zip(grid.T, found.items(), strict=True):
            for i, axes in enumerate(column):
                for color, (name, run) in zip(COLORS, runs.items(), strict=False):
                    axes.semilogy([p[i] for p in run.curve], [p[2] for p in run.curve], label=name, color=color)
                # the slowest would leave the others no room
                ends = sorted(run.curve[-1][i] for run in runs.values())
                axes.set_xlim(0, min(ends[-1], 1.6 * ends[-2]))
                axes.set_xlabel(("CPU seconds", "values, gradients and products")[i])
            column[0].set_title(task)
        for axes in grid[:, 0]:
            axes.set_ylabel("relative norm of the gradient")
        legend_below(figure, grid[0][0], len(contenders()))
    return buffer.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    shown = {}
    for make, size in TASKS:
        task = make(40 if quick else size)
        solve(task, NystromNewton(), 99)  # to warm up
        print(f"{task.name}, {math.prod(task.shape)} coordinates")
        shown[task.name] = {}
        for name, method in contenders().items():
            runs = [solve(task, method, seed) for seed in range(1 if quick else SEEDS)]
            seconds, products, steps = (statistics.median(getattr(r, k) for r in runs) for k in Run._fields[:3])
            shown[task.name][name] = sorted(runs)[len(runs) // 2]
            end = "" if all(r.success for r in runs) else ", not to the end"
            print(f"  {name:26} {seconds:7.3f} s {products:6.0f} products {steps:5.0f} steps{end}", flush=True)
    if not quick:
        PICTURE.write_bytes(draw(shown))


if __name__ == "__main__":
    main()
