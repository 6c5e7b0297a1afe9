"""What is measured of an adapter while it trains: all from r x r and 2r x 2r matrices, never from W = B A itself."""

from __future__ import annotations

import statistics

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


def spread(values: list[float | None]) -> list[float] | None:
    """Least, median and greatest of the values that exist; None where there are none."""
    there = sorted(v for v in values if v is not None)
    return [there[0], statistics.median(there), there[-1]] if there else None
