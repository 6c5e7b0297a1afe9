"""Orthogonalised momentum of low rank."""

from __future__ import annotations

from typing import Any, Unpack

from steepest.optim.matrix_optimizer import MatrixOptimizer
from steepest.optim.options import MatrixShared, options
from steepest.transforms import Chain, LowRankPolar, ShapeScale, WeightDecay, chain


class Dion(MatrixOptimizer):
    """Muon without polynomials: power iteration follows the momentum's leading singular vectors, one step at a time,
    and what a step leaves out is fed back into the momentum.

    Args:
        params: best `param_groups(model)`; see `MatrixOptimizer`.
        lr: learning rate of matrices and points; what it means depends on `scale`.
        momentum: factor by which the part of the momentum that was used decays.
        rank: of a step: a whole number, or (a float up to 1.0) a share of the shorter side.
        weight_decay: decoupled decay.
        scale: as for `Muon`.
        eps: added to the lengths of the columns that become the next subspace.
        shared: see `MatrixShared`.

    Ahn, Xu, Abreu and Langford 2025 (2504.05295), algorithm 1: see `LowRankPolar`.

    >>> optimizer = Dion(param_groups(torch.nn.Linear(4, 2)), lr=0.01, rank=0.25)
    """

    def __init__(
        self,
        params: Any,
        lr: float = 0.01,
        momentum: float = 0.95,
        rank: float = 1.0,
        weight_decay: float = 0.0,
        scale: str = "spectral",
        eps: float = 1e-8,
        **shared: Unpack[MatrixShared],
    ) -> None:
        super().__init__(params, options(locals()))

    def matrix_chain(self, group: dict[str, Any]) -> Chain:
        """Low-rank polar factor, length, decay."""
        polar = LowRankPolar(group["rank"], group["momentum"], group["eps"])
        shape = ShapeScale("none" if group["geometry"] else group["scale"])
        return chain(polar, shape, WeightDecay(group["weight_decay"]))
