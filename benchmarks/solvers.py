"""Time of `steepest.minimize` to known optima beside pymanopt's solvers, for docs/solvers.md.

Every problem of examples/gallery that pymanopt can express, with the very same function of torch, from the same start,
with the default options of both, in one process and one thread, in turn. A clock of CPU time runs until the function
has first been found below the target: the optimum plus a share of what the start is above it.

    python benchmarks/solvers.py                       # writes docs/solvers.json, its picture, and prints the table
    python benchmarks/solvers.py --quick               # small problems, one round: a minute
    python benchmarks/solvers.py --only MaxCut         # this problem anew

Problems that the results hold already are not measured again, but those named by --only; --fresh measures all.
"""

from __future__ import annotations

import os

POOLS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
os.environ.update(dict.fromkeys(POOLS, "1"))  # before the libraries read it

import argparse  # noqa: E402
import math  # noqa: E402
import statistics  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402
import warnings  # noqa: E402
from collections.abc import Callable  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import numpy as np  # noqa: E402
import pymanopt  # noqa: E402
import pymanopt.manifolds as theirs  # noqa: E402
import pymanopt.optimizers as solvers  # noqa: E402
import torch  # noqa: E402
from harness import load, machine, save, versions  # noqa: E402
from torch import Tensor  # noqa: E402

from steepest import (  # noqa: E402
    SPD,
    Euclidean,
    FixedRankEmbedded,
    Grassmann,
    Oblique,
    Orthogonal,
    Product,
    SpecialOrthogonal,
    Sphere,
    Stiefel,
)
from steepest.compare.figures import COLORS  # noqa: E402
from steepest.manifolds.tensors import as_tuple  # noqa: E402
from steepest.runs.pictures import picture  # noqa: E402
from steepest.solvers import minimize  # noqa: E402

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "examples" / "gallery"))

from example import Example, gallery  # noqa: E402

RESULTS = ROOT / "docs" / "solvers.json"
SECTION = "pymanopt"
METHODS = {
    "SteepestDescent": ("SteepestDescent", 1e-6),
    "ConjugateGradients": ("ConjugateGradient", 1e-6),
    "LBFGS": (None, 1e-6),
    "TrustRegion": ("TrustRegions", 1e-9),
}
"""Of each method: pymanopt's name, and the share of the start's excess at which the clock stops."""
ROUNDS = 5
LIMIT = 60.0
"""Seconds after which a run is given up."""


# Problems in pymanopt's terms. ----------------------------------------------------------------------------------------

Arrays = Any
Translation = tuple[Any, Callable[[Any], Any], Callable[..., Any], int]
"""A manifold of pymanopt, the function from our points to its points, the one from its tensors to our points, and how
many tensors a point of its has."""


class Inexpressible(Exception):
    """pymanopt has no such manifold or metric."""


def translated(manifold: Any, x: Any) -> Translation:
    """What pymanopt calls our manifold of points like x.

    The Bures-Wasserstein metric is that of X = Y Y^T on its quotient of full-rank factors; its group of rotations does
    for orthogonal matrices, as neither steps nor tangent vectors see the determinant.
    """
    if isinstance(manifold, Product):
        return _product(manifold, x)
    if isinstance(manifold, FixedRankEmbedded):
        return _fixed_rank(x)
    shape = tuple(x.shape)
    if isinstance(manifold, SPD) and manifold == SPD("bures-wasserstein"):
        n = shape[-1]
        return theirs.PSDFixedRank(n, n), lambda x: torch.linalg.cholesky(x).numpy(), lambda y: y @ y.mT, 1
    made = _plain(manifold, shape)
    return made, lambda x: x.numpy().copy(), lambda x: x, 1


