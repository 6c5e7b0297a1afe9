"""Muon whose orthogonalised steps are evened out by their own second moments."""

from __future__ import annotations

from typing import Any, Unpack

from steepest.norms import Max, Norm, Spectral
from steepest.optim.matrix_optimizer import MatrixOptimizer
from steepest.optim.options import MatrixShared, options
from steepest.transforms import (
    Chain,
    Dualize,
    MatchRMS,
    Momentum,
    NeuronScale,
    RMSScale,
    ShapeScale,
    WeightDecay,
    chain,
)


class NorMuon(MatrixOptimizer):
    """Muon with one second moment to each output neuron, a row of the matrix.

    Args:
        params: best `param_groups(model)`; see `MatrixOptimizer`.
        lr: learning rate of matrices and points, as for `Muon`.
        momentum: factor of the average of gradients.
        beta2: factor of the average of the rows' mean squares.
        nesterov: look one step ahead.
        weight_decay: decoupled decay.
        norm, scale: as for `Muon`.
        shared: see `MatrixShared`.

    Li, Liu, Liang, Chen and Zhao 2025 (2510.05491), with the length of the authors' code: see `NeuronScale`.

    >>> optimizer = NorMuon(param_groups(torch.nn.Linear(4, 2)), lr=0.02)
    """

    def __init__(
        self,
        params: Any,
        lr: float = 0.02,
        momentum: float = 0.95,
        beta2: float = 0.95,
        nesterov: bool = True,
        weight_decay: float = 0.0,
        norm: Norm | dict[str, Any] = Spectral(),  # noqa: B008  (a frozen value)
        scale: str = "keller_jordan",
        **shared: Unpack[MatrixShared],
    ) -> None:
        super().__init__(params, options(locals()))

    def matrix_chain(self, group: dict[str, Any]) -> Chain:
        """Momentum, dual map, evening, length, decay."""
        return chain(
            Momentum(group["momentum"], group["nesterov"]),
            Dualize(Norm.from_spec(group["norm"])),
            NeuronScale(group["beta2"]),
            ShapeScale("none" if group["geometry"] else group["scale"]),
            WeightDecay(group["weight_decay"]),
        )


class AdaMuon(MatrixOptimizer):
    """Muon on signs, with a second moment to each entry of its orthogonalised step, as long as AdamW's steps are.

    Args:
        params: best `param_groups(model)`; see `MatrixOptimizer`.
        lr: learning rate of matrices and points; AdamW's hold.
        momentum: factor of the average of gradients, and of that of squares.
        nesterov: look one step ahead.
        eps: added to the root of the squares, and to the norm of what is rescaled.
        rms: root mean square of a step's entries, in units of lr.
        weight_decay: decoupled decay.
        norm: as for `Muon`.
        shared: see `MatrixShared`.

    Si, Zhang and Shen 2025 (2507.11005), algorithm 1.

    >>> optimizer = AdaMuon(param_groups(torch.nn.Linear(4, 2)), lr=6e-3)
    """

    def __init__(
        self,
        params: Any,
        lr: float = 0.02,
        momentum: float = 0.95,
        nesterov: bool = True,
        eps: float = 1e-8,
        rms: float = 0.2,
        weight_decay: float = 0.01,
        norm: Norm | dict[str, Any] = Spectral(),  # noqa: B008  (a frozen value)
        **shared: Unpack[MatrixShared],
    ) -> None:
        super().__init__(params, options(locals()))

    def matrix_chain(self, group: dict[str, Any]) -> Chain:
        """Momentum, signs, dual map, division, length, decay."""
        return chain(
            Momentum(group["momentum"], group["nesterov"]),
            Dualize(Max()),
            Dualize(Norm.from_spec(group["norm"])),
            RMSScale(group["momentum"], group["eps"]),
            MatchRMS(group["rms"], group["eps"]),
            WeightDecay(group["weight_decay"]),
        )
