"""Twenty steps of Riemannian optimisers beside other libraries, for docs/solvers.md: time of each, and where they end.

Dominant subspace (`pca`): -tr(X^T A X) / 2 for a symmetric matrix of size 1000 with eigenvalues from 1 to 0.6 fifty
times and from 0.3 to 0 for the rest, on Grassmann and on Stiefel. Mean (`spd`): half the mean squared affine-invariant
distance to 50 positive definite matrices of size 20, in plain torch, from the identity. The same data, function, start
and constant step for all; libraries that differentiate do so with torch, geomstats and pyRiemann, which only have the
mean, by formula. Where every coordinate has its own second moment instead of one for all, Adam's step is divided by the
root of their number, so that steps are as long.

    python benchmarks/solvers_steps.py                       # writes into docs/solvers.json, prints the table
    python benchmarks/solvers_steps.py --quick --output /tmp/solvers.json
    python benchmarks/solvers_steps.py --only "spd_mean | tr"

A library is timed in a process of its own, on one thread, in turn with the others (`harness`): medians of CPU time.
Optimisers are built before the clock starts. A method that ends early is divided by the steps that it made. "tr", whose
steps differ in what they do, and "mean" are whole calls: trust regions until the gradient's norm is 1e-6 (1e-3 in
float32), the mean with the library's own rule, geomstats' tightened to 1e-12.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from harness import Effort, Library, Offers, Trial, arguments, load, measure

PART = "steps"
STEPS = 20
PROBLEMS = {"pca_grassmann": "pca", "pca_stiefel": "pca", "spd_mean": "spd"}
WHOLE = ("tr", "mean")
"""What is timed as a whole."""
METHODS = ("rsgd", "radam", "linesearch", "sd", "cg", "lbfgs", "tr", "mean")
RATES = {"pca": {"rsgd": 1.0, "radam": 1.0}, "spd": {"rsgd": 1.0, "radam": 0.5}}
N, P = 1000, 50
COUNT, SIZE = 50, 20


@dataclass(frozen=True)
class Cell:
    """A row's first three columns."""

    problem: str
    method: str
    dtype: str

    def __str__(self) -> str:
        return f"{self.problem} | {self.method} | {self.dtype}"

    @property
    def tolerance(self) -> float:
        """Of the gradient's norm."""
        return (1e-6 if self.dtype == "float64" else 1e-3) if self.method in WHOLE else 0.0

    @property
    def rate(self) -> float:
        return RATES[PROBLEMS[self.problem]][self.method]


def cells() -> list[Cell]:
    found = [Cell(p, m, d) for p in PROBLEMS for m in METHODS for d in ("float32", "float64")]
    return [c for c in found if c.method != "mean" or c.problem == "spd_mean"]


# The problems. --------------------------------------------------------------------------------------------------------


@cache
def pca() -> tuple[np.ndarray, np.ndarray, float, float]:
    """The matrix, the start, the function there, and the optimum."""
    rng = np.random.default_rng(0)
    q = np.linalg.qr(rng.normal(size=(N, N)))[0]
    eigenvalues = np.concatenate([np.linspace(1, 0.6, P), np.linspace(0.3, 0, N - P)])
    a = (q * eigenvalues) @ q.T
    a = (a + a.T) / 2
    x0 = np.linalg.qr(rng.normal(size=(N, P)))[0]
    return a, x0, -np.sum(x0 * (a @ x0)) / 2, -eigenvalues[:P].sum() / 2


@cache
def spd() -> tuple[np.ndarray, np.ndarray, float, float]:
    """The matrices, the start, the function there, and the optimum: by the fixed-point iteration for the mean."""
    rng = np.random.default_rng(0)
    q = np.linalg.qr(rng.normal(size=(COUNT, SIZE, SIZE)))[0]
    y = (q * np.exp(rng.normal(size=(COUNT, 1, SIZE)))) @ np.swapaxes(q, -1, -2)
    x0 = np.eye(SIZE)
    x = y.mean(0)
    for _ in range(50):
        root, inverse = _function(np.sqrt, x), _function(lambda w: w**-0.5, x)
        x = root @ _function(np.exp, _function(np.log, inverse @ y @ inverse).mean(0)) @ root
    return y, x0, _spread(x0, y), _spread(x, y)


