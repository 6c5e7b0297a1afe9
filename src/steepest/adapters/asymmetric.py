"""Asymmetric LoRA: one factor frozen with orthonormal vectors, the other one trained from zero."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from steepest.adapters.base import Source, check_choice
from steepest.adapters.bases import fix_signs
from steepest.linalg.sharded import is_sharded
from steepest.manifolds.fixed_rank import FixedRank
from steepest.optim.constrain import Constraint, members
from steepest.optim.groups import clean
from steepest.optim.lora import lora_pairs

Pair = tuple[nn.Module, tuple[str, str], Constraint]
"""A layer, its names of B and A, and how they become matrices."""
FACTORS = ("B", "A")
ORTHONORMAL = 1e-2
"""How far from orthonormal a factor may be that was frozen as such: one that was saved in bfloat16 is off by 4e-3."""


@torch.no_grad()
def asymmetric_(
    model: nn.Module, adapter_name: str = "default", seed: int = 0, train: Literal["A", "B"] = "B"
) -> nn.Module:
    """Make PEFT's LoRA asymmetric, in place: A frozen, with random orthonormal rows, and B trained from zero.

    In y = W x + s B A x the factor A picks features of the input, and B makes the output of them. Zhu et al. find that
    a random A picks about as well as a trained one, while a random B does not write as well. So B alone is trained:
    half of the numbers, or twice the rank with as many.

    A step of gradient descent on B is one on W, projected onto the span of the rows of A: with A A^T = I there is
    nothing to be preconditioned, and `steepest.param_groups`, which makes B and A one point where both are trained,
    gives B the role of a plain matrix.

    PEFT keeps the factor frozen when adapters are switched, and saves both factors, so that a saved adapter needs
    neither the seed nor this library. It does not save what was frozen: to go on training a loaded adapter, call this
    again, which freezes and leaves what has been trained.

    Args:
        model: has LoRA adapters of PEFT, as they start (`LoraConfig()`, in any of its forms where B A = 0).
        adapter_name: of the adapter.
        seed: of the orthonormal factor, which is another one for each layer.
        train: "B"; or "A", with B frozen with orthonormal columns and A trained from zero, to compare.

    Returns:
        The model.

    Raises:
        ValueError: nothing to start; or a layer whose factors are neither at their start nor asymmetric. Nothing has
            been changed then.

    Zhu et al. 2024, "Asymmetry in low-rank adapters of foundation models" (2402.16842). As in their code, the rows have
    length 1, where PEFT's have 0.58. They are drawn from a Gaussian, so that their span prefers no direction (the
    singular vectors of uniform numbers, in their code, come near that), and have fixed signs, so that every LAPACK
    finds the same. Of an embedding's A the rows run over the vocabulary: the more words, the less B sees of each.

    >>> import peft
    >>> from steepest.adapters import asymmetric_
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 6))
    >>> model = asymmetric_(peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["0"])))
    >>> a = model.base_model.model[0].lora_A["default"].weight
    >>> bool((a @ a.T - torch.eye(2)).abs().max() < 1e-6), a.requires_grad
    (True, False)
    >>> [(group["role"], group["param_names"]) for group in param_groups(model)]
    [('matrix', ['base_model.model.0.lora_B.default.weight'])]
    """
    check_choice("train", train, FACTORS)
    if not isinstance(seed, int):
        raise ValueError(f"seed: got {seed!r}, expected a whole number")
    pairs = dict(_pairs(model, adapter_name))
    if not pairs:
        raise ValueError(
            f"adapter_name: the model has no LoRA layers with an adapter {adapter_name!r}; make them with "
            "peft.get_peft_model(model, peft.LoraConfig(...))"
        )
    fresh = {name: _at_its_start(name, *pair, train) for name, pair in pairs.items()}
    for name, (layer, names, constraint) in pairs.items():
        if fresh[name]:
            _start(members(layer, names), constraint, name, seed, train)
        _freeze(layer, names, adapter_name, train)
    return model


def _pairs(model: nn.Module, adapter_name: str) -> Iterator[tuple[str, Pair]]:
    """The adapter's pairs by the names of their layers."""
    for prefix, layer in model.named_modules():
        of_adapter = [pair for pair in lora_pairs(layer, FixedRank()) if adapter_name in pair[0][0].split(".")]
        yield from ((clean(prefix), (layer, *pair)) for pair in of_adapter)
        tables = [getattr(layer, name, None) for name in ("lora_A", "lora_embedding_A")]
        if not of_adapter and any(
            isinstance(t, nn.ModuleDict | nn.ParameterDict) and adapter_name in t for t in tables
        ):
            raise ValueError(
                f"{clean(prefix)}: the rank of the adapter {adapter_name!r} exceeds a side of the layer, which has not "
                "so many orthonormal vectors, or it is no LoRA. Give a smaller r, or leave the layer out."
            )


def _at_its_start(name: str, layer: nn.Module, names: tuple[str, str], constraint: Constraint, train: str) -> bool:
    """Whether nothing has been trained yet; an error where it has, and not by this method."""
    tensors = members(layer, names)
    if any(t.is_meta or is_sharded(t) for t in tensors):
        raise ValueError(f"{name}: its factors have no memory yet, or are sharded; call asymmetric_ before fully_shard")
    if not all(t.any() for t in tensors):
        return True
    q = _columns(constraint.point(tensors), train)
    gap = (q.mT @ q - torch.eye(q.shape[-1], dtype=q.dtype, device=q.device)).abs().max()
    if not gap <= ORTHONORMAL:
        raise ValueError(
            f"{name}: B A is not zero, and {_other(train)} not orthonormal: the adapter has been trained as something "
            "else, or its init_lora_weights has changed the base weight. Start from peft.LoraConfig's own."
        )
    return False


def _start(tensors: tuple[Tensor, ...], constraint: Constraint, name: str, seed: int, train: str) -> None:
    b, a = constraint.point(tensors)
    shape = _columns((b, a), train).shape
    q = fix_signs(torch.linalg.qr(Source(b, seed=seed).normal(*shape, purpose=name))[0])
    constraint.write(tensors, (q, torch.zeros_like(a)) if train == "A" else (torch.zeros_like(b), q.mT))


def _freeze(layer: Any, names: tuple[str, str], adapter_name: str, train: str) -> None:
    """Freeze one factor, and tell PEFT, which else would thaw it when it switches adapters."""
    both = dict(zip(FACTORS, zip(names, members(layer, names), strict=True), strict=True))
    (_, trained), (name, frozen) = both[train], both[_other(train)]
    trained.requires_grad_(trained.requires_grad or frozen.requires_grad)
    frozen.requires_grad_(False)
    known = getattr(layer, "frozen_peft_weight_names", {})
    layer.frozen_peft_weight_names = {**known, adapter_name: (name.split(".")[0],)}


def _columns(x: tuple[Tensor, Tensor], train: str) -> Tensor:
    """The frozen factor, with its vectors in columns."""
    return x[0] if train == "A" else x[1].mT


def _other(train: str) -> str:
    return "B" if train == "A" else "A"
