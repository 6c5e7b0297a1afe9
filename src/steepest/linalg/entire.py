"""Cosine and sine of a square root: entire functions, smooth where the root is not.

cos(sqrt s) and sin(sqrt s) / sqrt s have power series in s without a singularity, so geodesics that run in terms of
s = |v|^2, or of the Gram matrix S = V^H V, have all their derivatives at v = 0, and at repeated singular values of V.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from steepest.linalg.autograd import plain
from steepest.linalg.dispatch import products_exponentiate
from steepest.linalg.eigen import eigh
from steepest.linalg.expm import largest_norm
from steepest.linalg.precision import double, widen
from steepest.linalg.shapes import require_square
from steepest.linalg.symmetric import sym

TERMS = 12
"""Of the power series, on |s| <= 4: what follows is below 4^12 / 25! = 1e-18."""
SINC = [(-1) ** k / math.factorial(2 * k + 1) for k in range(TERMS)]
"""sin(sqrt s) / sqrt s."""
VERSINE = [(-1) ** k / math.factorial(2 * k + 2) for k in range(TERMS)]
"""(1 - cos(sqrt s)) / s."""


def versine_sinc(s: Tensor) -> tuple[Tensor, Tensor]:
    """1 - cos(sqrt s) and sin(sqrt s) / sqrt s of each entry of the real s >= 0, of any shape; all derivatives."""
    near = s <= 4
    small, angle = torch.where(near, s, 1), torch.where(near, 1, s).sqrt()
    versine, sinc = (horner(small, c) for c in (VERSINE, SINC))
    return torch.where(near, small * versine, 1 - angle.cos()), torch.where(near, sinc, angle.sin() / angle)


def sym_versine_sinc(s: Tensor) -> tuple[Tensor, Tensor]:
    """I - cos(sqrt s) and sin(sqrt s) / sqrt s of the symmetric or Hermitian positive semidefinite s `(*b, n, n)`.

    By products alone: the series of s / 4^k, then k times the double angle, 1 - cos 2t = 2 (1 - cos t) (1 + cos t) and
    sin 2t / 2t = (sin t / t) cos t, where k brings the norm of s to 4 (after Higham 2008, Functions of Matrices,
    chapter 12, for the cosine). Written for 1 - cos, the doubling keeps small angles exact. The error is about
    eps max(1, |s|), and all derivatives work.
    """
    require_square(s, "s")
    x = widen(s)
    if plain(s):
        versine, sinc = _by_products(x) if products_exponentiate(x) else _by_eigenvectors(x)
        return versine.to(s.dtype), sinc.to(s.dtype)
    x = sym(x)
    size = torch.linalg.matrix_norm(x.detach(), keepdim=True)
    doublings = (torch.log2(size / 4) / 2).ceil().nan_to_num(0.0, 0.0, 0.0).clamp_min(0)
    x = x * torch.exp2(-2 * doublings)
    versine, sinc = _polynomials(x, [VERSINE, SINC])
    versine = x @ versine
    for i in range(_Largest.apply(doublings)):
        doubled = 4 * versine - 2 * versine @ versine, sinc - sinc @ versine
        versine, sinc = (torch.where(doublings > i, *pair) for pair in zip(doubled, (versine, sinc), strict=True))
    return versine.to(s.dtype), sinc.to(s.dtype)


def _by_products(x: Tensor) -> tuple[Tensor, Tensor]:
    """As many doublings for all as the largest of the batch takes."""
    size = largest_norm(x)
    doublings = max(0, math.ceil(math.log2(size / 4) / 2)) if size else 0
    x = x * 4.0**-doublings
    versine, sinc = _polynomials(x, [VERSINE, SINC])
    versine = x @ versine
    for _ in range(doublings):
        versine, sinc = 4 * versine - 2 * versine @ versine, sinc - sinc @ versine
    return versine, sinc


def _by_eigenvectors(x: Tensor) -> tuple[Tensor, Tensor]:
    """In float64: eigenvectors in float32 would cost digits that the polynomials keep."""
    w, v = eigh(double(x))
    angle = w.clamp_min(0).sqrt()
    sine = (0.5 * angle).sin()
    versine, sinc = 2 * (sine * sine), torch.sinc(angle * (1 / math.pi))
    return tuple(((v * f.unsqueeze(-2)) @ v.mH).to(x.dtype) for f in (versine, sinc))  # type: ignore[return-value]


def horner(s: Tensor, coefficients: list[float]) -> Tensor:
    """The polynomial with the given coefficients, of ascending powers, at each entry of s."""
    value = torch.full_like(s, coefficients[-1])
    for c in reversed(coefficients[:-1]):
        value = c + s * value
    return value


def _polynomials(x: Tensor, coefficients: list[list[float]]) -> Tensor:
    """Polynomials of degree 11 in the matrix x, by Horner's rule in x^4 (Paterson and Stockmeyer 1973)."""
    identity = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device).expand_as(x)
    square = x @ x
    powers = torch.stack([identity, x, square, square @ x])
    table = torch.tensor(coefficients, dtype=x.dtype, device=x.device).unflatten(1, (TERMS // 4, 4))
    low, middle, high = torch.tensordot(table, powers, 1).unbind(1)
    fourth = square @ square
    return low + (middle + high @ fourth) @ fourth


class _Largest(Function):
    """The largest of whole numbers as a Python number, under `torch.func.vmap` that of all it runs over."""

    @staticmethod
    def forward(t: Tensor) -> Any:
        return int(t.max().item()) if t.numel() else 0

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Nothing to keep: a count has no derivative."""

    @staticmethod
    def vmap(info: Any, in_dims: Any, t: Tensor) -> Any:
        return _Largest.apply(t), None