def _plain(manifold: Any, shape: tuple[int, ...]) -> Any:
    if manifold == SPD():
        return theirs.SymmetricPositiveDefinite(shape[-1])
    if isinstance(manifold, Orthogonal | SpecialOrthogonal):
        return theirs.SpecialOrthogonalGroup(shape[-1], k=math.prod(shape[:-2]))
    if isinstance(manifold, Euclidean | Sphere | Oblique | Stiefel | Grassmann):
        return getattr(theirs, type(manifold).__name__)(*shape)
    raise Inexpressible(f"no {manifold}")


def _fixed_rank(x: tuple[Tensor, Tensor, Tensor]) -> Translation:
    """Their middle factor is diagonal."""

    def forth(x: tuple[Tensor, Tensor, Tensor]) -> Arrays:
        u, s, v = x
        left, middle, right = torch.linalg.svd(s)
        from pymanopt.manifolds.fixed_rank import _FixedRankPoint

        return _FixedRankPoint((u @ left).numpy(), middle.numpy(), (right @ v.mT).numpy())

    m, n, r = x[0].shape[0], x[2].shape[0], x[1].shape[0]
    return theirs.FixedRankEmbedded(m, n, r), forth, lambda u, s, vt: (u, s.diag(), vt.mT), 3


def _product(manifold: Product, x: tuple[Tensor, ...]) -> Translation:
    parts = [translated(m, p) for m, p in zip(manifold.factors, manifold._points(x), strict=True)]

    def forth(x: tuple[Tensor, ...]) -> Arrays:
        return [f(p) for (_, f, _, _), p in zip(parts, manifold._points(x), strict=True)]

    def back(*tensors: Tensor) -> Any:
        remaining, found = list(tensors), []
        for _, _, function, count in parts:
            found.extend(as_tuple(function(*[remaining.pop(0) for _ in range(count)])))
        return tuple(found)

    return theirs.Product([p[0] for p in parts]), forth, back, sum(p[3] for p in parts)


# Runs. ----------------------------------------------------------------------------------------------------------------


class Reached(Exception):
    """The function has been found below the target, or has been called often enough."""


class Watched:
    """A function that notes its least value, and raises `Reached` there."""

    def __init__(self, fun: Callable[[Any], Tensor], target: float, calls: float = math.inf) -> None:
        self.fun, self.target, self.limit = fun, target, calls
        self.calls, self.least = 0, math.inf

    def __call__(self, x: Any) -> Tensor:
        value = self.fun(x)
        self.calls += 1
        self.least = min(self.least, float(value.detach()))
        if self.least <= self.target or self.calls >= self.limit:
            raise Reached
        return value


Run = Callable[[Watched], None]


def ours(example: Example, method: str) -> Run:
    def run(watched: Watched) -> None:
        options: dict[str, Any] = {"tolerance": 0.0, "max_iterations": 10**6, "max_seconds": LIMIT}
        minimize(watched, example.x0, example.manifold, method, **options)

    return run


def pymanopts(example: Example, method: str) -> Run:
    manifold, forth, back, _ = translated(example.manifold, example.x0)
    start = forth(example.x0)

    def run(watched: Watched) -> None:
        @pymanopt.function.pytorch(manifold)
        def cost(*tensors: Tensor) -> Tensor:
            return watched(back(*tensors))

        options: dict[str, Any] = {"min_gradient_norm": 0.0, "max_iterations": 10**6, "max_time": LIMIT}
        solver = getattr(solvers, method)(verbosity=0, **options)
        solver.run(pymanopt.Problem(manifold, cost), initial_point=start)

    return run


def contenders(example: Example) -> dict[str, tuple[Run, float]]:
    """By names in the results, with the share of the start's excess to be reached."""
    found = {}
    for name, (other, share) in METHODS.items():
        found[f"steepest {name}"] = ours(example, name), share
        fits = not (other == "TrustRegions" and isinstance(example.manifold, FixedRankEmbedded))
        if other and fits:  # their embedded fixed-rank manifold has no second derivatives
            found[f"pymanopt {name}"] = pymanopts(example, other), share
    return found