def _function(f: Callable[[np.ndarray], np.ndarray], x: np.ndarray) -> np.ndarray:
    w, q = np.linalg.eigh(x)
    return (q * f(w)[..., None, :]) @ np.swapaxes(q, -1, -2)


def _spread(x: np.ndarray, y: np.ndarray) -> float:
    inverse = _function(lambda w: w**-0.5, (x + x.T) / 2)
    return float((np.log(np.linalg.eigvalsh(inverse @ y @ inverse)) ** 2).sum(-1).mean()) / 2


def data(cell: Cell) -> tuple[np.ndarray, np.ndarray]:
    """The matrix or matrices, and the start."""
    first, x0, *_ = pca() if PROBLEMS[cell.problem] == "pca" else spd()
    return first.astype(cell.dtype), x0.astype(cell.dtype)


def cost(cell: Cell) -> Callable[[Any], Any]:
    """The function, of torch."""
    import torch

    first = torch.tensor(data(cell)[0])
    if PROBLEMS[cell.problem] == "pca":
        return lambda x: -(x * (first @ x)).sum() / 2
    inverse = torch.linalg.inv(torch.linalg.cholesky(first))
    return lambda x: torch.linalg.eigvalsh(inverse @ x @ inverse.mT).log().square().sum(-1).mean() / 2


def judge(cell: Cell, evidence: tuple[np.ndarray, int]) -> dict[str, Any]:
    """What is left of the gap, how far the point is from the manifold, and the steps that were made."""
    x, steps = evidence
    if PROBLEMS[cell.problem] == "pca":
        first, _, start, optimum = pca()
        q = np.linalg.qr(x)[0]  # a start that has left the manifold must not count as lower
        value, feasible = -np.sum(q * (first @ q)) / 2, np.abs(x.T @ x - np.eye(P)).max()
    else:
        first, _, start, optimum = spd()
        value, feasible = _spread(x, first), np.abs(x - x.T).max()
    return {"gap": float(f"{(value - optimum) / (start - optimum):.2g}"), "feasible": float(f"{feasible:.1g}")} | (
        {"steps": steps} if steps != STEPS else {}
    )


# The libraries. -------------------------------------------------------------------------------------------------------

Run = Callable[[], tuple[Any, int]]
"""From the start: the last point, and the steps that were made."""
Table = Callable[[Cell], Run | None]


def opened(name: str, table: Callable[[], Table]) -> Callable[[Cell], Offers]:
    """The library in its process."""
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    warnings.simplefilter("ignore")
    runs = table()

    def offers(cell: Cell) -> Offers:
        run = runs(cell)
        return {name: partial(trial, run, cell)} if run else {}

    return offers


def trial(run: Run, cell: Cell) -> Trial:
    """All steps are one call; its time is divided by as many as there were."""
    x, steps = run()
    x = np.asarray(x.detach() if hasattr(x, "detach") else x, dtype=np.float64)
    return Trial(lambda: run(), lambda: (x, steps), 1 if cell.method in WHOLE else steps)


