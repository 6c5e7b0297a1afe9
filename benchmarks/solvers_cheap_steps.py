"""Methods with cheap steps: what random submanifolds, coordinates and extrapolation gain, and where they do not.

`python benchmarks/solvers_cheap_steps.py` prints the tables and writes `docs/solvers-{submanifold,coordinate,
extrapolation}.png`, in about four minutes on one core; `--quick` runs small sizes and writes nothing. All in float64.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from pathlib import Path

import torch

from steepest import SPD, Grassmann, Orthogonal, Sphere, Stiefel, minimize
from steepest.runs.pictures import picture
from steepest.solvers import (
    LBFGS,
    CoordinateDescent,
    Extrapolated,
    Problem,
    RandomSubmanifold,
    Result,
    SteepestDescent,
)
from steepest.solvers.coordinates import coordinates

DOCS = Path(__file__).parent.parent / "docs"
PLAIN = SteepestDescent(barzilai_borwein=False, memory=1)


def gaussian(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def timed(call, least=0.2):
    """Median seconds of a call, of the processor, as everywhere here: others may be using the machine."""
    call()
    times = []
    while sum(times) < least or len(times) < 3:
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    return statistics.median(times)


def run(f, x0, m, method, seconds, goal=-float("inf"), **options):
    """Until the value is no higher than the goal, with the seconds of the processor in the history."""
    clock, start = [], time.process_time()

    def watch(record, x):
        clock.append(time.process_time() - start)
        return record.value <= goal or clock[-1] > seconds

    result = minimize(f, x0, m, method, callback=watch, **options)
    history = [r._replace(seconds=t) for r, t in zip(result.history, clock, strict=True)]
    return dataclasses.replace(result, history=history, seconds=clock[-1])


def solved(problem, method, gap, seconds):
    """A run until the value is within `gap` of the optimum, relatively."""
    goal = problem["optimum"] + gap * abs(problem["optimum"])
    f, x0, m, gradient = (problem.get(name) for name in ("f", "x0", "m", "gradient"))
    return run(f, x0, m, method, seconds, goal, gradient=gradient, tolerance=1e-12, max_iterations=100000)


def line(name, result, gap=None, optimum=None):
    """A row: iterations, evaluations and seconds to the gap, and where it was not reached, the one that was."""
    last = result.history[-1]
    reached = last.gradient_norm if gap is None else (last.value - optimum) / abs(optimum)
    note = "" if result.success or (gap and reached <= gap) else f" only to {reached:.0e}"
    per = 1e3 * result.seconds / max(result.iterations, 1)
    return f"| {name} | {result.iterations} | {last.evaluations} | {result.seconds:.2f}{note} | {per:.2f} |"


HEADER = "| method | iterations | evaluations | seconds | ms per iteration |\n|---|--:|--:|--:|--:|"


# Random submanifolds. -------------------------------------------------------------------------------------------------


class Householder(Orthogonal):
    """The group with the retraction of the paper's baseline: Q of X + X A by reflections."""

    def _move(self, x, h):
        q, r = torch.linalg.qr(x + x @ (h - h.mT) / 2)
        return q * r.diagonal().sign()


del Orthogonal.known["Householder"]


def free(p):
    """-<M, X> / p: its gradient costs nothing."""
    c = gaussian(p, p, seed=1) / p
    u, s, vh = torch.linalg.svd(c)
    x0 = _connected(u @ vh, p)
    return {"f": lambda x: -(c * x).sum(), "gradient": lambda x: -c, "x0": x0, "m": Orthogonal(), "optimum": -s.sum()}


def least_squares(p):
    """|X A - B|^2 / 2 p, A of condition 3: value and gradient are three products."""
    u, v = (torch.linalg.qr(gaussian(p, p, seed=i))[0] for i in (2, 3))
    a, b = u * torch.linspace(1, 3, p) @ v, gaussian(p, p, seed=4)
    u, _, vh = torch.linalg.svd(b @ a.mT)
    best = u @ vh

    def f(x):
        return (x @ a - b).square().sum() / (2 * p)

    return {"f": f, "x0": _connected(best, p), "m": Orthogonal(), "optimum": f(best)}


def _connected(best, p):
    """A random start from which rotations lead to the optimum."""
    x0 = Orthogonal().random_point((p, p), generator=torch.Generator().manual_seed(5))
    if torch.linalg.slogdet(x0 @ best.mT).sign < 0:
        x0[0] = -x0[0]
    return x0


