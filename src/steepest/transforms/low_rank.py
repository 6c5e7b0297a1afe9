"""GaLore: an inner chain in a subspace, lifted back."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from steepest.checks import check_range
from steepest.projectors import Correlated, Cosine, Gaussian, Online, Power, Principal
from steepest.transforms.adam_scale import AdamScale
from steepest.transforms.base import Context, State, Transform
from steepest.transforms.momentum import Momentum
from steepest.transforms.subspace import Projected, Subspace


@dataclasses.dataclass(frozen=True)
class LowRank(Subspace):
    """inner(h P) P^H: the step lies in the subspace, and the inner chain's state is as small as that. See `Subspace`
    for the other arguments.

    Args:
        feedback: None to forget what the projection leaves out. A number beta in [0, 1] to keep it, in one more tensor
            of h's size, and to add it to the next h: with M <- M + h, what is projected is M, and M <- M -
            (1 - beta) M P P^H. With 0 this is error feedback; with a beta near 1 M is a momentum of which the part that
            a step used decays, as in Dion.

    Zhao et al. 2024, "GaLore" (2403.03507), algorithm 1; feedback as in Ahn et al. 2025, "Dion" (2504.05295), and
    Modoranu et al. 2025 (2505.17967).
    """

    feedback: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.feedback is not None:
            check_range("feedback", self.feedback, 0, 1)

    @property
    def carried(self) -> tuple[str, ...]:
        """The inner chain's, and what was left out."""
        return (*self.chain.carried, *(("left_out",) if self.feedback is not None else ()))

    def own(self, h: Tensor, ctx: Context) -> State:
        """Nothing left out so far."""
        return {} if self.feedback is None else {"left_out": torch.zeros_like(h)}

    def fed(self, h: Tensor, state: State) -> Tensor:
        """h and what was left out before."""
        return h if self.feedback is None else state["left_out"].add_(h)

    def lifted(self, p: Projected, state: State) -> Tensor:
        """The inner chain's step, back from the subspace."""
        if self.feedback is not None and self.feedback < 1:
            state["left_out"].sub_(p.view.back(p.lift(p.low)), alpha=1 - self.feedback)
        return p.lift(p.step)

    @classmethod
    def examples(cls) -> list[Transform]:
        """Every projector, side, kind of move and feedback."""
        adam = AdamScale()
        return [
            cls(adam, 0.5),
            cls(adam, 1, Principal(every=2, spread=False), moved="rotate"),
            cls([Momentum(0.9), AdamScale()], 2, Gaussian(every=2, spread=False), side="long", moved="reset"),
            cls(Momentum(0.9), 1, Cosine(), feedback=0.9),
            cls(adam, 1, Cosine(), side="left", feedback=0.0, moved="rotate"),
            cls(Momentum(0.9), 1, Online(every=20), side="right"),
            cls(adam, 1, Correlated(every=2, spread=False, anew=2)),
            cls(adam, 1, Power(every=1, iterations=1), moved="rotate"),
        ]
