"""Momentum, orthogonalised."""

from __future__ import annotations

from typing import Any, Unpack

from steepest.norms import Norm, Spectral
from steepest.optim.matrix_optimizer import MatrixOptimizer
from steepest.optim.options import MatrixShared, options
from steepest.transforms import Chain, Dualize, Momentum, ShapeScale, WeightDecay, chain


class Muon(MatrixOptimizer):
    """Steepest descent under the spectral norm, with momentum; on a manifold intrinsic Muon (iMuon).

    Args:
        params: best `param_groups(model)`, which tells matrices, embeddings and heads apart; see `MatrixOptimizer`.
        lr: learning rate of matrices and points. What it means depends on `scale`.
        momentum: factor of the average of gradients.
        nesterov: look one step ahead.
        weight_decay: decoupled decay.
        norm: `Spectral(...)` with its schedule, or any other norm. `StiefelSpectral()` gives the exact linear
            minimisation oracle on the tangent space of Stiefel, where `Spectral` takes the polar factor of each of the
            two blocks.
        scale: convention for the length of a plain matrix's step, see `ShapeScale`: "keller_jordan" (torch.optim.Muon's
            "original"), "moonlight" (its "match_rms_adamw"), "spectral" or "none". Steps on a manifold have spectral
            norm one in its coordinates.
        shared: see `MatrixShared`.

    Jordan et al. 2024, "Muon"; Li et al. 2026 (2605.09238) for manifolds. On Stiefel the two blocks' polar factors are
    the step of Li et al.'s code; momentum, which that has not, is carried along with the point.

    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 2))
    >>> optimizer = Muon(param_groups(model), lr=0.02, adamw_lr=1e-3)
    >>> [(g["role"], g["lr"]) for g in optimizer.param_groups]
    [('matrix', 0.02), ('other', 0.001)]
    """

    def __init__(
        self,
        params: Any,
        lr: float = 0.02,
        momentum: float = 0.95,
        nesterov: bool = True,
        weight_decay: float = 0.0,
        *,
        norm: Norm | dict[str, Any] = Spectral(),  # noqa: B008  (a frozen value)
        scale: str = "keller_jordan",
        **shared: Unpack[MatrixShared],
    ) -> None:
        super().__init__(params, options(locals()))

    def matrix_chain(self, group: dict[str, Any]) -> Chain:
        """Momentum, dual map, length, decay."""
        return chain(
            Momentum(group["momentum"], group["nesterov"]),
            Dualize(Norm.from_spec(group["norm"])),
            ShapeScale(group["scale"] if group["geometry"] is None else "none"),
            WeightDecay(group["weight_decay"]),
        )
