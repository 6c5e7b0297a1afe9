"""Momentum under AuON's scaling."""

from __future__ import annotations

from typing import Any, Unpack

from steepest.norms import Norm, Spectral
from steepest.optim.matrix_optimizer import MatrixOptimizer
from steepest.optim.options import MatrixShared, options
from steepest.transforms import Chain, CoshScale, Dualize, Momentum, WeightDecay, chain


class AuON(MatrixOptimizer):
    """Momentum over a root mean square of hyperbolic cosines, which is one but for tiny matrices: in effect SGD with
    momentum, or with `hybrid` Muon without a shape factor. See `CoshScale` for the arithmetic.

    Args:
        params: best `param_groups(model)`; see `MatrixOptimizer`.
        lr: learning rate of matrices and points. Steps are as long as the gradients, unless `hybrid`.
        momentum: factor of the average of gradients, always with Nesterov's look ahead.
        gamma: factor within the hyperbolic cosine.
        hybrid: orthogonalise before (Hybrid-AuON).
        weight_decay: decoupled decay.
        norm: of the hybrid's dual map.
        shared: see `MatrixShared`.

    Maity 2025 (2509.24320), in the form of the author's code.

    >>> optimizer = AuON(param_groups(torch.nn.Linear(4, 2)), lr=0.24)
    """

    def __init__(
        self,
        params: Any,
        lr: float = 0.24,
        momentum: float = 0.95,
        gamma: float = 1.5,
        hybrid: bool = False,
        weight_decay: float = 0.0,
        norm: Norm | dict[str, Any] = Spectral(),  # noqa: B008  (a frozen value)
        **shared: Unpack[MatrixShared],
    ) -> None:
        super().__init__(params, options(locals()))

    def matrix_chain(self, group: dict[str, Any]) -> Chain:
        """Momentum, the hybrid's dual map, scaling, decay."""
        dual = [Dualize(Norm.from_spec(group["norm"]))] if group["hybrid"] else []
        momentum = Momentum(group["momentum"], nesterov=True)
        return chain(momentum, *dual, CoshScale(group["gamma"]), WeightDecay(group["weight_decay"]))
