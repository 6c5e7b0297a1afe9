"""Preconditioned SGD on Lie groups."""

from __future__ import annotations

from typing import Any, Unpack

from steepest.optim.matrix_optimizer import MatrixOptimizer
from steepest.optim.options import MatrixShared, options
from steepest.transforms import (
    Chain,
    ClipRMS,
    ClipValue,
    CrossWhiten,
    KronWhiten,
    LowRankWhiten,
    WeightDecay,
    chain,
)

FORMS = {"kron": KronWhiten, "low_rank": LowRankWhiten, "cross": CrossWhiten}


class PSGD(MatrixOptimizer):
    """Averaged gradients, whitened by a preconditioner Q^H Q that is fitted along a group of matrices without inverses,
    so that steps have entries of about 1; then clipped.

    Args:
        params: best `param_groups(model)`; see `MatrixOptimizer`.
        lr: learning rate of matrices and points.
        momentum: factor of the average.
        form: "kron", a matrix from the left and one from the right (`KronWhiten`); "low_rank", a diagonal and a few
            directions for all entries of a parameter together (`LowRankWhiten`); "cross", pairs of entries at linear
            cost (`CrossWhiten`).
        dQ, max_side, max_skew: of "kron", see there.
        rank: of "low_rank".
        lr_preconditioner: step of Q.
        beta: factor of the average of Q's smoothness constant; 0.999 where gradients are very sparse.
        damping: see `Whiten`; the inverse of P's largest eigenvalue.
        every, warmup: Q is updated at the first and then at every such step; with a warmup at each of so many first
            steps, and then ever less often until then. 33 and 500 are usual: most steps
            of "kron" then cost a seventh.
        whiten: "gradient" or "momentum": what is to become white. With "momentum" steps are
            sqrt((1 + momentum) / (1 - momentum)) times as long, 4.4 for 0.9.
        clip: bounds of a step's root mean square and of its entries, in that order.
        initial: Q starts as this number times the identity; by default fitted to the first gradient.
        seed: of all draws.
        weight_decay: decoupled decay.
        shared: see `MatrixShared`.

    Li 2015 (1512.04202), 2022 (2211.04422); Pooladzandi and Li 2024 (2402.04553). Defaults are those of the authors'
    code of 2025, but for the momentum, which is 0 in their classes and 0.9 in what wraps them.

    >>> optimizer = PSGD(param_groups(torch.nn.Linear(4, 2)), lr=1e-3, every=33, warmup=500)
    >>> small = PSGD(param_groups(torch.nn.Linear(4, 2)), form="low_rank", rank=3)
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        momentum: float = 0.9,
        form: str = "kron",
        dQ: str = "Q0.5EQ1.5",
        max_side: int = 8192,
        max_skew: float = 1.0,
        rank: int = 10,
        lr_preconditioner: float = 0.1,
        beta: float = 0.9,
        damping: float = 1e-9,
        every: int = 1,
        warmup: int = 0,
        whiten: str = "gradient",
        clip: tuple[float, float] = (2.0, 10.0),
        initial: float | None = None,
        seed: int = 0,
        weight_decay: float = 0.0,
        **shared: Unpack[MatrixShared],
    ) -> None:
        super().__init__(params, options(locals()))

    def matrix_chain(self, group: dict[str, Any]) -> Chain:
        """Whitening, both clips, decay."""
        if group["form"] not in FORMS:
            raise ValueError(f"form: got {group['form']!r}, expected one of {', '.join(map(repr, FORMS))}")
        names = {
            "kron": ("dQ", "max_side", "max_skew"),
            "low_rank": ("rank",),
            "cross": (),
        }[group["form"]]
        common = ("beta", "damping", "momentum", "every", "warmup", "initial", "seed")
        whiten = FORMS[group["form"]](
            lr=group["lr_preconditioner"], of=group["whiten"], **{name: group[name] for name in (*common, *names)}
        )
        rms, entry = group["clip"]
        return chain(whiten, ClipRMS(rms), ClipValue(entry), WeightDecay(group["weight_decay"]))