def steepest(exact: bool = True) -> Table:
    """With the geodesics of positive definite matrices, which are its default, or the others' retraction of second
    order."""
    import torch

    import steepest as library
    from steepest.solvers import SteepestDescent

    manifolds = {"pca_grassmann": library.Grassmann(), "pca_stiefel": library.Stiefel(), "spd_mean": library.SPD()}
    if not exact:
        manifolds = {"spd_mean": library.SPD(retraction="second_order")}
    solvers: dict[str, Any] = {
        "sd": "SteepestDescent",
        "cg": "ConjugateGradients",
        "lbfgs": "LBFGS",
        "tr": "TrustRegion",
    }
    solvers["linesearch"] = SteepestDescent(barzilai_borwein=False, memory=1)

    def table(cell: Cell) -> Run | None:
        if not exact and (cell.problem not in manifolds or cell.method == "mean"):
            return None
        manifold, fun, x0 = manifolds[cell.problem], cost(cell), torch.tensor(data(cell)[1])

        def solved() -> tuple[Any, int]:
            options: dict[str, Any] = {"tolerance": cell.tolerance, "max_iterations": STEPS}
            result = library.minimize(fun, x0, manifold, solvers[cell.method], **options)
            return result.x, max(result.iterations, 1)

        if cell.method == "mean":
            points = torch.tensor(data(cell)[0])
            return lambda: (manifold.mean(points), STEPS)
        if cell.method not in ("rsgd", "radam"):
            return solved
        module = torch.nn.Module()
        module.x = torch.nn.Parameter(x0.clone())
        library.constrain(module, "x", manifold)
        if cell.method == "rsgd":
            optimizer: Any = library.SGD(module.parameters(), lr=cell.rate)
        else:
            optimizer = library.Adam(module.parameters(), lr=cell.rate / x0.numel() ** 0.5)
        return lambda: (_loop(optimizer, module.x, x0, fun), STEPS)

    return table


def _loop(optimizer: Any, x: Any, x0: Any, fun: Callable[[Any], Any]) -> Any:
    x.data.copy_(x0)
    for _ in range(STEPS):
        optimizer.zero_grad()
        fun(x).backward()
        optimizer.step()
    return x


def geoopt(canonical: bool) -> Table:
    """Its line search is for Wolfe's conditions, along the gradient."""
    import geoopt as library
    import torch

    stiefel = library.CanonicalStiefel() if canonical else library.EuclideanStiefel()
    manifolds = {"pca_stiefel": stiefel, "spd_mean": library.SymmetricPositiveDefinite()}

    def table(cell: Cell) -> Run | None:
        manifold = manifolds.get(cell.problem)
        if manifold is None or cell.method not in ("rsgd", "radam", "linesearch"):
            return None
        if canonical and cell.problem == "spd_mean":
            return None
        fun, x0 = cost(cell), torch.tensor(data(cell)[1])
        x = library.ManifoldParameter(x0.clone(), manifold=manifold)

        def searched() -> tuple[Any, int]:
            x.data.copy_(x0)
            optimizer = library.optim.RiemannianLineSearch([x])

            def closure() -> Any:
                optimizer.zero_grad()
                loss = fun(x)
                loss.backward()
                return loss

            for _ in range(STEPS):
                optimizer.step(closure)
            return x, STEPS

        if cell.method == "linesearch":
            return searched
        kind = {"rsgd": library.optim.RiemannianSGD, "radam": library.optim.RiemannianAdam}[cell.method]
        optimizer = kind([x], lr=cell.rate)
        return lambda: (_loop(optimizer, x, x0, fun), STEPS)

    return table


def pymanopt() -> Table:
    """Without `rsgd`: a loop of its gradient and its retraction. Conjugate gradients count from one."""
    import pymanopt as library
    from pymanopt import optimizers
    from pymanopt.manifolds import Grassmann, Stiefel, SymmetricPositiveDefinite

    manifolds = {
        "pca_grassmann": Grassmann(N, P),
        "pca_stiefel": Stiefel(N, P),
        "spd_mean": SymmetricPositiveDefinite(SIZE),
    }
    solvers = {
        "sd": (optimizers.SteepestDescent, STEPS),
        "cg": (optimizers.ConjugateGradient, STEPS + 1),
        "tr": (optimizers.TrustRegions, STEPS),
    }

    def table(cell: Cell) -> Run | None:
        if cell.method not in ("rsgd", *solvers):
            return None
        manifold, fun, x0 = manifolds[cell.problem], cost(cell), data(cell)[1]
        problem = library.Problem(manifold, library.function.pytorch(manifold)(lambda x: fun(x)))

        def descent() -> tuple[Any, int]:
            x = x0
            for _ in range(STEPS):
                x = manifold.retraction(x, -cell.rate * problem.riemannian_gradient(x))
            return x, STEPS

        def solved() -> tuple[Any, int]:
            solver, most = solvers[cell.method]
            options: dict[str, Any] = {"min_gradient_norm": cell.tolerance, "min_step_size": 0.0}
            found = solver(max_iterations=most, verbosity=0, **options).run(problem, initial_point=x0)
            return found.point, found.iterations - (most - STEPS)

        return descent if cell.method == "rsgd" else solved

    return table


