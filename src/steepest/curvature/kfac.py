"""Kronecker-factored approximate curvature."""

from __future__ import annotations

from typing import Any, Unpack

import torch
from torch import Tensor, nn

from steepest.checks import check_range
from steepest.curvature.base import LayerPreconditioner
from steepest.curvature.bucket import State
from steepest.curvature.options import Shared, options
from steepest.curvature.rescale import KLClip


class KFAC(LayerPreconditioner):
    """G^-1 D A^-1 for a layer's gradient D: Newton's step for a Hessian (or Fisher matrix) that is the Kronecker
    product of A = E[a a^T], of the layer's inputs, and G = E[g g^T], of its outputs' gradients.

    With the damping lambda the factors are A + pi sqrt(lambda) I and G + sqrt(lambda) / pi I, where pi^2 is the mean
    of A's eigenvalues by that of G's: their product is the damped one, A (x) G + lambda I, but for a term that pi makes
    small in norm. Both are inverted by Cholesky decompositions, whenever they are updated; a factor that has none
    (too little damping for its rounding) keeps the inverse that it had, the identity at first. So it is with factors in
    bfloat16, of which rounding moves eigenvalues by 1e-3 of the largest: for these there is `SINGD`.

    Near a minimum the empirical G vanishes, and steps grow up to 1 / damping times the gradient: let rescale=KLClip()
    bound them.

    Args:
        model: any module; see `LayerPreconditioner`.
        damping: lambda, in the unit of the curvature.
        decay: of the averages of A and G over steps; the k-th update takes min(decay, 1 - 1/k) of what was there, so
            that nothing remains of a start.
        shared: see `steepest.curvature.options.Shared`; with fisher="sampled" and labels drawn from the model's
            predictions, G belongs to the true Fisher matrix, with the data's to the empirical one.

    Martens and Grosse 2015 (1503.05671), damping of section 6.3. Not taken: their blocks between
    layers, their exact step size and momentum, and the adaptive lambda. Convolutions as in Grosse and Martens 2016
    (1602.01407).

    >>> model = torch.nn.Linear(4, 2)
    >>> kfac = KFAC(model, damping=1e-2, every=10)
    >>> optimizer = SGD(param_groups(model), lr=0.1, momentum=0.9)
    >>> _ = kfac.attach(optimizer)
    >>> model(torch.randn(8, 4)).square().mean(0).sum().backward()
    >>> optimizer.step()
    """

    def __init__(self, model: nn.Module, damping: float = 1e-3, decay: float = 0.95, **shared: Unpack[Shared]) -> None:
        check_range("damping", damping)
        check_range("decay", decay, 0, 1, open_high=True)
        super().__init__(model, options(locals()))

    def _start(self, like: Tensor) -> State:
        state: State = {"updates": like.new_zeros(len(like))}
        for key, side in (("inputs", like.shape[-1]), ("outputs", like.shape[-2])):
            state[key] = like.new_zeros(len(like), side, side)
            state[f"{key}_inverse"] = torch.eye(side, dtype=like.dtype, device=like.device).repeat(len(like), 1, 1)
        return state

    def _observe(self, state: State, a: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        return a.mT @ a, g.mT @ g

    def _update(self, state: State, a: Tensor, g: Tensor, shape: tuple[int, int]) -> State:
        count, a = averaged(state, "inputs", a, self.options["decay"])
        _, g = averaged(state, "outputs", g, self.options["decay"])
        sizes = mean_eigenvalue(a), mean_eigenvalue(g)
        pi = torch.where((sizes[0] > 0) & (sizes[1] > 0), (sizes[0] / sizes[1]).sqrt(), 1)
        root = self.options["damping"] ** 0.5
        new = {"updates": count, "inputs": a, "outputs": g}
        for key, x, shift in (("inputs", a, pi * root), ("outputs", g, root / pi)):
            new[f"{key}_inverse"] = damped_inverse(x, shift, state[f"{key}_inverse"])
        return new

    def _apply(self, state: State, g: Tensor) -> Tensor:
        return state["outputs_inverse"] @ g @ state["inputs_inverse"]

    @classmethod
    def examples(cls) -> list[dict[str, Any]]:
        """As it comes; now and then; of bounded length."""
        return [{}, {"every": 2, "decay": 0.5}, {"rescale": KLClip(1e-3), "damping": 1e-2}]


def averaged(state: State, key: str, x: Tensor, decay: float) -> tuple[Tensor, Tensor]:
    """The number of updates with this one, and the average of `key` with x: min(decay, 1 - 1/k) of what was there at
    the k-th."""
    count = state["updates"] + 1
    return count, state[key].lerp(x, (1 / count).clamp_min(1 - decay)[:, None, None])


def mean_eigenvalue(x: Tensor) -> Tensor:
    """tr(x) / n, `(l,)`, of x `(l, n, n)`."""
    return x.diagonal(dim1=-2, dim2=-1).mean(-1)


def damped_inverse(x: Tensor, shift: Tensor, otherwise: Tensor) -> Tensor:
    """(x + shift I)^-1 of the symmetric x `(l, n, n)`, with shift `(l,)`; `otherwise` where there is no Cholesky
    decomposition."""
    identity = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
    lower, fault = torch.linalg.cholesky_ex(x + shift[:, None, None] * identity)
    fault = (fault != 0)[:, None, None]
    inverse = torch.cholesky_inverse(torch.where(fault, identity, lower))
    return torch.where(fault | ~inverse.isfinite().all((-2, -1), keepdim=True), otherwise, inverse)
