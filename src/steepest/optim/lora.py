"""The pairs of factors of PEFT's LoRA layers, recognised by their names; PEFT itself is not imported."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from steepest.manifolds.base import Manifold
from steepest.optim.constrain import Constraint, members
from steepest.optim.layers import CONVOLUTION


def lora_pairs(module: nn.Module, lora: Manifold | None) -> Iterator[tuple[tuple[str, str], Constraint]]:
    """Names and geometry of the factor pairs of a PEFT LoRA layer, one pair for each of its adapters."""
    if lora is None:
        return
    for names in _names(module):
        pair = Constraint(lora, *_patterns(module, names))
        if not lora.shape_error(pair.point(members(module, names))):  # r may exceed a side of W
            yield names, pair


def _names(module: nn.Module) -> Iterator[tuple[str, str]]:
    """Names of B and of A, for each adapter."""
    layers = [getattr(module, name, None) for name in ("lora_B", "lora_A")]
    if all(isinstance(t, nn.ModuleDict) for t in layers):
        yield from ((f"lora_B.{adapter}.weight", f"lora_A.{adapter}.weight") for adapter in layers[0] or ())
    tables = [getattr(module, name, None) for name in ("lora_embedding_B", "lora_embedding_A")]
    if all(isinstance(t, nn.ParameterDict) for t in tables):
        yield from ((f"lora_embedding_B.{adapter}", f"lora_embedding_A.{adapter}") for adapter in tables[0] or ())


def _patterns(module: nn.Module, names: tuple[str, str]) -> tuple[tuple[str | None, str | None], dict[str, int]]:
    """Patterns of B and of A, and their sizes."""
    if (experts := getattr(module, "num_experts", 1)) > 1:  # PEFT's `target_parameters` keep all experts in one layer
        return ("o (r e) -> e o r", "(e r) i -> e r i"), {"e": experts}
    ndim = module.get_parameter(names[0]).ndim
    return ((None, None) if ndim == 2 else (CONVOLUTION[ndim], CONVOLUTION[ndim])), {}
