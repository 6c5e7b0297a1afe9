"""RiemannLoRA: low-rank changes that start at a regular point of the manifold of rank r."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import torch
from torch import Tensor

from steepest.adapters.base import Adapter, Source, Tensors, check_choice, check_rank
from steepest.adapters.bases import fix_signs, principal
from steepest.checks import check_range
from steepest.manifolds.base import Manifold
from steepest.manifolds.fixed_rank import FixedRank

STARTS = ("gradient", "principal", "orthonormal")


@dataclasses.dataclass(frozen=True)
class RiemannLoRA(Adapter):
    """W' = W + s B A - U V^T, with B A a point of the manifold of rank r from the start, where s B A = U V^T and W' = W;
    by default at the point whose tangent space holds most of the gradient (Bogachev et al. 2025, 2507.12142)."""

    r: int = 16
    alpha: float | None = None
    rslora: bool = False
    init: str = "gradient"
    scale: float = 0.01

    trained: ClassVar[tuple[str, ...]] = ("B", "A")
    frozen: ClassVar[tuple[str, ...]] = ("V", "U")
    basis: ClassVar[str | None] = "V"

    def __post_init__(self) -> None:
        check_choice("init", self.init, STARTS)
        check_rank("r", self.r, 2**31, "the rank")
        check_range("scale", self.scale, open_low=True)
        if self.alpha is not None:
            check_range("alpha", self.alpha, open_low=True)

    def factor(self) -> float:
        """s."""
        return 1.0 if self.alpha is None else self.alpha / (math.sqrt(self.r) if self.rslora else self.r)

    def bases(self, source: Source, basis: Tensor | None = None) -> dict[str, Tensor]:
        """V `(in, r)` with orthonormal columns and U `(out, r)`, such that s B A = U V^T at the start."""
        w, r = source.weight, self.r
        check_rank(
            "r", r, min(w.shape), f"the smaller side of a layer with {w.shape[1]} inputs and {w.shape[0]} outputs"
        )
        if self.init == "principal":
            v = principal(w, r) if basis is None else basis
            return {"V": v, "U": w @ v}
        if self.init == "gradient":
            u, v = steepest_start(source, r)
        else:
            u, v = (orthonormal(source.normal(n, r, purpose=name)) for n, name in zip(w.shape, "UV", strict=True))
        return {"V": v if basis is None else basis, "U": self.scale * u}

    def start(self, source: Source, bases: Tensors) -> dict[str, Tensor]:
        """B and A with the same lengths of columns and rows, and s B A = U V^T."""
        length = (torch.linalg.vector_norm(bases["U"], dim=0) / self.factor()).sqrt()
        short = length.clamp_min(torch.finfo(length.dtype).tiny)
        return {"B": bases["U"] / (self.factor() * short), "A": (length * bases["V"]).mT.contiguous()}

    def add(self, t: Tensors, x: Tensor) -> Tensor:
        """s B A x - U V^T x."""
        return self.factor() * (x @ t["A"].mT) @ t["B"].mT - x @ t["V"] @ t["U"].mT

    def shift(self, t: Tensors) -> Tensor:
        """s B A - U V^T."""
        return self.factor() * t["B"] @ t["A"] - t["U"] @ t["V"].mT

    def points(self) -> dict[tuple[str, ...], Manifold]:
        """The pair, of rank r from the start."""
        return {("B", "A"): FixedRank()}

    def wants_gradient(self) -> bool:
        """For its start."""
        return self.init == "gradient"

    def count(self, out_features: int, in_features: int) -> int:
        """r (out + in)."""
        return self.r * (out_features + in_features)

    @classmethod
    def examples(cls) -> list[Adapter]:
        """Every start; conventions of the factor."""
        return [cls(r=2), cls(r=3, init="principal", alpha=6.0), cls(r=4, init="orthonormal", alpha=8.0, rslora=True)]


def orthonormal(x: Tensor) -> Tensor:
    """An orthonormal basis of the columns of x `(n, r)`, with fixed signs; completed where they are dependent."""
    return fix_signs(torch.linalg.qr(x)[0])


def steepest_start(source: Source, rank: int) -> tuple[Tensor, Tensor]:
    """The spans U `(out, r)` and V `(in, r)` of a matrix of that rank at which the tangent space holds most of G."""
    g, n = source.gradient, source.weight.shape[1]
    assert g is not None
    known = principal(g, min(2 * rank, *g.shape))
    width = min(2 * rank, n)
    v = known
    if known.shape[1] < width:
        v = torch.linalg.qr(torch.cat([known, source.normal(n, width - known.shape[1], purpose="rest")], dim=1))[0]
    return orthonormal(g @ v[:, :rank]), fix_signs(v[:, -rank:])