def timed(example: Example, run: Run, share: float, calls: float = math.inf) -> dict[str, Any]:
    """One run."""
    watched = Watched(example.fun, example.optimum + share * (example.start - example.optimum), calls)
    fault = ""
    started = time.process_time()
    try:
        run(watched)
    except Reached:
        pass
    except Exception as error:
        fault = f"{type(error).__name__}: {str(error)[:100]}"
    seconds = time.process_time() - started
    reached = watched.least <= watched.target
    return {"seconds": seconds, "calls": watched.calls, "gap": example.gap(watched.least), "reached": reached} | (
        {"fault": fault} if fault else {}
    )


def measured(example: Example, rounds: int) -> dict[str, Any]:
    """Medians of all contenders, which take turns; one that fails is not asked again."""
    runs = contenders(example)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in runs}
    for run, share in runs.values():
        timed(example, run, share, calls=6)
    names = list(runs)
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            if all(r["reached"] for r in found[name]):
                found[name].append(timed(example, *runs[name]))
    return {name: _median(results) for name, results in found.items()}


def _median(results: list[dict[str, Any]]) -> dict[str, Any]:
    worst = next((r for r in results if not r["reached"]), None)
    seconds = statistics.median(r["seconds"] for r in results)
    found = worst or results[0] | {"seconds": seconds, "rounds": len(results)}
    return {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in found.items()}


def problems(quick: bool) -> list[Example]:
    """Those that pymanopt can express."""
    found = [e for family in gallery() for e in (family.tiny()[-1:] if quick else family.medium())]
    kept = []
    for example in found:
        try:
            translated(example.manifold, example.x0)
            kept.append(example)
        except Inexpressible as why:
            print(f"left out: {example}: pymanopt has {why}")
    return kept


# Results. -------------------------------------------------------------------------------------------------------------


def ratio(cell: dict[str, Any], mine: str, other: str) -> float:
    """Their time over ours; infinite, or zero, where one of them does not get there."""
    a, b = cell.get(f"steepest {mine}"), cell.get(f"pymanopt {other}")
    if not a or not b or not (a["reached"] or b["reached"]):
        return math.nan
    if not (a["reached"] and b["reached"]):
        return math.inf if a["reached"] else 0.0
    return b["seconds"] / a["seconds"]


def ratios(cell: dict[str, Any]) -> dict[str, float]:
    """By method; L-BFGS beside the faster one of pymanopt's methods of first order."""
    found = {name: ratio(cell, name, name) for name, (other, _) in METHODS.items() if other}
    first = [ratio(cell, "LBFGS", name) for name in ("SteepestDescent", "ConjugateGradients")]
    found["LBFGS"] = min((r for r in first if not math.isnan(r)), default=math.nan)
    return {name: found[name] for name in METHODS}


def table(cells: dict[str, Any]) -> str:
    """Markdown."""
    lines = ["| problem | " + " | ".join(METHODS) + " |", "|---|" + "---|" * len(METHODS)]
    for key, cell in cells.items():
        entries = []
        for name in METHODS:
            mine, other = cell.get(f"steepest {name}"), cell.get(f"pymanopt {name}")
            shown = [_time(mine)] + ([_time(other)] if name != "LBFGS" else [])
            r = ratios(cell)[name]
            entries.append(" / ".join(shown) + ("" if not 0 < r < math.inf else f" ({r:.1f} x)"))
        lines.append(f"| {key} | " + " | ".join(entries) + " |")
    return "\n".join([*lines, "", summary(cells)])


def _time(entry: dict[str, Any] | None) -> str:
    if entry is None:
        return "-"
    if not entry["reached"]:
        return f"at {entry['gap']:.0e} after {entry['seconds']:.2g} s"
    seconds = entry["seconds"]
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.0f} ms"


