"""The weight of a linear layer below an adapter: read and written as `(out, in)`, however it is stored."""

from __future__ import annotations

from typing import Any

import torch
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers.pytorch_utils import Conv1D

from steepest.linalg.sharded import is_sharded, whole


def sizes(base: nn.Module) -> Any:
    """Number of inputs and outputs of a linear layer, quantised or not; None for other layers."""
    if isinstance(base, Conv1D):
        return tuple(base.weight.shape)
    named = hasattr(base, "in_features") and hasattr(base, "out_features")
    stored = any(hasattr(base, name) for name in ("weight", "qweight", "W_q"))
    return (base.in_features, base.out_features) if named and stored else None


def is_plain(weight: Any) -> bool:
    """Whether a weight is what it stands for: not packed into few bits, nor missing."""
    packed = type(weight).__module__.startswith("torchao.")
    return weight is not None and not packed and weight.is_floating_point() and weight.itemsize > 1


def out_in(weight: Tensor, transposed: bool) -> Tensor:
    """A weight `(out, in)` from one that may be stored as `(in, out)`; and back."""
    return weight.mT if transposed else weight


@torch.no_grad()
def read(base: Any) -> Tensor:
    """W `(out, in)`, whole where it is sharded; or what a quantised one stands for."""
    weight: Any = dequantize_module_weight(base) if hasattr(base, "weight") or hasattr(base, "W_q") else None
    found = whole(weight).detach() if is_plain(weight) else _answers(base)
    return out_in(found, isinstance(base, Conv1D))


@torch.no_grad()
def write(base: Any, weight: Tensor) -> None:
    """Make `weight (out, in)` the base layer's weight, also where it is the output of a parametrisation."""
    value = out_in(weight, isinstance(base, Conv1D))
    if is_sharded(base.weight):
        raise ValueError("merge: the base weight is sharded; merge into the base model before it is sharded")
    if not parametrize.is_parametrized(base, "weight"):
        base.weight.copy_(value)
        return
    originals = list(base.parametrizations["weight"].parameters())
    before = [p.clone() for p in originals]
    value = value.to(base.weight.dtype)
    refused = "it has no right_inverse"
    try:
        base.weight = value
        refused = "it changes what it is given"
    except (RuntimeError, NotImplementedError, ValueError) as error:
        refused = str(error)
    if not torch.allclose(base.weight, value, rtol=1e-3, atol=1e-5):
        for p, as_it_was in zip(originals, before, strict=True):
            p.copy_(as_it_was)
        raise ValueError(
            f"merge: the weight of {type(base).__name__} is made by a parametrisation that cannot give the merged "
            f"one ({refused}). Call torch.nn.utils.parametrize.remove_parametrizations(layer, 'weight') first."
        )


def _answers(base: Any) -> Tensor:
    """The matrix `(out, in)` of a linear layer from what it answers to the unit vectors, whatever its storage."""
    stored = [*base.parameters(), *base.buffers()]
    like = next((t for t in stored if is_plain(t)), torch.empty(0, device=stored[0].device))
    inputs = torch.eye(base.in_features, dtype=like.dtype, device=like.device)
    return (base(inputs) - base(torch.zeros_like(inputs[:1]))).mT
