"""A representation that generalises: the matrix that ridge regression is best done in, as a bilevel problem.

Symmetric positive definite matrices A_i with targets y_i are given. A network with one layer, W on the Stiefel
manifold, reads r of their n directions, takes the logarithm and regresses on its entries:

    z_i(W) = vec log(W^T A_i W),    prediction w . z_i(W).

The lower level fits w, by ridge regression on one half of the data; the upper level chooses W by what that w predicts
on the other half. The head of least squares has a closed form, so that the same function of W can be minimised
directly: `steepest.bilevel`, which never forms it, must find the same.

Han, Mishra, Jawanpuria and Takeda 2024 (2402.03883), section 4.2, hyper-representation learning with the shallow
network on synthetic data; Franceschi, Frasconi, Salzo, Grazzi and Pontil 2018 (1806.04910).

Run it: python examples/hyper_representation.py
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from steepest import SPD, Euclidean, Stiefel, bilevel, minimize
from steepest.linalg import sym_log
from steepest.solvers import RHGD, Result
from steepest.solvers.bilevel import BilevelMethod, BilevelResult


@dataclasses.dataclass(frozen=True)
class Data:
    """Matrices with targets, to fit the head and to judge it."""

    fit: tuple[Tensor, Tensor]
    judge: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    ridge: float = 0.01


def data(count: int = 60, n: int = 8, rank: int = 2, noise: float = 0.05, seed: int = 0) -> Data:
    """Random matrices, and targets that depend on `rank` hidden directions of them.

    Args:
        count: of the matrices in each of the three parts.
        n: their size.
        rank: r.
        noise: of the targets.
        seed: of all of it.
    """
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    # The truth is a representation and a head of the same form.
    a = SPD().random_point((3 * count, n, n), dtype=torch.float64, generator=generator)
    w = Stiefel().project(randn(n, rank))
    features = represented(w, a)
    y = features @ randn(features.shape[-1])
    y = y / y.std() + noise * randn(3 * count)
    parts = [(a[i * count : (i + 1) * count], y[i * count : (i + 1) * count]) for i in range(3)]
    return Data(*parts)


def represented(w: Tensor, a: Tensor) -> Tensor:
    """z, `(m, r (r + 1) / 2)`: the entries of log(W^T A W) on and above the diagonal, those above times sqrt 2."""
    logs = sym_log(w.mT @ a @ w)
    r = w.shape[-1]
    i, j = torch.triu_indices(r, r)
    return logs[:, i, j] * torch.where(i == j, 1.0, 2**0.5)


def loss(w: Tensor, head: Tensor, part: tuple[Tensor, Tensor]) -> Tensor:
    """Half the mean squared error."""
    a, y = part
    return (represented(w, a) @ head - y).square().mean() / 2


def solve(problem: Data, w0: Tensor, method: BilevelMethod | str | None = None, **options: float) -> BilevelResult:
    """By two levels."""

    def upper(w: Tensor, head: Tensor) -> Tensor:
        return loss(w, head, problem.judge)

    def lower(w: Tensor, head: Tensor) -> Tensor:
        return loss(w, head, problem.fit) + problem.ridge * head.square().sum() / 2

    r = w0.shape[-1]
    head = torch.zeros(r * (r + 1) // 2, dtype=w0.dtype)
    return bilevel(upper, lower, w0, head, Stiefel(), Euclidean(1), method or RHGD(outer="LBFGS"), **options)


def best_head(problem: Data, w: Tensor) -> Tensor:
    """Ridge regression in closed form."""
    a, y = problem.fit
    z = represented(w, a)
    gram = z.mT @ z / len(y) + problem.ridge * torch.eye(z.shape[-1], dtype=z.dtype)
    return torch.linalg.solve(gram, z.mT @ y / len(y))


def direct(problem: Data, w0: Tensor, **options: float) -> Result:
    """By one level, with the closed form put in."""
    return minimize(lambda w: loss(w, best_head(problem, w), problem.judge), w0, Stiefel(), **options)


def main() -> None:
    """Print what both have found, and what it is worth on data that neither has seen."""
    problem = data()
    w0 = Stiefel().random_point((8, 2), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    two = solve(problem, w0, tolerance=1e-6)
    one = direct(problem, w0, tolerance=1e-8)
    print(two)
    print(one)
    for name, w in (("start", w0), ("two levels", two.x), ("one level", one.x)):
        head = best_head(problem, w)
        print(f"{name:10}  judged {loss(w, head, problem.judge):.9f}  unseen {loss(w, head, problem.test):.9f}")


if __name__ == "__main__":
    main()
