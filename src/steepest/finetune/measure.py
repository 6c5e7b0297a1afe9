"""What is measured of an adapter while it trains.

Of pairs of LoRA factors from r x r and 2r x 2r matrices, never from W = B A itself; of adapters of all kinds by what
their layers make of fixed inputs, whatever their parametrisation is.
"""

from __future__ import annotations

import dataclasses
import statistics
from typing import Any

import torch
from torch import Tensor, nn

Pair = tuple[Tensor, Tensor]


def lora_pairs(model: nn.Module) -> list[Pair]:
    """Copies of the factors (B `(m, r)`, A `(r, n)`) of every adapted layer, in float64, in the model's order."""
    found = dict(model.named_parameters())
    pairs = []
    for name, a in found.items():
        if ".lora_A." in name:
            b = found[name.replace(".lora_A.", ".lora_B.")]
            pairs.append((b.detach().double(), a.detach().double()))
    return [(b.clone(), a.clone()) for b, a in pairs]


def condition_numbers(pairs: list[Pair]) -> tuple[list[float | None], list[float | None]]:
    """Largest over smallest singular value of each B and each A; None for a factor that has lost rank (B = 0, say)."""
    return [_condition(b) for b, _ in pairs], [_condition(a.mT) for _, a in pairs]


def _condition(x: Tensor) -> float | None:
    """From the eigenvalues of the r x r Gram matrix of x `(m, r)`."""
    eigenvalues = torch.linalg.eigvalsh(x.mT @ x)
    small, large = eigenvalues[0].item(), eigenvalues[-1].item()
    precise = small > 1e-14 * large and large > 0
    return (large / small) ** 0.5 if precise else None


def stable_ranks(before: list[Pair], after: list[Pair]) -> list[float | None]:
    """|dW|_F^2 / |dW|_2^2 of the change of each product W = B A; None where it has not changed."""
    return [_stable_rank(*change(*pair)) for pair in zip(before, after, strict=True)]


def change(before: Pair, after: Pair) -> Pair:
    """Factors `(m, 2r)`, `(2r, n)` of dW = B1 A1 - B0 A0, written so that nothing cancels."""
    (b0, a0), (b1, a1) = before, after
    return torch.cat([b1 - b0, b0], -1), torch.cat([a1, a1 - a0], -2)


def _stable_rank(left: Tensor, right: Tensor) -> float | None:
    """Of left @ right: its singular values are those of the product of the two triangular factors."""
    core = torch.linalg.qr(left).R @ torch.linalg.qr(right.mT).R.mT
    values = torch.linalg.svdvals(core)
    return (values.square().sum() / values[0].square()).item() if values[0] > 0 else None


PROBES = 64
"""Inputs by which the change of a layer is measured. The norm of a change of rank one is off by a tenth, most likely;
one of higher rank by less."""


@dataclasses.dataclass(frozen=True)
class Start:
    """What the adapted layers do before training, to which `change` and `drift` compare them."""

    responses: list[Tensor]
    singular_values: list[Tensor]
    """Of each layer; empty where they are not asked for."""

    @classmethod
    def of(cls, model: nn.Module, *, dense: bool = False) -> Start:
        """The adapted layers as they are now; with `dense` also their singular values, for `drift`."""
        layers = adapted_layers(model)
        return cls([_probed(x) for x in layers], [singular_values(x) for x in layers] if dense else [])

    def changes(self, model: nn.Module) -> list[float | None]:
        """|W' - W|_F / |W|_F of each layer, from its responses to `PROBES` normal inputs."""
        now = [_probed(layer) for layer in adapted_layers(model)]
        return [((y - x).norm() / x.norm()).item() for x, y in zip(self.responses, now, strict=True)]

    def drifts(self, model: nn.Module) -> list[float | None]:
        """By how much a singular value of each layer has moved at most, relative to the largest."""
        now = [singular_values(layer) for layer in adapted_layers(model)]
        return [((y - x).abs().max() / x.max()).item() for x, y in zip(self.singular_values, now, strict=True)]


def adapted_layers(model: nn.Module) -> list[Any]:
    """PEFT's linear layers, in the model's order; embeddings, which have no inputs to be probed by, are left out."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [m for m in model.modules() if isinstance(m, BaseTunerLayer) and hasattr(m.get_base_layer(), "weight")]
    return [m for m in layers if not isinstance(m.get_base_layer(), nn.Embedding)]


@torch.no_grad()
def response(layer: Any, x: Tensor) -> Tensor:
    """What a layer adds to its output for rows x `(k, in)`, in float64: x W'^T `(k, out)`, where it is linear."""
    weight = layer.get_base_layer().weight
    rows = torch.cat([torch.zeros_like(x[:1]), x]).to(weight.device, weight.dtype)
    y = layer(rows).double()
    return y[1:] - y[:1]


def _probed(layer: Any) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return response(layer, torch.randn(PROBES, _inputs(layer), generator=generator))


def singular_values(layer: Any) -> Tensor:
    """Those of W', in ascending order, from the smaller of its Gram matrices."""
    w = response(layer, torch.eye(_inputs(layer)))
    w = w if w.shape[0] >= w.shape[1] else w.mT
    return torch.linalg.eigvalsh(w.mT @ w).clamp_min(0).sqrt()


def _inputs(layer: Any) -> int:
    base = layer.get_base_layer()
    return getattr(base, "in_features", base.weight.shape[0])  # GPT-2's layers have weights `(in, out)`, and no name


def spread(values: list[float | None]) -> list[float] | None:
    """Least, median and greatest of the values that exist; None where there are none."""
    there = sorted(v for v in values if v is not None)
    return [there[0], statistics.median(there), there[-1]] if there else None
