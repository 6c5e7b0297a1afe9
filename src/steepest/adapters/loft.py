"""LOFT: a rotation within a chosen support."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from steepest.adapters.base import Adapter, Source, Tensors, check_choice, is_whole
from steepest.adapters.bases import check_values, fix_signs, principal
from steepest.adapters.reflections import paired, reflect
from steepest.adapters.rotations import Cayley, CayleyNeumann, Exponential, Free, Givens, Reflections, Rotation
from steepest.manifolds.base import Manifold
from steepest.manifolds.oblique import Oblique

SUPPORTS = ("principal", "gradient", "random", "coordinates", "butterfly", "householder")
ROTATIONS: dict[str, type[Rotation]] = {
    "cayley": Cayley,
    "cayley-neumann": CayleyNeumann,
    "exp": Exponential,
    "reflections": Reflections,
    "givens": Givens,
    "free": Free,
}
EXACT = 1536
"""Up to this many inputs the support is found by an eigendecomposition, beyond by subspace iteration."""


@dataclasses.dataclass(frozen=True)
class LOFT(Adapter):
    """W' = W (I + P (R - I) P^T): the orthogonal R turns the support, the span of the orthonormal columns of P, and
    leaves the rest alone. The two are chosen apart (Zhao et al. 2026, 2605.11872).

    Args:
        r: dimension of the support; None for all inputs, in supports of coordinates alone.
        support: what of the input is turned.
            "principal": the leading right singular vectors of W;
            "gradient": where turning helps most to first order. With M = I + S, S skew, the loss changes by
            <Skew(W^T G), S>, so P spans the leading eigenvectors of Skew(W^T G), which come in pairs: an even r is
            best. G is the gradient on the batches of `steepest.adapters.calibrate`;
            "random": a subspace drawn from the seed;
            "coordinates": the r inputs whose columns of W are longest; all of them, in their order, for r = None;
            "butterfly": all inputs, `levels` times, in blocks that join ever more distant ones; R = R_1 R_2 ..., so
            that the most distant ones are turned first, as in BOFT;
            "householder": the span of r trained vectors, and R the product of their reflections; `rotation` is not
            looked at.
        rotation: how R is written, see `steepest.adapters.rotations`: "cayley", "cayley-neumann", "exp", "reflections",
            "givens"; or "free", where R itself is trained on SO(r) by an optimiser of this library.
        block: R is block-diagonal with blocks of this size; None for one block.
        levels: number of factors of a butterfly.
        reflections: number of reflections of "reflections".
        scales: train two vectors a, b, and put diag(b) R diag(a) for R: no longer orthogonal.

    Special cases, tested against PEFT's layers and `QGOFT`: OFT is `LOFT(r=None, support="coordinates", block=32)`,
    with the numbers of PEFT's exact branch, whose series turns the other way; PSOFT is `LOFT(scales=True)`; HRA is
    `LOFT(support="householder")`; BOFT with up to two factors, and without its scaling of outputs, is
    `LOFT(r=None, support="butterfly", block=.., levels=..)`, where PEFT's further factors join other pieces; GOFT is
    `LOFT(r=None, support="coordinates", rotation="givens")`.

    No code of the authors was to be found. The paper leaves open how coordinates are chosen, which is done here by
    the lengths of columns.

    >>> from steepest.adapters import LOFTConfig
    >>> config = LOFTConfig(r=16, support="principal", target_modules=["query", "value"])
    """

    r: int | None = 32
    support: str = "principal"
    rotation: str = "cayley"
    block: int | None = None
    levels: int = 1
    reflections: int = 8
    scales: bool = False

    trained: ClassVar[tuple[str, ...]] = ("theta", "scale_in", "scale_out")
    frozen: ClassVar[tuple[str, ...]] = ("P", "place")
    basis: ClassVar[str | None] = "P"

    def __post_init__(self) -> None:
        check_choice("support", self.support, SUPPORTS)
        check_choice("rotation", self.rotation, ROTATIONS)
        whole = self.support in ("coordinates", "butterfly")
        if (self.r is None and not whole) or (self.r is not None and self.support == "butterfly"):
            raise ValueError(
                f"r: got {self.r!r} for the support {self.support!r}; give a number, or None, all inputs, for "
                "'coordinates' and 'butterfly', which always has all"
            )
        if self.support == "householder" and (self.block is not None or self.scales):
            raise ValueError("block, scales: the support 'householder' brings its own rotation, which has neither")
        if self.support == "householder" and self.r is not None and self.r % 2:
            raise ValueError(f"r: got {self.r}, expected an even number: reflections start in pairs")
        for name in ("r", "block", "levels", "reflections"):
            value = getattr(self, name)
            if value is not None and not is_whole(value):
                raise ValueError(f"{name}: got {value!r}, expected a positive whole number")
        if self.rotation == "reflections" and self.reflections % 2:
            raise ValueError(f"reflections: got {self.reflections}, expected an even number: they start in pairs")
        check_choice("scales", self.scales, (True, False))
        if self.levels > 1 and self.support != "butterfly":
            raise ValueError(f"levels: got {self.levels}; only the support 'butterfly' has more than one")

    def map(self) -> Rotation:
        """How R is written."""
        if self.rotation == "reflections":
            return Reflections(self.reflections)
        return ROTATIONS[self.rotation]()

    def bases(self, source: Source, basis: Tensor | None = None) -> dict[str, Tensor]:
        """P `(in, r)`, or the places `(levels, r)` of the coordinates that are turned."""
        w, n = source.weight, source.weight.shape[1]
        self._check(*w.shape)
        if basis is not None:
            return {"P": basis}
        if self.support == "coordinates":
            lengths = torch.linalg.vector_norm(w, dim=0)
            return {} if self.r is None else {"place": lengths.topk(self.r).indices.sort().values[None]}
        if self.support == "butterfly":
            return {"place": torch.stack([butterfly(n, self._block(n), i) for i in range(self.levels)]).to(w.device)}
        if self.support == "householder":
            return {}
        return {"P": BASES[self.support](source, self._width(n))}

    def start(self, source: Source, bases: Tensors) -> dict[str, Tensor]:
        """R = I."""
        n = source.weight.shape[1]
        if self.support == "householder":
            return {"theta": paired(source.normal(n, self._width(n) // 2, purpose="u"))}
        b = self._block(n)
        theta = self.map().start(self._batch(n), b, source)
        ones = source.weight.new_ones(self._width(n))
        return {"theta": theta} | ({"scale_in": ones, "scale_out": ones.clone()} if self.scales else {})

    def turn(self, t: Tensors, x: Tensor) -> Tensor:
        """x + P (R - I) P^T x, level by level."""
        return self._through(t, x, back=False)

    def turn_back(self, t: Tensors, x: Tensor) -> Tensor:
        """The transpose."""
        return self._through(t, x, back=True)

    def orthogonal(self) -> bool:
        """Unless it scales."""
        return not self.scales

    def points(self) -> dict[tuple[str, ...], Manifold]:
        """A free R, or the vectors of reflections."""
        if self.support == "householder" or self.rotation == "reflections":
            return {("theta",): Oblique()}
        manifold = self.map().manifold()
        return {("theta",): manifold} if manifold else {}

    def wants_gradient(self) -> bool:
        """For its support."""
        return self.support == "gradient"

    def count(self, out_features: int, in_features: int) -> int:
        """Blocks times the numbers of one: for one Cayley block r (r - 1) / 2; with scales 2 r more."""
        r, b = self._width(in_features), self._block(in_features)
        if self.support == "householder":
            return in_features * r
        return self.levels * (r // b) * self.map().count(b) + (2 * r if self.scales else 0)

    @classmethod
    def examples(cls) -> list[Adapter]:
        """Every support, and every rotation."""
        return [
            cls(r=4),
            cls(r=4, support="gradient", rotation="exp"),
            cls(r=4, support="random", rotation="free"),
            cls(r=6, support="coordinates", block=3, rotation="cayley-neumann"),
            cls(r=None, support="butterfly", block=6, levels=2),
            cls(r=4, support="householder"),
            cls(r=6, rotation="reflections", reflections=4),
            cls(r=None, support="coordinates", rotation="givens"),
            cls(r=4, scales=True),
        ]

    def _width(self, n: int) -> int:
        return n if self.r is None else self.r

    def _block(self, n: int) -> int:
        return self.block or self._width(n)

    def _batch(self, n: int) -> tuple[int, ...]:
        """Levels and blocks of a butterfly, blocks where there are several."""
        blocks = self._width(n) // self._block(n)
        if self.support == "butterfly":
            return self.levels, blocks
        return () if blocks == 1 else (blocks,)

    def _check(self, out: int, n: int) -> None:
        """That the sizes fit a layer of n inputs."""
        most = min(out, n) if self.support == "principal" else n
        if self._width(n) > most:
            raise ValueError(
                f"r: got {self.r}, but the support {self.support!r} has {most} dimensions at most in a layer with {n} "
                f"inputs and {out} outputs"
            )
        if self._width(n) % self._block(n):
            raise ValueError(f"block: got {self.block}, which does not divide the support's width, {self._width(n)}")

    def _through(self, t: Tensors, x: Tensor, back: bool) -> Tensor:
        if self.support == "householder":
            return reflect(t["theta"], x, inverse=not back)
        if "P" in t:
            z = x @ t["P"]
            return x + (self._turned(t, z, back) - z) @ t["P"].mT
        if self.support == "butterfly" or "place" not in t:
            return self._turned(t, x, back)
        place = t["place"][0]
        return x.index_copy(-1, place, self._turned(t, x[..., place], back).to(x.dtype))

    def _turned(self, t: Tensors, z: Tensor, back: bool) -> Tensor:
        """diag(b) R diag(a) z, or the transpose of that, for rows z `(..., width)` in the support."""
        with torch.autocast(z.device.type, enabled=False):
            r = self.map().matrix(t["theta"], self._block(z.shape[-1]))
        first, last = ("scale_out", "scale_in") if back else ("scale_in", "scale_out")
        if self.scales:
            z = z * t[first]
        r = r.mT if back else r
        if self.support != "butterfly":
            z = _blockwise(r, z)
        else:
            order = range(self.levels)
            for level in order if back else reversed(order):
                place = t["place"][level]
                z = z.index_copy(-1, place, _blockwise(r[level], z[..., place]).to(z.dtype))
        return z * t[last] if self.scales else z


def _blockwise(r: Tensor, z: Tensor) -> Tensor:
    """R z for rows z `(..., width)`, R `(b, b)` or the blocks `(width / b, b, b)` of it."""
    if r.ndim == 2:
        return z @ r.mT
    return torch.einsum("...kj,kij->...ki", z.unflatten(-1, r.shape[:2]), r).flatten(-2)


def butterfly(n: int, block: int, level: int) -> Tensor:
    """The places `(n,)` that level joins, block by block: pieces of half a block, 2^level pieces apart."""
    half, stride = block // 2, 2**level
    if block % 2 or n % (2 * stride * half):
        raise ValueError(
            f"block, levels: {n} inputs do not fall into pieces of {block} / 2 that can be joined in pairs {stride} "
            f"pieces apart; block must be even, and {2 * stride * half} divide {n}"
        )
    pieces = torch.arange(n // half)
    first = pieces[(pieces // stride) % 2 == 0]
    joined = torch.stack([first, first + stride], dim=1).flatten()
    return (joined[:, None] * half + torch.arange(half)).flatten()


def principal_support(source: Source, rank: int) -> Tensor:
    """The leading right singular vectors of W `(in, rank)`."""
    v = principal(source.weight, rank)
    check_values("r", rank, torch.linalg.vector_norm(source.weight @ v, dim=0), "; or another `support`")
    return v


def random_support(source: Source, rank: int) -> Tensor:
    """An orthonormal basis of a random subspace `(in, rank)`; by QR with fixed signs."""
    return fix_signs(torch.linalg.qr(source.normal(source.weight.shape[1], rank, purpose="support"))[0])


def gradient_support(source: Source, rank: int) -> Tensor:
    """The leading invariant subspace `(in, rank)` of Skew(W^T G)."""
    assert source.gradient is not None, "the support 'gradient' needs Source(gradient=...)"
    product = source.weight.mT @ source.gradient
    skew = (product - product.mT) / 2
    if skew.shape[0] <= EXACT:
        return fix_signs(torch.linalg.eigh(skew.mT @ skew)[1][:, -rank:].flip(-1))
    found = source.normal(skew.shape[0], min(rank + 8, skew.shape[0]), purpose="iteration")
    for _ in range(8):
        found = torch.linalg.qr(skew.mT @ (skew @ found))[0]
    image = skew @ found  # of the found subspace, somewhat wider than asked for, the part that turns most
    return fix_signs(found @ torch.linalg.eigh(image.mT @ image)[1][:, -rank:].flip(-1))


BASES: dict[str, Callable[[Source, int], Tensor]] = {
    "principal": principal_support,
    "gradient": gradient_support,
    "random": random_support,
}
"""Supports that are a basis, by their names."""
