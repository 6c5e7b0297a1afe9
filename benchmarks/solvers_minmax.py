"""Min-max games: the Hamiltonian method converges where descent and ascent go round in circles, for docs/solvers.md.

    python benchmarks/solvers_minmax.py            # a minute or two; writes docs/solvers-minmax.png
    python benchmarks/solvers_minmax.py --quick    # small sizes, nothing is written

Three games with their saddle at gradient zero; the norm of the gradient against gradients and products with the Hessian
together. Methods of a fixed step have the best of a sweep of steps for each game; the Hamiltonian method has none to
choose.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from steepest.compare.figures import COLORS
from steepest.manifolds import SPD, Euclidean, Manifold
from steepest.runs.pictures import legend_below, picture
from steepest.solvers import Consensus, DescentAscent, ExtraGradient, Hamiltonian, minmax
from steepest.solvers.minmax import MinMaxMethod, MinMaxResult

PICTURE = Path(__file__).parent.parent / "docs" / "solvers-minmax.png"
TOLERANCE = 1e-8
STEPS = [10 ** (k / 3) for k in range(-9, 2)]
METHODS: dict[str, MinMaxMethod] = {
    "descent and ascent": DescentAscent(),
    "extragradient": ExtraGradient(),
    "consensus": Consensus(),
    "Hamiltonian, steepest descent": Hamiltonian("SteepestDescent"),
    "Hamiltonian, conjugate gradients": Hamiltonian(),
}


class Game(NamedTuple):
    name: str
    fun: Callable[[Any, Any], Tensor]
    manifold: Manifold
    x: Tensor
    y: Tensor


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def bilinear(n: int) -> Game:
    """x^T A y with singular values from 1 to 1/10."""
    u, v = (torch.linalg.qr(randn(n, n, seed=s))[0] for s in (0, 1))
    a = (u * torch.logspace(0, -1, n, dtype=torch.float64)) @ v
    return Game("x·Ay, condition 10", lambda x, y: x @ a @ y, Euclidean(1), randn(n, seed=2), randn(n, seed=3))


def determinants(d: int) -> Game:
    """log det X log det Y: bilinear along geodesics, zero where both determinants are one."""
    x, y = spd(d, 1.0, 0), spd(d, -0.6, 1)
    return Game("log det X log det Y", lambda x, y: x.logdet() * y.logdet() / d, SPD(), x, y)


def coupled(d: int) -> Game:
    """Convex in X and concave in Y along geodesics, with a coupling ten times as strong."""

    def f(x: Tensor, y: Tensor) -> Tensor:
        a, b = x.logdet(), y.logdet()
        return (a * a + 10 * a * b - b * b) / d

    return Game("a² + 10ab − b², a = log det X, b = log det Y", f, SPD(), spd(d, 1.0, 0), spd(d, -0.6, 1))


def spd(d: int, mean: float, seed: int) -> Tensor:
    """Random, with log det = d mean."""
    x = SPD().random_point((d, d), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return x * (mean - x.logdet() / d).exp()


def run(game: Game, method: MinMaxMethod, budget: int, callback: Any = None) -> MinMaxResult:
    limits = {"tolerance": TOLERANCE, "max_iterations": budget, "max_evaluations": 2 * budget, "callback": callback}
    return minmax(game.fun, game.x, game.y, game.manifold, game.manifold, method, **limits)


def work(result: MinMaxResult) -> list[float]:
    """Gradients and products with the Hessian at each record: all evaluations but the values, of which there is one for
    each gradient of f, or one for each record of a method on H."""
    if isinstance(result.method, ExtraGradient):
        return [r.evaluations / 2 for r in result.history]
    return [r.evaluations - r.iteration - 1 for r in result.history]


def best(game: Game, method: MinMaxMethod, budget: int) -> tuple[MinMaxMethod, MinMaxResult]:
    """Of all steps, the one that gets to the tolerance first, or ends nearest to it."""
    if isinstance(method, Hamiltonian):
        return method, run(game, method, budget)
    tried = [dataclasses.replace(method, step_size=t) for t in STEPS]  # type: ignore[type-var]
    found = [(m, run(game, m, budget)) for m in tried]

    def key(one: tuple[MinMaxMethod, MinMaxResult]) -> tuple[float, float]:
        last = one[1].history[-1].gradient_norm
        return max(last, TOLERANCE) if math.isfinite(last) else math.inf, work(one[1])[-1]

    return min(found, key=key)


def trajectory(game: Game, method: MinMaxMethod, steps: int) -> list[tuple[float, float]]:
    """log det of X and Y over the root of d, the distances from the saddle."""
    seen: list[tuple[float, float]] = []

    def look(record: Any, x: Tensor, y: Tensor) -> bool:
        seen.append(tuple(float(t.logdet()) / len(t) ** 0.5 for t in (x, y)))  # type: ignore[arg-type]
        return len(seen) > steps

    run(game, method, steps, look)
    return seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    budget = 30 if quick else 300
    games = [bilinear(4 if quick else 30), determinants(3 if quick else 10), coupled(3 if quick else 10)]
    results: dict[str, dict[str, tuple[MinMaxMethod, MinMaxResult]]] = {}
    for game in games:
        print(game.name)
        results[game.name] = {name: best(game, method, budget) for name, method in METHODS.items()}
        for name, (method, result) in results[game.name].items():
            step = getattr(method, "step_size", None)
            said = "" if step is None else f", step {step:.3g}"
            print(
                f"  {name:34} {work(result)[-1]:>5} gradients and products, {result.seconds:6.2f} s, gradient norm "
                f"{result.gradient_norm:.1e} (last {result.history[-1].gradient_norm:.1e}){said}"
            )
    if not quick:
        PICTURE.write_bytes(drawn(games, results))
        print(PICTURE)


def drawn(games: list[Game], results: dict[str, dict[str, tuple[MinMaxMethod, MinMaxResult]]]) -> bytes:
    colors = dict(zip(METHODS, COLORS, strict=False))
    with picture((11, 7)) as (figure, buffer):
        grid = figure.subplots(2, 2).flat
        axes = grid[0]
        for name in ("descent and ascent", "extragradient", "Hamiltonian, conjugate gradients"):
            method = results[games[1].name][name][0]
            if isinstance(method, DescentAscent):
                method = DescentAscent(0.2)
            path = trajectory(games[1], method, 60)
            axes.plot(*zip(*path, strict=True), marker=".", markersize=4, color=colors[name], linewidth=1)
        axes.plot([0], [0], "k+", markersize=12)
        axes.set(title=f"The way to the saddle of {games[1].name}", xlabel="log det X / √d", ylabel="log det Y / √d")
        axes.set_aspect("equal", "datalim")
        for axes, game in zip(list(grid)[1:], games, strict=True):
            for name, (_, result) in results[game.name].items():
                norms = [r.gradient_norm for r in result.history]
                axes.semilogy(work(result), norms, color=colors[name], label=name)
            axes.set(title=game.name, xlabel="gradients and products with the Hessian", ylim=(TOLERANCE / 10, None))
            axes.set(ylabel="norm of the gradient", xlim=(0, 300))
        legend_below(figure, axes, 3)
    return buffer.getvalue()


if __name__ == "__main__":
    main()
