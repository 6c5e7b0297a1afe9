"""GaLore+: a subspace, and single entries of what it leaves out."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from steepest.checks import check_range
from steepest.manifolds.euclidean import Euclidean
from steepest.projectors import OneHead, Power
from steepest.transforms.adam_scale import AdamScale
from steepest.transforms.base import Context, State, Transform, part_of_state
from steepest.transforms.subspace import Projected, Subspace


@dataclasses.dataclass(frozen=True)
class SparseResidual(Subspace):
    """inner(h P) P^H, and at a few entries of the residual h - h P P^H the inner chain's step for these, with a state
    of their own: which entries they are is found once, after a warm-up, and never again. See `Subspace` for the other
    arguments.

    Args:
        density: share of the entries that is kept.
        warmup: steps without residual. During the last of them the entries that are largest then are chosen.

    Liao et al. 2024, "GaLore+" (2412.19820), of which there is no code: "sparsely coded residuals to reduce the errors
    caused by low-rank approximation on the first- and second-order moments of the optimizers and weight updates",
    indexed after a warm-up. How the index is found is a choice made here.
    """

    density: float = 0.01
    warmup: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("density", self.density, 0, 1)
        check_range("warmup", self.warmup, 1)
        if wide := [link.name for link in self.inner if link.joint]:
            raise ValueError(f"inner: {wide[0]} looks at a whole point, and these are single entries")

    def own(self, h: Tensor, ctx: Context) -> State:
        """No entries yet, and the inner chain's fresh state for them."""
        batch = h.shape[: h.ndim - ctx.ndim]
        count = round(self.density * h.shape[h.ndim - ctx.ndim :].numel())
        fresh = self.chain.init((h.new_zeros((*batch, count)),), self._of_entries(ctx, 1))[0]
        start = torch.zeros((*batch, count), dtype=torch.long, device=h.device)
        return {"entries": start, **{f"residual.{key}": value for key, value in fresh.items()}}

    def lifted(self, p: Projected, state: State) -> Tensor:
        """The step in the subspace and at the entries."""
        out, entries = p.lift(p.step), state["entries"]
        past = int(p.view.inside.step) - self.warmup
        if past < 0 or not entries.shape[-1]:
            return out
        residual = p.view.back(p.x - p.lift(p.low))
        flat = residual.reshape(*entries.shape[:-1], -1)
        if past == 0:
            entries.copy_(flat.abs().topk(entries.shape[-1]).indices)
            return out
        own, ctx = part_of_state(state, "residual"), self._of_entries(p.view.inside, past)
        step = self.chain.update((flat.gather(-1, entries),), (own,), ctx)[0]
        return out + p.view.turned(torch.zeros_like(flat).scatter(-1, entries, step).reshape(residual.shape))

    def _of_entries(self, ctx: Context, step: int) -> Context:
        """What the inner chain knows when it is at the entries, which are vectors."""
        return dataclasses.replace(ctx, manifold=Euclidean(1), step=step)

    @classmethod
    def examples(cls) -> list[Transform]:
        """As published, and from the second step on with the subspace of one head."""
        heads = OneHead(projector=Power(every=2, spread=False), heads=2)
        return [cls(AdamScale(), 0.5), cls(AdamScale(), 1, heads, density=0.3, warmup=1)]
