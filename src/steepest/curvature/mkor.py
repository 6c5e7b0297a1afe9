"""Inverse Kronecker factors that are kept up to date by rank-1 corrections."""

from __future__ import annotations

import dataclasses
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from steepest.checks import check_range
from steepest.curvature.base import LayerPreconditioner
from steepest.curvature.bucket import State
from steepest.curvature.options import Shared, options
from steepest.curvature.rescale import OwnNorm
from steepest.spec import Spec

RULES = ("relaxed", "average")


@dataclasses.dataclass(frozen=True)
class LossTrend(Spec):
    """When second order has done its work: once the loss falls, smoothed over steps, by less than `share` of the
    fastest fall that was seen.

    Args:
        share: of that fall, below which the gradients are left alone.
        decay: of the averages of the loss and of its fall from step to step.
        warmup: losses that must have been seen before.

    >>> mkor = MKOR(torch.nn.Linear(4, 2), hybrid=LossTrend(share=0.1))
    >>> mkor.observe(torch.tensor(1.0))
    """

    share: float = 0.01
    decay: float = 0.9
    warmup: int = 20

    def __post_init__(self) -> None:
        check_range("share", self.share, 0, 1)
        check_range("decay", self.decay, 0, 1, open_high=True)
        check_range("warmup", self.warmup, 2)

    def start(self) -> State:
        """Nothing seen; no first loss to compare with."""
        zeros = {key: torch.zeros((), dtype=torch.float64) for key in ("losses", "loss", "fall", "fastest")}
        return {**zeros, "over": torch.zeros((), dtype=torch.bool)}

    def update(self, state: State, loss: Tensor) -> State:
        """One loss more; one that is not finite changes nothing."""
        loss = loss.detach().to(state["loss"])
        count = state["losses"] + 1
        mean = torch.where(count > 1, state["loss"].lerp(loss, 1 - self.decay), loss)
        fall = torch.where(count > 1, state["fall"].lerp(state["loss"] - mean, 1 - self.decay), 0)
        fastest = torch.maximum(state["fastest"], fall)
        over = state["over"] | ((count >= self.warmup) & (fall < self.share * fastest))
        new = {"losses": count, "loss": mean, "fall": fall, "fastest": fastest, "over": over}
        return {key: torch.where(loss.isfinite(), value, state[key]) for key, value in new.items()}


class MKOR(LayerPreconditioner):
    """B_G D B_A for a layer's gradient D, where the symmetric B_A and B_G, which stand for the inverses of the factors
    of `KFAC`, take one rank-1 correction by the mean input and the mean output gradient at every update: n^2 work
    instead of n^3.

    With a mean v over all rows, Sherman and Morrison's formula gives, for rule="relaxed",

        B <- C - (C v)(C v)^T / (1 + v^T C v),    C = decay B + (1 - decay) I,

    which pulls B towards the identity first, so that nothing ever exceeds that, and for rule="average" the exact
    inverse of the average decay B^-1 + (1 - decay) v v^T,

        B <- (B - (B v)(B v)^T / (decay / (1 - decay) + v^T B v)) / decay,

    which grows where v never points: whenever an entry exceeds `limit`, B <- (1 - blend) B + blend I.

    Args:
        model: any module; see `LayerPreconditioner`.
        decay: what an update leaves of B, or of its inverse.
        rule: "relaxed" or "average".
        limit: of the entries of B, see above.
        blend: see above.
        clip: bound on the entries of the means.
        hybrid: MKOR-H: the rule by which second order ends for good, when the losses say so that `observe` is told.
        shared: see `steepest.curvature.options.Shared`; here `every` is 10 unless said otherwise, `rescale` is
            `OwnNorm()`.

    Mozaffari et al. 2023 (2306.01685), and the authors' code, whose MKOR is "relaxed" and whose HKOR is "average".
    Theirs keeps B in float16 (here dtype=torch.float16). Not followed of the code: the first means are thrown away; the
    stabiliser, which acts one update later, on both factors and in the place of that update, sets them to the identity
    instead of blending; single entries of inputs and gradients are clipped, at 100, and not their means; norms of
    weight and bias are added when the length is restored; HKOR scales the outputs' mean by 1 - decay where its square
    root belongs. Its switch to first order is left to the caller: the rule of `LossTrend` is chosen here.

    >>> model = torch.nn.Linear(4, 2)
    >>> mkor = MKOR(model, every=5).attach(SGD(model.parameters(), lr=0.1))
    """

    moment = 1

    def __init__(
        self,
        model: nn.Module,
        decay: float = 0.95,
        rule: str = "relaxed",
        limit: float = 2.0,
        blend: float = 0.1,
        clip: float = 100.0,
        hybrid: LossTrend | None = None,
        **shared: Unpack[Shared],
    ) -> None:
        check_range("decay", decay, 0, 1, open_low=True, open_high=True)
        check_range("limit", limit, 1)
        check_range("blend", blend, 0, 1)
        check_range("clip", clip, open_low=True)
        if rule not in RULES:
            raise ValueError(f"rule: got {rule!r}, expected one of {', '.join(map(repr, RULES))}")
        shared = {"every": 10, "rescale": OwnNorm(), **shared}
        super().__init__(model, options(locals()))
        self._extra = hybrid.start() if hybrid is not None else {}

    def observe(self, loss: Tensor | float) -> None:
        """Tell the hybrid method the loss of a step."""
        if self.options["hybrid"] is None:
            raise ValueError("loss: only a hybrid method looks at losses; build it with hybrid=LossTrend()")
        self._extra = self.options["hybrid"].update(self._extra, torch.as_tensor(loss))

    def _start(self, like: Tensor) -> State:
        sides = {"inputs": like.shape[-1], "outputs": like.shape[-2]}
        return {
            key: torch.eye(side, dtype=like.dtype, device=like.device).repeat(len(like), 1, 1)
            for key, side in sides.items()
        }

    def _observe(self, state: State, a: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        return a.sum(0), g.sum(0)

    def _update(self, state: State, a: Tensor, g: Tensor, shape: tuple[int, int]) -> State:
        return {key: self._corrected(state[key], v) for key, v in (("inputs", a), ("outputs", g))}

    def _corrected(self, b: Tensor, v: Tensor) -> Tensor:
        """B after the mean v `(l, n)`."""
        decay, v = self.options["decay"], v.clamp(-self.options["clip"], self.options["clip"]).unsqueeze(-1)
        identity = torch.eye(b.shape[-1], dtype=b.dtype, device=b.device)
        if self.options["rule"] == "relaxed":
            c = b.lerp(identity.expand_as(b), 1 - decay)
            return c - _rank_1(c, v, 1.0)
        b = (b - _rank_1(b, v, decay / (1 - decay))) / decay
        large = b.abs().amax((-2, -1), keepdim=True) > self.options["limit"]
        return torch.where(large, b.lerp(identity.expand_as(b), self.options["blend"]), b)

    def _apply(self, state: State, g: Tensor) -> Tensor:
        return state["outputs"] @ g @ state["inputs"]

    @classmethod
    def examples(cls) -> list[dict[str, Any]]:
        """As it comes; the other rule, hybrid, at every step; without a rescaling."""
        average = {"rule": "average", "every": 1, "limit": 1.5, "hybrid": LossTrend()}
        return [{}, average, {"every": 2, "rescale": None}]


def _rank_1(b: Tensor, v: Tensor, ridge: float) -> Tensor:
    """(B v)(B v)^T / (ridge + v^T B v)."""
    bv = b @ v
    return bv @ bv.mT / (ridge + v.mT @ bv)
