"""Natural gradients from factors of the inverse, without an inversion."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from steepest.checks import check_range
from steepest.curvature.base import LayerPreconditioner
from steepest.curvature.bucket import State
from steepest.curvature.options import Shared, options
from steepest.curvature.structures import BlockDiagonal, Dense, Diagonal, Hierarchical, Structure, Toeplitz, Triangular


class SINGD(LayerPreconditioner):
    """C C^T D K K^T for a layer's gradient D, where K K^T and C C^T follow the inverses of the damped factors A =
    E[a a^T] and G = E[g g^T] of `KFAC` by steps of Riemannian descent, which need products alone. So the factors may be
    kept in bfloat16, and in any `Structure`, such as a diagonal.

    With H_K = K^T A K and H_C = C^T G C, and P the projection onto the structure, an update is

        m_K <- momentum m_K + (tr(H_C)/m H_K + damping tr(C^T C)/m K^T K - I) / 2,    K <- K (I - lr m_K),

    every matrix in it projected by P, and the same for C with the roles exchanged. K and C start from the identity.

    Args:
        model: any module; see `LayerPreconditioner`.
        damping: of the curvature, lambda.
        factor_lr: lr above, a number or a function of the number of steps taken. Where lr m_K has eigenvalues above 2,
            as in the first steps on large curvature, K diverges.
        factor_momentum: of m_K and m_C. For their sum to stay bounded it must be below 1.
        structure: of K and of C: a `Structure` for both, or a pair.
        adaptive: with False the traces in an update are left out (each of tr(.)/m becomes 1): IKFAC, whose K K^T
            follows the inverse of A + damping I alone; its authors take no momentum then.
        normalize: divide factor_lr by the largest entry of m_K (m_C), where that exceeds 1, and the updates' share by
            1 - factor_momentum, so that first steps cannot explode.
        shared: see `steepest.curvature.options.Shared`; here `every` is 10 unless said otherwise.

    With structure=Dense() this is INGD of Lin et al. 2023 (2302.09738); with others SINGD of Lin et al. 2024
    (2312.05705), and IKFAC is there too. Their lr and momentum for the weights are those of the optimiser here. The
    first-order truncation of the exponential in K's step is theirs. Several passes are averaged here as one with more
    examples, where their code adds their averages; and blocks are transposed where K^T stands, where their code takes
    them for symmetric, which they do not stay. As with `KFAC`, rescale=KLClip() bounds the steps near a minimum.

    >>> model = torch.nn.Linear(4, 2)
    >>> singd = SINGD(model, structure=(Dense(), Diagonal()), dtype=torch.bfloat16)
    >>> optimizer = SGD(model.parameters(), lr=0.1)
    >>> _ = singd.attach(optimizer)
    """

    def __init__(
        self,
        model: nn.Module,
        damping: float = 1e-3,
        factor_lr: float | Callable[[int], float] = 1e-2,
        factor_momentum: float = 0.5,
        structure: Structure | tuple[Structure, Structure] = Dense(),  # noqa: B008  (a frozen value)
        adaptive: bool = True,
        normalize: bool = False,
        **shared: Unpack[Shared],
    ) -> None:
        check_range("damping", damping)
        check_range("factor_momentum", factor_momentum, 0, 1, open_high=True)
        if not callable(factor_lr):
            check_range("factor_lr", factor_lr)
        self._structures = _pair(structure)
        shared = {"every": 10, **shared}
        super().__init__(model, options(locals()))

    def _start(self, like: Tensor) -> State:
        count, m, n = like.shape
        state: State = {}
        for key, side in (("inputs", n), ("outputs", m)):
            one = self._structures[key].identity(side, like)
            state[key] = one.expand(count, *one.shape).clone()
            state[f"{key}_momentum"] = torch.zeros_like(state[key])
        return state

    def _observe(self, state: State, a: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        s = self._structures
        h_k = s["inputs"].gram(s["inputs"].transposed_times(state["inputs"], a.mT))
        return h_k, s["outputs"].gram(s["outputs"].transposed_times(state["outputs"], g.mT))

    def _update(self, state: State, a: Tensor, g: Tensor, shape: tuple[int, int]) -> State:
        sides = {"inputs": shape[1], "outputs": shape[0]}
        seen = {"inputs": a, "outputs": g}
        squares = {key: self._structures[key].square(state[key], n) for key, n in sides.items()}
        means = {key: self._structures[key].mean_diagonal for key in sides}
        new: State = {}
        for key, other in (("inputs", "outputs"), ("outputs", "inputs")):
            share = [means[other](x[other], sides[other]) for x in (seen, squares)]
            curved, damped = share if self.options["adaptive"] else [torch.ones_like(s) for s in share]
            identity = self._structures[key].identity(sides[key], a)
            m = _times(curved, seen[key]) + _times(self.options["damping"] * damped, squares[key]) - identity
            new |= self._moved(key, state, m / 2, sides[key])
        return new

    def _moved(self, key: str, state: State, m: Tensor, n: int) -> State:
        """K and its momentum after the gradient m."""
        o, k = self.options, state[key]
        m = o["factor_momentum"] * state[f"{key}_momentum"] + m * (1 - o["factor_momentum"] if o["normalize"] else 1)
        largest = m.abs().flatten(1).amax(1)
        lr = self._factor_lr() / (largest.clamp_min(1) if o["normalize"] else torch.ones_like(largest))
        return {key: k - _times(lr, self._structures[key].product(k, m, n)), f"{key}_momentum": m}

    def _factor_lr(self) -> float:
        lr = self.options["factor_lr"]
        return float(lr(self._step)) if callable(lr) else float(lr)

    def _apply(self, state: State, g: Tensor) -> Tensor:
        left, right = self._structures["outputs"], self._structures["inputs"]
        k, c = state["inputs"], state["outputs"]
        p = right.times(k, right.transposed_times(k, g.mT)).mT
        return left.times(c, left.transposed_times(c, p))

    @classmethod
    def examples(cls) -> list[dict[str, Any]]:
        """As it comes; every structure in one of the places; IKFAC; normalised."""
        often = {"every": 1, "factor_lr": 0.02}
        return [
            {},
            {"structure": (Diagonal(), BlockDiagonal(2)), **often},
            {"structure": (Toeplitz(), Triangular(upper=True)), **often},
            {"structure": (Hierarchical(1, 1), Dense()), "adaptive": False, "factor_momentum": 0.0, **often},
            {"normalize": True, "factor_lr": _decaying, "every": 2},
        ]


def _decaying(step: int) -> float:
    return 0.1 / (1 + step)


def _pair(structure: Any) -> dict[str, Structure]:
    """The structures of K and of C."""
    pair = structure if isinstance(structure, tuple) else (structure, structure)
    if len(pair) != 2 or not all(isinstance(s, Structure) for s in pair):
        raise TypeError(f"structure: expected a Structure or a pair of them, got {structure!r}")
    return {"inputs": pair[0], "outputs": pair[1]}


def _times(factor: Tensor, x: Tensor) -> Tensor:
    """A number `(l,)` for each layer times x `(l, ...)`."""
    return factor.reshape(-1, *[1] * (x.ndim - 1)) * x
