"""SODA: new singular values, and input directions turned by a Kronecker product of rotations."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import ClassVar

import torch
from torch import Tensor

from steepest.adapters.base import Adapter, Source, Tensors, check_choice, is_whole
from steepest.adapters.bases import FOUND, fix_signs
from steepest.manifolds.base import Manifold
from steepest.manifolds.orthogonal import SpecialOrthogonal

MOST = 6
"""Largest number of factors of a Kronecker product."""
NAMES = tuple(f"Q{i + 1}" for i in range(MOST))


@dataclasses.dataclass(frozen=True)
class SODA(Adapter):
    """W' = U relu(S + d) V^T K^T with W = U S V^T, and K = Q1 (x) Q2 (x) Q3 a Kronecker product of rotations, by which
    the right singular vectors become K V (Zhang et al. 2025, WACV, "SODA", 2405.21050, its decomposition by SVD).

    Args:
        factors: number of rotations, 1 to 6, whose sizes have the number of inputs as their product: as even as they
            can be, which are those with the fewest trained numbers, (8, 8, 12) for 768. Or the sizes themselves, such
            as the authors' (6, 8, 16), where all layers have that one number of inputs. A prime number falls into
            nothing, and has one dense rotation.
        singular_values: train d; otherwise K alone, for which nothing of the SVD is kept, and W' has the singular
            values of W.

    The rotations are trained themselves, as points of SO(n): `steepest.param_groups` finds them, and every optimiser of
    this library keeps them there, for which the authors wrote one that descends on Stiefel manifolds. With any other
    optimiser they cease to be rotations.

    K is applied factor by factor, 2 n (q1 + q2 + q3) operations for each input instead of 2 n^2; the layer's output is
    W z + U (relu(S + d) - S) V^T z with z = K^T x.

    What the authors' code does is done with these exceptions. Their d starts at 0.001, here at zero, so that W' = W at
    the start. Their d has as many entries as the layer has outputs, which fails where there are more of these than
    inputs; here it has one for each singular value. A singular value that W lacks, as its rank is smaller, stays zero:
    nothing tells which singular vectors belong to it, and each computer would train its own. What d takes to zero or
    below is at rest, as the derivative is zero there: W' has lost a rank, which training does not bring back.

    >>> from steepest.adapters import SODAConfig
    >>> config = SODAConfig(factors=3, target_modules=["query", "value"])
    >>> config.method().count(768, 768) == 8 * 8 + 8 * 8 + 12 * 12 + 768
    True
    """

    factors: int | tuple[int, ...] = 3
    singular_values: bool = True

    trained: ClassVar[tuple[str, ...]] = (*NAMES, "delta")
    frozen: ClassVar[tuple[str, ...]] = ("V", "S", "U")
    basis: ClassVar[str | None] = "V"

    def __post_init__(self) -> None:
        check_choice("singular_values", self.singular_values, (True, False))
        given = self.factors
        if isinstance(given, list | tuple):  # a list is what JSON makes of a tuple
            object.__setattr__(self, "factors", tuple(given))
        sizes = tuple(given) if isinstance(given, list | tuple) else (given,)
        whole = all(is_whole(q) for q in sizes)
        if not whole or not 1 <= self._number() <= MOST:
            raise ValueError(
                f"factors: got {given!r}, expected how many there are, a whole number from 1 to {MOST}, or the size of "
                f"each, such as (6, 8, 16), at most {MOST} positive whole numbers"
            )

    def sizes(self, in_features: int) -> tuple[int, ...]:
        """The sizes of the factors for that many inputs."""
        if isinstance(self.factors, int):
            return even_sizes(in_features, self.factors)
        if math.prod(self.factors) != in_features:
            raise ValueError(
                f"factors: got the sizes {self.factors}, whose product is {math.prod(self.factors)}, for a layer of "
                f"{in_features} inputs; give the number of factors, {len(self.factors)}, for sizes that fit each layer"
            )
        return self.factors

    def bases(self, source: Source, basis: Tensor | None = None) -> dict[str, Tensor]:
        """V `(in, k)`, S `(k,)` and U `(out, k)` of the SVD, k = min(out, in); columns of V for singular values that
        vanish are zero."""
        if not self.singular_values:
            return {}
        v = right_singular_vectors(source.weight) if basis is None else basis
        u, r = torch.linalg.qr(source.weight @ v)  # its columns are U S, orthogonal to each other: r is diagonal
        if torch.linalg.matrix_norm(r.triu(1)) > FOUND * torch.linalg.matrix_norm(r):  # all of space is any V's span
            raise ValueError(
                f"basis: its columns are not right singular vectors of this weight {tuple(source.weight.shape)}; load "
                "the base model that the adapter was trained on"
            )
        s = r.diagonal()
        return {"V": v, "S": s.abs(), "U": u * torch.where(s < 0, -1, 1)}

    def start(self, source: Source, bases: Tensors) -> dict[str, Tensor]:
        """Q = I for each factor, d = 0."""
        w = source.weight
        turns = {name: torch.eye(q, dtype=w.dtype, device=w.device) for name, q in self._named(w.shape[1])}
        return turns | ({"delta": w.new_zeros(min(w.shape))} if self.singular_values else {})

    def turn(self, t: Tensors, x: Tensor) -> Tensor:
        """K^T x, for rows x K."""
        return kron_product(x, self._rotations(t))

    def turn_back(self, t: Tensors, x: Tensor) -> Tensor:
        """K x, for rows x K^T."""
        return kron_product(x, [q.mT for q in self._rotations(t)])

    def add(self, t: Tensors, x: Tensor) -> Tensor | None:
        """U (relu(S + d) - S) V^T x."""
        return ((x @ t["V"]) * _change(t)) @ t["U"].mT if "delta" in t else None

    def shift(self, t: Tensors) -> Tensor | None:
        """U (relu(S + d) - S) V^T."""
        return (t["U"] * _change(t)) @ t["V"].mT if "delta" in t else None

    def orthogonal(self) -> bool:
        """Where K alone is trained."""
        return not self.singular_values

    def points(self) -> dict[tuple[str, ...], Manifold]:
        """Each factor a rotation."""
        return {(name,): SpecialOrthogonal() for name in NAMES[: self._number()]}

    def count(self, out_features: int, in_features: int) -> int:
        """q1^2 + q2^2 + ..., and min(out, in) for d; q (q - 1) / 2 of each q^2 are free."""
        k = min(out_features, in_features) if self.singular_values else 0
        return sum(q * q for q in self.sizes(in_features)) + k

    @classmethod
    def examples(cls) -> list[Adapter]:
        """Numbers of factors and sizes given, with and without singular values."""
        return [cls(), cls(factors=2, singular_values=False), cls(factors=(4, 3)), cls(factors=1)]

    def _number(self) -> int:
        return self.factors if isinstance(self.factors, int) else len(self.factors)

    def _named(self, in_features: int) -> list[tuple[str, int]]:
        return list(zip(NAMES, self.sizes(in_features), strict=False))

    def _rotations(self, t: Tensors) -> list[Tensor]:
        return [t[name] for name in NAMES[: self._number()]]


def _change(t: Tensors) -> Tensor:
    """By how much each singular value changes."""
    return torch.relu(t["S"] + t["delta"]) - t["S"]


def kron_product(x: Tensor, factors: list[Tensor]) -> Tensor:
    """x K for rows x `(..., n)`, K the Kronecker product of the factors `(q_i, q_i)`.

    Each factor takes the last axis of x `(..., n / q, q)`, which then becomes the first: after the last factor all
    axes stand where they stood.
    """
    for q in reversed(factors):
        x = (x.unflatten(-1, (-1, q.shape[-1])) @ q).mT.flatten(-2)
    return x


@functools.lru_cache(maxsize=4096)
def even_sizes(n: int, number: int) -> tuple[int, ...]:
    """That many whole numbers in ascending order, of product n and the least sum of squares.

    >>> from steepest.adapters.soda import even_sizes
    >>> even_sizes(768, 3), even_sizes(1280, 3), even_sizes(7, 3)
    ((8, 8, 12), (8, 10, 16), (1, 1, 7))
    """
    if number == 1:
        return (n,)
    smallest = [q for q in range(1, math.isqrt(n) + 1) if n % q == 0]
    found = [tuple(sorted((q, *even_sizes(n // q, number - 1)))) for q in smallest]
    return min(found, key=lambda sizes: (sum(q * q for q in sizes), sizes))


def right_singular_vectors(weight: Tensor) -> Tensor:
    """V `(in, k)` of W `(out, in)`, k = min(out, in), with fixed signs; zero where a singular value is, up to rounding.

    By an SVD, and not by an eigendecomposition of W^T W as for leading ones: all are wanted, and the last would lose
    half of their digits.
    """
    _, s, vh = torch.linalg.svd(weight, full_matrices=False)
    rounding = max(weight.shape) * torch.finfo(s.dtype).eps * s[:1]
    return fix_signs(vh.mT) * (s > rounding)
