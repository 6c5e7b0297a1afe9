"""MoELoRA: several low-rank changes, of which each token chooses some."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import torch
from torch import Tensor

from steepest.adapters.base import Adapter, Source, Tensors, check_choice, check_rank, check_whole
from steepest.checks import check_range
from steepest.manifolds.base import Manifold
from steepest.manifolds.fixed_rank import FixedRank


@dataclasses.dataclass(frozen=True)
class MoELoRA(Adapter):
    """y = W x + (alpha / r) sum_e g_e(x) B_e A_e x: a router gives each token `top_k` of the experts, with weights g
    that are the softmax of their scores R x (Sun et al. 2025, 2502.15828).

    A step of an expert changes the output by g_e in the gradient times g_e in the forward pass, so that experts of
    small weight hardly move. The gates' scaling takes out a half of that: what reaches A_e and B_e is weighted by
    sqrt(g_e), while the output, the router's gradient and that of the input stay those of the formula. A and B of all
    experts are one batch of points of `FixedRank`, so every expert has its own preconditioner r x r, as the authors'.

    Args:
        r: rank of each expert.
        experts: their number.
        top_k: how many of them each token has.
        alpha: the changes have the factor alpha / r.
        gate_scaling: weight the experts' gradients by sqrt(g) instead of g.

    The layer is not linear in its input, so there is nothing to merge. All experts are computed for all tokens, as one
    LoRA of rank `r * experts` whose coordinates are weighted in between; that is faster than to gather those that were
    chosen while `r * experts` is small beside the layer.

    The authors' code, with AdamW, gives the router a learning rate of its own, 3e-8 beside the experts' 1e-5; it is the
    parameter `router`, in the role "other" of `param_groups`. There is no term for an even load in paper or code. The
    code scales what goes back to the layer's input by sqrt(g) as well, which then is the gradient of no function, and
    larger than the true one; only the experts' own are scaled here.

    >>> from steepest.adapters import MoELoRAConfig
    >>> config = MoELoRAConfig(r=4, experts=8, top_k=2, target_modules=["q_proj", "v_proj"])
    """

    r: int = 4
    experts: int = 20
    top_k: int = 10
    alpha: float = 16.0
    gate_scaling: bool = True

    trained: ClassVar[tuple[str, ...]] = ("A", "B", "router")
    mergeable: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_whole("r", self.r)
        check_whole("experts", self.experts)
        check_rank("top_k", self.top_k, self.experts, "the number of experts")
        check_range("alpha", self.alpha, open_low=True)
        check_choice("gate_scaling", self.gate_scaling, (True, False))

    def start(self, source: Source, bases: Tensors) -> dict[str, Tensor]:
        """A `(experts, r, in)` and R `(experts, in)` uniform with bound 1 / sqrt(in); B `(experts, out, r)` zero."""
        (m, n), e, r = source.weight.shape, self.experts, self.r
        check_rank("r", r, min(m, n), f"the smaller side of a layer with {n} inputs and {m} outputs")
        a = source.kaiming(e, r, n, fan_in=n, purpose="A")
        return {"A": a, "B": a.new_zeros(e, m, r), "router": source.kaiming(e, n, fan_in=n, purpose="router")}

    def add(self, t: Tensors, x: Tensor) -> Tensor:
        """The weighted sum over experts."""
        g, a, b = self.gates(t, x), t["A"], t["B"] * (self.alpha / self.r)
        if not self.gate_scaling:
            return mixture(x, g.to(x.dtype), a, b)
        if torch.is_autocast_enabled(x.device.type):  # the function below is out of autocast's sight on its way back
            dtype = torch.get_autocast_dtype(x.device.type)
            x, a, b = x.to(dtype), a.to(dtype), b.to(dtype)
        return _Mixture.apply(x, g.to(x.dtype), a, b)

    def gates(self, t: Tensors, x: Tensor) -> Tensor:
        """g `(..., experts)`: nonnegative, with sum one, at most `top_k` of them not zero."""
        best, chosen = (x @ t["router"].mT).topk(self.top_k, dim=-1)
        g = best.softmax(-1)
        return g.new_zeros(*g.shape[:-1], self.experts).scatter(-1, chosen, g)

    def shift(self, t: Tensors) -> Tensor:
        """Refused: D depends on x."""
        raise ValueError("MoELoRA: what it adds depends on the token, so that no change of the weight does the same")

    def points(self) -> dict[tuple[str, ...], Manifold]:
        """The experts' pairs, in one batch, with LoRA's start from B = 0."""
        return {("B", "A"): FixedRank(turn=0.03)}

    def count(self, out_features: int, in_features: int) -> int:
        """experts (r (out + in) + in)."""
        return self.experts * (self.r * (out_features + in_features) + in_features)

    @classmethod
    def examples(cls) -> list[Adapter]:
        """With scaled gradients and without, and the case of a single expert, which is LoRA."""
        return [
            cls(r=2, experts=4, top_k=2),
            cls(r=3, experts=3, top_k=3, gate_scaling=False),
            cls(r=2, experts=1, top_k=1),
        ]


class _Mixture(torch.autograd.Function):
    """The same sum over experts; A and B get gradients weighted by sqrt(g) where they should be by g."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, g: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return mixture(x, g, a, b)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, g, a, b = ctx.saved_tensors
        h = (x @ a.flatten(0, 1).mT).unflatten(-1, a.shape[:2])
        z = (dy @ side_by_side(b)).unflatten(-1, a.shape[:2])
        w = g.detach().sqrt().unsqueeze(-1)
        dx = (g.unsqueeze(-1) * z).flatten(-2) @ a.flatten(0, 1) if ctx.needs_input_grad[0] else None
        da = rows(w * z, 2).mT @ rows(x)
        db = rows(dy).mT @ rows(w * h, 2)
        e, r = a.shape[:2]
        return dx, (z * h).sum(-1), da.unflatten(0, (e, r)), db.unflatten(1, (e, r)).movedim(1, 0)


def mixture(x: Tensor, g: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """sum_e g_e B_e A_e x `(..., out)` for rows x `(..., in)`, g `(..., e)`, A `(e, r, in)` and B `(e, out, r)`."""
    h = (x @ a.flatten(0, 1).mT).unflatten(-1, a.shape[:2])
    return (g.unsqueeze(-1) * h).flatten(-2) @ side_by_side(b).mT


def side_by_side(b: Tensor) -> Tensor:
    """B of all experts as one matrix `(out, e * r)`."""
    return b.movedim(0, 1).flatten(1)


def rows(x: Tensor, width: int = 1) -> Tensor:
    """All rows as one matrix; a row may fill the last two dimensions."""
    return x.flatten(-width).reshape(-1, x.shape[-width:].numel())