def submanifold(quick):
    sizes = (40, 80) if quick else (200, 600)
    gap, limit = 1e-3, 1 if quick else 8
    pictures = {}
    for name, make in (("gradient for nothing", free), ("gradient of three products", least_squares)):
        for p in sizes:
            problem = make(p)
            problem["optimum"] = float(problem["optimum"])
            methods = {
                "descent (BB), Cholesky-QR": (Orthogonal(), SteepestDescent()),
                "descent, Cholesky-QR": (Orthogonal(), PLAIN),
                "descent, Householder QR": (Householder(), PLAIN),
                "submanifold, r = p / 2": (Orthogonal(), RandomSubmanifold(p // 2, inner=5)),
                "submanifold, r = p / 4": (Orthogonal(), RandomSubmanifold(p // 4, inner=20)),
                "submanifold, r = p / 2, uniform": (Orthogonal(), RandomSubmanifold(p // 2, "orthogonal", 5)),
            }
            print(f"\nOrthogonal({p}), {name}, to a relative gap of {gap:g}\n\n{HEADER}", flush=True)
            found = {}
            for label, (m, method) in methods.items():
                found[label] = solved({**problem, "m": m}, method, gap, limit)
                print(line(label, found[label], gap, problem["optimum"]), flush=True)
            pictures[name, p] = found, problem["optimum"]
    if not quick:
        _gaps(pictures, sizes[-1], "solvers-submanifold.png")


def _gaps(pictures, p, file):
    chosen = [(name, *found) for (name, size), found in pictures.items() if size == p]
    with picture((10, 4.6)) as (figure, buffer):
        for axes, (name, found, optimum) in zip(figure.subplots(1, 2), chosen, strict=True):
            for label, result in found.items():
                style = "-" if "submanifold" in label else "--" if "BB" in label else ":"
                gaps = [max(r.value - optimum, 1e-17) / abs(optimum) for r in result.history]
                axes.semilogy([r.seconds for r in result.history], gaps, style, label=label)
            axes.set(title=f"Orthogonal({p}), {name}", xlabel="seconds of one core", ylim=(8e-4, None))
        figure.axes[0].set_ylabel("relative gap")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    (DOCS / file).write_bytes(buffer.getvalue())


# Coordinates. ---------------------------------------------------------------------------------------------------------


def costs(n, p):
    """Seconds of one coordinate (of a round), of a sweep, of a gradient step's own work; and operations of each."""
    m = Stiefel("canonical")
    x = m.random_point((n, p), generator=torch.Generator().manual_seed(0))
    g = gaussian(n, p, seed=1)
    at = Problem(lambda x: (g * x).sum(), m).at(x)
    rule = coordinates(m)
    w = rule.start(at)

    def one(k, w):
        return rule.turn(w, k, None, -1e-3 * rule.slopes(w, k, None))

    def sweep():
        turned = w
        for k in range(rule.rounds(x)):
            turned = one(k, turned)

    def descend():
        f = m.frame(x)
        m._move(f, m._pull(f, g))

    pairs = n // 2
    return timed(lambda: one(0, w)) / pairs, timed(sweep), timed(descend), 10 * p, 8 * n * p * p


def coordinate(quick):
    sizes = (32, 64) if quick else (64, 128, 256, 512, 1024)
    print("\nStiefel(n, n / 4): what a step does beside the gradient of f\n")
    print("| n | µs per rotation in a round | operations | ms per sweep | ms per gradient step | operations |")
    print("|--:|--:|--:|--:|--:|--:|")
    rows = []
    for n in sizes:
        rows.append((n, *costs(n, n // 4)))
        one, sweep, descend, flops, dense = rows[-1][1:]
        print(f"| {n} | {1e6 * one:.2f} | {flops} | {1e3 * sweep:.2f} | {1e3 * descend:.2f} | {dense} |", flush=True)
    n, p = (40, 10) if quick else (200, 50)
    c = gaussian(n, p, seed=1) / p
    problem = {
        "f": lambda x: -(c * x).sum(),
        "gradient": lambda x: -c,
        "x0": Stiefel().random_point((n, p), generator=torch.Generator().manual_seed(2)),
        "m": Stiefel(),
        "optimum": -float(torch.linalg.svdvals(c).sum()),
    }
    gap, limit = 1e-5, 2 if quick else 25
    methods = {
        "RCD, cyclic": CoordinateDescent(),
        "RCD, random": CoordinateDescent(selection="random"),
        "RCDlin, cyclic": CoordinateDescent("linearised"),
        "RCDlin, random": CoordinateDescent("linearised", "random"),
        "descent": PLAIN,
        "descent (BB)": SteepestDescent(),
        "L-BFGS": LBFGS(),
    }
    print(f"\nProcrustes on Stiefel({n}, {p}), gradient for nothing, to a relative gap of {gap:g}\n\n{HEADER}")
    found: dict[str, Result] = {}
    for label, method in methods.items():
        found[label] = solved(problem, method, gap, limit)
        print(line(label, found[label], gap, problem["optimum"]), flush=True)
    if quick:
        return
    with picture((10, 4.4)) as (figure, buffer):
        left, right = figure.subplots(1, 2)
        columns = {"one rotation of a round": 1, "sweep, all n (n - 1) / 2": 2, "gradient step: pull, retract": 3}
        for label, column in columns.items():
            left.loglog([r[0] for r in rows], [r[column] for r in rows], "o-", label=label)
        left.set(title="Stiefel(n, n / 4): without f", xlabel="n", ylabel="seconds")
        left.legend()
        for label, result in found.items():
            gaps = [max(r.value - problem["optimum"], 1e-17) / abs(problem["optimum"]) for r in result.history]
            right.loglog([max(r.evaluations, 1) for r in result.history], gaps, label=label)
        right.set(title=f"Procrustes, Stiefel({n}, {p})", xlabel="values and gradients", ylabel="relative gap")
        right.legend(loc=(0.45, 0.02))
    (DOCS / "solvers-coordinate.png").write_bytes(buffer.getvalue())


# Extrapolation. -------------------------------------------------------------------------------------------------------


def accelerated(quick):
    """The problems of Han et al. 2022, smaller, by name."""
    n = 50 if quick else 500
    d = 1000 * torch.logspace(-3, 0, n)
    q = torch.linalg.qr(gaussian(n, n))[0]
    a = q * d @ q.mT
    sphere = Sphere().random_point((n,), generator=torch.Generator().manual_seed(1))
    yield "leading eigenvector, condition 1000", lambda x: -(x @ (a @ x)) / 2, sphere, Sphere()
    b = gaussian(20 if quick else 100, 10, 10, seed=2)
    points = torch.linalg.matrix_exp(0.4 * (b + b.mT))
    start = torch.eye(10)
    yield "mean of SPD matrices", lambda x: SPD().dist(x.expand_as(points), points).square().mean(), start, SPD()
    p = 15 if quick else 40
    c, e = gaussian(p, p, seed=5), gaussian(p, p, seed=6)
    x0 = Stiefel().random_point((p, p), generator=torch.Generator().manual_seed(3))
    yield "Procrustes, |X A - B|", lambda x: (x @ c - e).square().sum() / (2 * p), x0, Stiefel()
    s = gaussian(n, n, seed=7)
    s = s @ s.mT / n
    x0 = Grassmann().random_point((n, 5), generator=torch.Generator().manual_seed(4))
    yield "leading subspace", lambda x: -(x * (s @ x)).sum(), x0, Grassmann()


def extrapolation(quick):
    methods = {
        "descent": PLAIN,
        "descent, extrapolated": Extrapolated(),
        "descent, extrapolated with restarts": Extrapolated(memory=5, restart=True),
        "descent (BB)": SteepestDescent(),
        "L-BFGS": LBFGS(),
    }
    panels = []
    for name, f, x0, m in accelerated(quick):
        print(f"\n{name}, to a gradient norm of 1e-6\n\n{HEADER}", flush=True)
        found = {}
        for label, method in methods.items():
            found[label] = run(f, x0, m, method, 15, max_iterations=2000)
            print(line(label, found[label]), flush=True)
        panels.append((name, found))
    if quick:
        return
    with picture((10, 7.4)) as (figure, buffer):
        for axes, (name, found) in zip(figure.subplots(2, 2).flat, panels, strict=True):
            for label, result in found.items():
                axes.semilogy([r.evaluations for r in result.history], [r.gradient_norm for r in result.history])
                axes.lines[-1].set_label(label)
            longest = max(found["descent (BB)"].evaluations.total, found["descent, extrapolated"].evaluations.total)
            axes.set(title=name, xlabel="values and gradients", ylabel="gradient norm", xlim=(0, 1.3 * longest))
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    (DOCS / "solvers-extrapolation.png").write_bytes(buffer.getvalue())


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes, no pictures")
    parser.add_argument("--only", choices=("submanifold", "coordinate", "extrapolation"), help="one part")
    options = parser.parse_args()
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    torch.vmap(torch.sin)(torch.zeros(1))  # imports what it needs
    for part in (submanifold, coordinate, extrapolation):
        if options.only in (None, part.__name__):
            part(options.quick)


if __name__ == "__main__":
    main()
