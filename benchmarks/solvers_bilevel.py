"""Hypergradients: the error of the four estimators against their cost, for docs/solvers.md.

    python benchmarks/solvers_bilevel.py            # a minute; writes docs/solvers-bilevel.png
    python benchmarks/solvers_bilevel.py --quick    # small sizes, nothing is written

The problem is the synthetic one of Han et al. 2024 (2402.03883), section 4.1: an orthonormal W above, a positive
definite M below, whose minimum and so the hypergradient have closed forms. Steps are one over the largest eigenvalue.
Left, the lower level is solved, and products with its Hessian are what counts (a step of `Unrolled` costs as much,
forwards and back); right, M is off its minimum by more and more (CG lies below Inverse). Lines are true errors, dots
the estimates of them.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from steepest.compare.figures import COLORS
from steepest.manifolds import SPD, Stiefel
from steepest.runs.pictures import legend_below, picture
from steepest.solvers import CG, Inverse, Levels, Neumann, Problem, Unrolled
from steepest.solvers.bilevel import Hypergradient

PICTURE = Path(__file__).parent.parent / "docs" / "solvers-bilevel.png"


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Synthetic:
    """f = -<M, A^T Y W^T>, g = <M, A^T A> + <M^-1, W Y^T Y W^T + lambda I>."""

    def __init__(self, count: int, d: int, r: int, ridge: float = 0.01) -> None:
        a, y = randn(count, d, seed=0), randn(count, r, seed=1)
        a, y = a / a.norm(), y / y.norm()
        self.gram, self.cross, self.outer = a.mT @ a, a.mT @ y, y.mT @ y
        self.ridge = ridge * torch.eye(d, dtype=torch.float64)
        self.w = Stiefel().project(randn(d, r, seed=2))
        self.levels = Levels(self.upper, self.lower, Stiefel(), SPD())

    def upper(self, w: Tensor, m: Tensor) -> Tensor:
        return -(m * (self.cross @ w.mT)).sum()

    def lower(self, w: Tensor, m: Tensor) -> Tensor:
        return (m * self.gram).sum() + (torch.linalg.inv(m) * self.right(w)).sum()

    def right(self, w: Tensor) -> Tensor:
        return w @ self.outer @ w.mT + self.ridge

    def solve(self, w: Tensor) -> Tensor:
        """The geometric mean of (A^T A)^-1 and the other matrix."""
        root, inverse = power(self.gram, 0.5), power(self.gram, -0.5)
        return inverse @ power(root @ self.right(w) @ root, 0.5) @ inverse

    def truth(self) -> Any:
        """The hypergradient, in coordinates at w."""
        return Problem(lambda w: self.upper(w, self.solve(w)), Stiefel()).at(self.w)


def power(a: Tensor, p: float) -> Tensor:
    values, vectors = torch.linalg.eigh((a + a.mT) / 2)
    return (vectors * values**p) @ vectors.mT


def measured(problem: Synthetic, rule: Hypergradient, m: Tensor) -> dict[str, float]:
    """The error, relative to the hypergradient's norm, its estimate, and the cost."""
    at, pair = problem.truth(), problem.levels.at(problem.w, m)
    before, start = problem.levels.below.products, time.perf_counter()
    estimate = rule.estimate(pair)
    seconds, products = time.perf_counter() - start, problem.levels.below.products - before
    found = at.ravel(Stiefel()._pull(at.frame, estimate.covector))
    return {
        "error": float((found - at.gradient).norm()) / at.norm,
        "said": rule.error(pair, estimate) / at.norm,
        "products": products if not isinstance(rule, Unrolled) else rule.steps,
        "seconds": seconds,
    }


def spectrum(problem: Synthetic, m: Tensor) -> tuple[float, float]:
    """Smallest and largest eigenvalue of the lower Hessian."""
    below = problem.levels.at(problem.w, m).below
    eye = below.conform(torch.eye(below.size, dtype=torch.float64))
    values = torch.linalg.eigvalsh(below.product(eye))
    return float(values[values > 1e-9 * values[-1]][0]), float(values[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    problem = Synthetic(20, 5, 2) if quick else Synthetic(100, 20, 8)
    counts = (2, 8) if quick else (1, 2, 4, 8, 16, 32, 64, 128)
    offsets = [10.0**k for k in ((-4, -1) if quick else range(-8, 1))]
    exact = problem.solve(problem.w)
    low, high = spectrum(problem, exact)
    step = 1 / high
    print(f"eigenvalues of the lower Hessian from {low:.3g} to {high:.3g}, condition {high / low:.3g}")
    rules: dict[str, Any] = {
        "CG": lambda k: CG(k, 0.0),
        "Neumann": lambda k: Neumann(k, step),
        "Unrolled": lambda k: Unrolled(k, step),
        "Inverse": lambda k: Inverse(),
    }
    solved: dict[str, list[dict[str, float]]] = {}
    for name, make in rules.items():
        solved[name] = [measured(problem, make(k), exact) for k in (counts if name != "Inverse" else counts[:1])]
        for row in solved[name]:
            print(f"{name:9} " + "  ".join(f"{k} {v:.2g}" for k, v in row.items()))
    v = SPD().random_tangent(exact, generator=torch.Generator().manual_seed(3))
    v = v / SPD().norm(exact, v)
    off: dict[str, list[dict[str, float]]] = {}
    k = counts[-2] if not quick else 8
    for name, make in rules.items():
        off[name] = [measured(problem, make(k), SPD().exp(exact, t * v)) for t in offsets]
        for t, row in zip(offsets, off[name], strict=True):
            print(f"off {t:.0e} {name:9} error {row['error']:.2g}  said {row['said']:.2g}")
    if not quick:
        PICTURE.write_bytes(drawn(solved, off, offsets, k))
        print(PICTURE)


def drawn(solved: dict[str, Any], off: dict[str, Any], offsets: list[float], k: int) -> bytes:
    colors = dict(zip(solved, COLORS, strict=False))
    with picture((10, 4.4)) as (figure, buffer):
        left, right = figure.subplots(1, 2, sharey=True)
        for name, rows in solved.items():
            x = [row["products"] for row in rows]
            left.loglog(x, [max(r["error"], 1e-17) for r in rows], color=colors[name], label=name, marker="_")
            left.loglog(x, [max(r["said"], 1e-17) for r in rows], "o", color=colors[name], markersize=4)
        for name, rows in off.items():
            right.loglog(offsets, [r["error"] for r in rows], color=colors[name])
            right.loglog(offsets, [r["said"] for r in rows], "o", color=colors[name], markersize=4)
        left.set(title="Lower level solved", xlabel="products with the Hessian, or steps")
        left.set(ylabel="error of the hypergradient, relative", ylim=(1e-17, 10))
        right.set(title=f"Lower level off; {k} steps or products", xlabel="distance of M from its minimum")
        legend_below(figure, left, 4)
    return buffer.getvalue()


if __name__ == "__main__":
    main()
