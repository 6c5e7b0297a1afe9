"""Kronecker-factored preconditioning."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Unpack

from steepest.optim.matrix_optimizer import MatrixOptimizer
from steepest.optim.options import MatrixShared, options
from steepest.transforms import (
    AdagradScale,
    AdamScale,
    Chain,
    Graft,
    Momentum,
    Precondition,
    PreconditionFactored,
    Quantized,
    RMSScale,
    Tiled,
    Transform,
    WeightDecay,
    chain,
)

GRAFTS: dict[str, Callable[[float], Transform | tuple[Transform, ...]]] = {
    "adam": lambda beta: AdamScale((0.0, beta)),
    "rmsprop": RMSScale,
    "adagrad": lambda _: AdagradScale(),
    "gradient": lambda _: (),
}
"""Whose steps give a step its length; of the second moment's factor."""


class Shampoo(MatrixOptimizer):
    """Matrices divided by the fourth roots of their summed row and column statistics, then averaged.

    Args:
        params: best `param_groups(model)`; see `MatrixOptimizer`.
        lr: learning rate of matrices and points.
        momentum: factor of the average of preconditioned gradients.
        beta: 1 to sum the statistics, below 1 to average them.
        eps: added to the statistics' diagonal, relative to its mean.
        every: steps between computations of the roots.
        weight_decay: decoupled decay.
        power: of the statistics: 1/4 as published; see `ShampooSquared` for 1/2.
        early: number of first steps at each of which the roots are computed as well.
        block: longest side of the tiles that a matrix is cut into, each with statistics of its own; None for whole
            matrices, of which a side longer than 2048 has its statistics' diagonal alone.
        graft: whose length the step of each tile has: "adam", "rmsprop", "adagrad", "gradient", or None for its own.
        graft_beta: second factor of Adam's averages, or that of RMSprop, for that length.
        start: steps before this one are those of `graft`.
        shared: see `MatrixShared`.

    Gupta, Koren and Singer 2018 (1802.09568), algorithm 1; tiles and grafting as in Anil et al. 2020 (2002.09018) and
    Shi et al. 2023, "A distributed data-parallel PyTorch implementation of the distributed Shampoo optimizer"
    (2309.06497).

    >>> optimizer = Shampoo(param_groups(torch.nn.Linear(4, 2)), lr=0.1, every=10)
    >>> optimizer = Shampoo(param_groups(torch.nn.Linear(4, 2)), lr=1e-3, beta=0.99, block=1024, graft="adam")
    """

    def __init__(
        self,
        params: Any,
        lr: float = 0.1,
        momentum: float = 0.9,
        beta: float = 1.0,
        eps: float = 1e-6,
        every: int = 1,
        weight_decay: float = 0.0,
        power: float = 0.25,
        early: int = 1,
        block: int | None = None,
        graft: str | None = None,
        graft_beta: float = 0.999,
        start: int = 1,
        **shared: Unpack[MatrixShared],
    ) -> None:
        super().__init__(params, options(locals()))

    def matrix_chain(self, group: dict[str, Any]) -> Chain:
        """Preconditioning, momentum, decay."""
        beta, side = group["beta"], group["block"] or 2048
        precondition: Transform = Precondition(
            beta, group["eps"], group["every"], side, group["power"], group["early"], debias=beta < 1
        )
        if group["graft"] is not None:
            precondition = Graft(precondition, _length(group["graft"], group["graft_beta"]), group["start"])
        if group["block"]:
            precondition = Tiled(precondition, group["block"])
        return chain(precondition, Momentum(group["momentum"]), WeightDecay(group["weight_decay"]))


class ShampooSquared(Shampoo):
    """Shampoo whose statistics have twice the power, L^-1/2 h R^-1/2 tr(L)^1/2: of the Kronecker products, nearly the
    one that is nearest to full-matrix Adagrad.

    Args: as `Shampoo`, of which `power` has another default.

    Morwani, Shapira, Vyas, Malach, Kakade and Janson 2024, "A new perspective on Shampoo's preconditioner"
    (2406.17748), section 3.

    >>> optimizer = ShampooSquared(param_groups(torch.nn.Linear(4, 2)), lr=0.01, every=10)
    >>> optimizer.param_groups[0]["power"]
    0.5
    """

    def __init__(self, params: Any, lr: float = 0.1, power: float = 0.5, **options: Any) -> None:
        super().__init__(params, lr, power=power, **options)


class Shampoo4bit(MatrixOptimizer):
    """Shampoo with its statistics' eigenvectors and roots in 4 bits: 7 times less state, steps as long as the gradient.

    Args:
        params: best `param_groups(model)`; see `MatrixOptimizer`.
        lr: learning rate of matrices and points.
        momentum: factor of the sum of preconditioned gradients, m <- momentum m + step.
        beta: factor of the statistics' average.
        eps: added to their eigenvalues, relative to the largest.
        every: steps from one gradient that enters the statistics to the next.
        roots_every: steps from one computation of the roots to the next.
        bits: 4, or 8; 32 keeps all as it is.
        block: longest side of the tiles that a matrix is cut into.
        weight_decay: decoupled decay.
        shared: see `MatrixShared`.

    Wang, Zhou, Li and Huang 2024 (2405.18144), with the defaults of their code. There decay is added to the gradient
    (L2); here it is decoupled, as everywhere in this library.

    >>> optimizer = Shampoo4bit(param_groups(torch.nn.Linear(128, 128)), lr=0.1, every=10, roots_every=50)
    """

    in_suite: ClassVar[dict[str, Any]] = {"every": 2, "roots_every": 4}

    def __init__(
        self,
        params: Any,
        lr: float = 0.1,
        momentum: float = 0.9,
        beta: float = 0.95,
        eps: float = 1e-6,
        every: int = 100,
        roots_every: int = 500,
        bits: int = 4,
        block: int = 1200,
        weight_decay: float = 0.0,
        **shared: Unpack[MatrixShared],
    ) -> None:
        super().__init__(params, options(locals()))

    def matrix_chain(self, group: dict[str, Any]) -> Chain:
        """Preconditioning at the gradient's length, tile by tile; momentum, decay."""
        rectify = (1, 4) if group["bits"] < 32 else (0, 0)
        transform: Transform = PreconditionFactored(
            group["beta"], group["eps"], group["every"], group["roots_every"], rectify
        )
        if group["bits"] != 32:
            transform = Quantized(transform, group["bits"], block=64)
        return chain(
            Graft(Tiled(transform, group["block"])),
            Momentum(group["momentum"], ema=False),
            WeightDecay(group["weight_decay"]),
        )


def _length(name: str, beta: float) -> Transform | tuple[Transform, ...]:
    """What gives a step its length."""
    if name not in GRAFTS:
        raise ValueError(f"graft: got {name!r}, expected None or one of {', '.join(map(repr, GRAFTS))}")
    return GRAFTS[name](beta)