def geomstats() -> Table:
    os.environ["GEOMSTATS_BACKEND"] = "numpy"
    np.trapz = np.trapezoid  # type: ignore[attr-defined]  # geomstats 2.8 still imports the old name
    from geomstats.geometry.spd_matrices import SPDAffineMetric, SPDMatrices
    from geomstats.learning.frechet_mean import FrechetMean

    def table(cell: Cell) -> Run | None:
        if cell.method != "mean":
            return None
        space = SPDMatrices(SIZE, equip=False)
        space.equip_with_metric(SPDAffineMetric)
        points = data(cell)[0]

        def run() -> tuple[Any, int]:
            mean = FrechetMean(space)
            mean.optimizer.epsilon = 1e-12
            return mean.fit(points).estimate_, STEPS

        return run

    return table


def pyriemann() -> Table:
    from pyriemann.utils.mean import mean_riemann

    def table(cell: Cell) -> Run | None:
        points = data(cell)[0]
        return (lambda: (mean_riemann(points), STEPS)) if cell.method == "mean" else None

    return table


LIBRARIES: dict[str, Library] = {
    "steepest": partial(opened, "steepest", steepest),
    "steepest, second order": partial(opened, "steepest, second order", partial(steepest, False)),
    "geoopt": partial(opened, "geoopt", partial(geoopt, False)),
    "geoopt-canonical": partial(opened, "geoopt-canonical", partial(geoopt, True)),
    "pymanopt": partial(opened, "pymanopt", pymanopt),
    "geomstats": partial(opened, "geomstats", geomstats),
    "pyriemann": partial(opened, "pyriemann", pyriemann),
}


# The table. -----------------------------------------------------------------------------------------------------------


def table(section: dict[str, dict[str, Any]]) -> str:
    """Markdown, the fastest first; and the rows in which steepest is not."""
    lines = [
        "| problem | method | dtype | library | per step (tr, mean: whole) | gap after | feasible |",
        "|---|" + "---|" * 6,
    ]
    behind = []
    for key, found in section.items():
        ranked = sorted(found.items(), key=lambda item: item[1].get("cpu", float("inf")))
        for name, entry in ranked:
            if "fault" in entry:
                lines.append(f"| {key} | {name} | fails: {entry['fault'][:60]} | | |")
                continue
            steps = f" ({entry['steps']} steps)" if "steps" in entry else ""
            time = f"{1000 * entry['cpu']:.2f} ms{steps}"
            lines.append(f"| {key} | {name} | {time} | {entry['gap']:.1e} | {entry['feasible']:.0e} |")
        name, best = ranked[0]
        if not name.startswith("steepest") and "cpu" in best:
            mine = min(e.get("cpu", math.inf) for n, e in ranked if n.startswith("steepest"))
            behind.append(f"{key}: {name} {1000 * best['cpu']:.2f} ms, steepest {1000 * mine:.2f} ms")
    return "\n".join([*lines, "", "not ahead: " + ("; ".join(behind) or "nowhere")])


def main() -> None:
    options = arguments(__doc__ or "")
    if options.output == Path(__file__).parent.parent / "docs" / "speed.json":
        options.output = options.output.with_name("solvers.json")
    options.threads = [1]
    effort = Effort(3, 0.01) if options.quick else Effort(15, 0.1)
    chosen = [c for c in cells() if options.only in str(c)]
    distributions = ("torch", "geoopt", "pymanopt", "geomstats", "pyriemann")
    measure(PART, options, effort, chosen, LIBRARIES, judge, distributions)
    print(table(load(options.output)[PART]["1"]))


if __name__ == "__main__":
    main()