def summary(cells: dict[str, Any]) -> str:
    """Geometric means, and where pymanopt is faster."""
    lines = []
    for name in METHODS:
        found = {key: ratios(cell)[name] for key, cell in cells.items()}
        finite = [r for r in found.values() if 0 < r < math.inf]
        only = sum(r == math.inf for r in found.values())
        behind = [f"{key} ({r:.2f})" for key, r in found.items() if r < 1]
        mean = math.exp(statistics.mean(map(math.log, finite))) if finite else math.nan
        lines.append(
            f"{name}: {mean:.2f} times as fast, geometric mean of {len(finite)} problems"
            + (f"; on {only} more pymanopt does not get there" if only else "")
            + (f"; slower on {', '.join(behind)}" if behind else "")
        )
    return "\n".join(lines)


def drawn(cells: dict[str, Any]) -> bytes:
    """A row for each problem, a dot for each method, at their time over ours."""
    keys = list(cells)[::-1]
    with picture((9, 1.4 + 0.36 * len(keys))) as (figure, buffer):
        axes = figure.subplots()
        finite = [r for cell in cells.values() for r in ratios(cell).values() if 0 < r < math.inf]
        edge = 1.6 * max([*finite, 1.0])
        for i, name in enumerate(METHODS):
            points = [(ratios(cells[key])[name], row) for row, key in enumerate(keys)]
            for kind, marker in ((True, "o"), (False, ">")):
                xs = [min(r, edge) for r, _ in points if r > 0 and (r < math.inf) == kind]
                ys = [row + 0.11 * (1.5 - i) for r, row in points if r > 0 and (r < math.inf) == kind]
                axes.scatter(xs, ys, color=COLORS[i], marker=marker, s=34, label=LABELS[name] if kind else None)
        axes.axvline(1, color="#555555", linewidth=1)
        axes.set_xscale("log")
        axes.set_xticks([t for t in (0.2, 0.5, 1, 2, 5, 10, 20, 50, 100) if t < 2 * edge])
        axes.xaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
        axes.set_yticks(range(len(keys)), [label(key) for key in keys])
        axes.set_xlabel("pymanopt's time / ours, to the same value (arrow: pymanopt does not get there)")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return buffer.getvalue()


LABELS = {
    "SteepestDescent": "steepest descent, gap 1e-6",
    "ConjugateGradients": "conjugate gradients, gap 1e-6",
    "LBFGS": "L-BFGS beside pymanopt's faster one of these, gap 1e-6",
    "TrustRegion": "trust region, gap 1e-9",
}


def label(key: str) -> str:
    """Without the seed and names of fields."""
    name, _, rest = key.partition("(")
    fields = dict(part.split("=") for part in rest.rstrip(")").split(", "))
    plain = {k: k if v == "True" else v.strip("'") for k, v in fields.items() if k != "seed" and v != "False"}
    return f"{name} {', '.join(plain.values())}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Solvers beside pymanopt's.")
    parser.add_argument("--quick", action="store_true", help="small problems, one round")
    parser.add_argument("--only", default="", help="problems whose name contains this, anew")
    parser.add_argument("--fresh", action="store_true", help="all problems anew")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--output", type=Path, help="the results (default: docs/solvers.json; of --quick: none)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    np.random.seed(0)
    warnings.simplefilter("ignore")
    path = options.output or (None if options.quick else RESULTS)
    data = load(path) if path else {}
    cells = data.setdefault(SECTION, {})
    chosen = problems(options.quick)
    order = [str(example) for example in chosen]
    for example in chosen:
        key = str(example)
        if options.only.lower() not in key.lower() or (key in cells and not options.only and not options.fresh):
            continue
        cells[key] = measured(example, 1 if options.quick else options.rounds)
        print(f"{key}: " + ", ".join(f"{n} {_time(e)}" for n, e in cells[key].items()), flush=True)
        data[SECTION] = cells = {k: cells[k] for k in order if k in cells}
        data |= {"machine": machine(), "versions": data.get("versions", {}) | versions("steepest", "torch", "pymanopt")}
        if path:
            save(path, data)
    print("\n" + table(cells))
    if path:
        path.with_name(f"{path.stem}-pymanopt.png").write_bytes(drawn(cells))


if __name__ == "__main__":
    main()
