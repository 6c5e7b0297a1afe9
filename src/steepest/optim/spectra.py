"""Any method with its singular values bounded."""

from __future__ import annotations

from typing import Any, ClassVar, Unpack

from steepest.optim.matrix_optimizer import MatrixOptimizer
from steepest.optim.options import MatrixShared, options
from steepest.transforms import AdamScale, Chain, ShapeScale, SpectralClip, Transform, WeightDecay, chain, chain_of


class Spectra(MatrixOptimizer):
    """Any chain of transforms with the singular values of its steps bounded, softly, and those of its gradients on
    request.

    Args:
        params: best `param_groups(model)`; see `MatrixOptimizer`.
        lr: learning rate of matrices and points.
        base: what is clipped: a transform, a chain, or several transforms in order.
        threshold: bound of a step's singular values, in units of lr and before the factor of its shape; None for none.
            The authors' warm-up keeps lr times threshold constant: set `group["threshold"]` beside `group["lr"]`.
        before: bound of the gradient's; None for none.
        weight_decay: decoupled decay.
        scale: as for `Muon`; it multiplies the whole step, also where nothing is clipped.
        shared: see `MatrixShared`.

    Jiang, Semenov and Stich 2026 (2603.14315), algorithm 1.

    >>> from steepest.transforms import Momentum
    >>> optimizer = Spectra(param_groups(torch.nn.Linear(4, 2)), base=Momentum(0.9), lr=0.1, threshold=1.0)
    """

    chains: ClassVar[tuple[str, ...]] = ("base",)

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        base: Transform | Chain | list[Any] = AdamScale((0.9, 0.95)),  # noqa: B008  (a frozen value)
        threshold: float | None = 10.0,
        before: float | None = None,
        weight_decay: float = 0.0,
        scale: str = "keller_jordan",
        **shared: Unpack[MatrixShared],
    ) -> None:
        super().__init__(params, options(locals()))

    def matrix_chain(self, group: dict[str, Any]) -> Chain:
        """The gradient's clipping, the method, its clipping, length, decay."""
        before = [SpectralClip(group["before"])] if group["before"] is not None else []
        shape = ShapeScale("none" if group["geometry"] else group["scale"])
        after = [SpectralClip(group["threshold"])] if group["threshold"] is not None else []
        return chain(*before, chain_of(group["base"]), *after, shape, WeightDecay(group["weight_decay"]))
