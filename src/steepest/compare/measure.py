"""What is measured of a model and of its optimiser, besides the loss."""

from __future__ import annotations

import math
import statistics
from typing import Any

import torch
from torch import Tensor, nn

from steepest.compare.model import GPT, KINDS, kind, projections
from steepest.runs.optimizers import state_bytes


def copies(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter as it is now."""
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def update_rms(model: nn.Module, before: dict[str, Tensor]) -> dict[str, float]:
    """Root mean square of the change of an entry since `before`, for each kind of parameter where it is finite."""
    squares, counts = dict.fromkeys(KINDS, 0.0), dict.fromkeys(KINDS, 0)
    for name, p in model.named_parameters():
        change = p.detach().double() - before[name].double()
        squares[kind(name, p)] += change.square().sum().item()
        counts[kind(name, p)] += p.numel()
    return {k: (squares[k] / counts[k]) ** 0.5 for k in KINDS if counts[k] and math.isfinite(squares[k])}


def state_bytes_per_parameter(model: nn.Module, optimizers: list[Any]) -> float:
    """Memory of the optimisers' state, over the number of parameters."""
    return sum(map(state_bytes, optimizers)) / sum(p.numel() for p in model.parameters())


def condition(model: GPT) -> float:
    """Largest over smallest singular value of an attention's projection, the median over all of them."""
    values = [torch.linalg.svdvals(w.detach().double().cpu()) for w in projections(model)]
    return statistics.median((s[0] / s[-1]).item() for s in values)


@torch.no_grad()
def activations(model: GPT, tokens: Tensor) -> dict[str, float]:
    """Root mean square and largest entry, in absolute value, of the stream after the last block."""
    stream = model.hidden(tokens).double()
    return {"rms": stream.square().mean().sqrt().item(), "largest": stream.abs().max().item()}


def residual(optimizers: list[Any]) -> float:
    """The largest distance of a constrained parameter from its manifold; 0 where there is none."""
    return max((o.residual() for o in optimizers if hasattr(o, "residual")), default=0.0)
