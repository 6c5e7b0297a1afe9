"""A subspace learned by gradient steps of its own."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from steepest.checks import check_range
from steepest.projectors.base import Moment, Projector, State
from steepest.projectors.principal import Principal


@dataclasses.dataclass(frozen=True)
class Online(Projector):
    """Online subspace descent: after each step one of AdamW on P, for |x P P^H - x|^2 at x of norm one. It starts at
    the leading singular vectors of the first gradient; no decomposition after that, and no orthonormality.

    Args:
        every: the learning rate is 1 / every where the optimiser's is the largest so far, and follows it in proportion;
            so it does not wait for a warm-up.
        betas, eps, weight_decay: of the AdamW.

    Liang, Liu, Chen and Liu 2024, "Memory-efficient LLM training with online subspace descent" (2408.12857), equation
    5; options of the authors' code.

    >>> optimizer = OnlineSubspaceDescent(param_groups(torch.nn.Linear(8, 8)), projector=Online(every=50))
    """

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        for i, beta in enumerate(self.betas):
            check_range(f"betas[{i}]", beta, 0, 1, open_high=True)
        check_range("eps", self.eps)
        check_range("weight_decay", self.weight_decay)

    @property
    def orthonormal(self) -> bool:
        """At the first two steps only."""
        return False

    def age(self, at: Moment) -> int:
        """It moves at every step but the first."""
        return int(min(at.step, 1 if at.step > 2 else 2))

    def init(self, x: Tensor, rank: int) -> State:
        """A random subspace until the first step, and zero moments."""
        state = Principal().init(x, rank)
        p = state["basis"]
        moments = {"first": torch.zeros_like(p), "second": torch.zeros_like(p.real)}
        return state | moments | {"lr": p.real.new_zeros(p.shape[:-2])}

    def basis(self, x: Tensor, rank: int, state: State, at: Moment) -> Tensor:
        """Where the descent is."""
        return state["basis"]

    def before(self, x: Tensor, rank: int, state: State, at: Moment) -> State | None:
        """Singular vectors at the first step."""
        if at.step > 1:
            return None
        start = Principal().before(x, rank, state, at) or {}
        return start | {"lr": self._largest(state, at)}

    def after(self, x: Tensor, low: Tensor, state: State, at: Moment) -> State | None:
        """One step of AdamW."""
        if at.step == 1:
            return None
        p, t, lr = state["basis"], at.step - 1, self._largest(state, at)
        g = self.gradient(x, low, p)
        first = state["first"].lerp(g, 1 - self.betas[0])
        second = state["second"].lerp((g.conj() * g).real, 1 - self.betas[1])
        root = (second / (1 - self.betas[1] ** t)).sqrt() + self.eps
        rate = (at.lr / lr.masked_fill(lr == 0, 1) / self.every).to(p.real.dtype)[..., None, None]
        moved = p * (1 - rate * self.weight_decay) - rate * (first / (1 - self.betas[0] ** t)) / root
        return {"basis": moved, "first": first, "second": second, "lr": lr}

    @staticmethod
    def _largest(state: State, at: Moment) -> Tensor:
        """Of the optimiser's learning rates so far."""
        return state["lr"].maximum(torch.as_tensor(at.lr, dtype=state["lr"].dtype, device=state["lr"].device))

    @staticmethod
    def gradient(x: Tensor, low: Tensor, p: Tensor) -> Tensor:
        """Of |x P P^H - x|^2 / |x|^2 in P, with low = x P."""
        size = (x.conj() * x).real.sum((-2, -1), keepdim=True)
        y = x.mH @ low
        g = 2 * (y @ (p.mH @ p) + p @ (low.mH @ low) - 2 * y)
        return g / torch.where(size > 0, size, 1)

    @classmethod
    def examples(cls) -> list[Projector]:
        """As published, and ten times as fast."""
        return [cls(), cls(every=20, weight_decay=0.0)]
