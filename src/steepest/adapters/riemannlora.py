"""RiemannLoRA: low-rank changes that start at a regular point of the manifold of rank r."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import torch
from torch import Tensor

from steepest.adapters.base import Adapter, Source, Tensors, check_choice, check_rank, check_whole
from steepest.adapters.bases import check_values, fix_signs, principal
from steepest.checks import check_range
from steepest.manifolds.base import Manifold
from steepest.manifolds.fixed_rank import FixedRank

STARTS = ("gradient", "principal", "orthonormal")


@dataclasses.dataclass(frozen=True)
class RiemannLoRA(Adapter):
    """W' = W + s B A - U V^T: LoRA that starts at a regular point of the manifold of matrices of rank r, s B A = U V^T,
    and so that W' = W; by default at the point whose tangent space holds most of the gradient (Bogachev et al. 2025,
    "RiemannLoRA", later "LoRA meets Riemannion", 2507.12142).

    With G = U1 S1 V1^T + U2 S2 V2^T + .. the singular value decomposition of the gradient, r triples in each block, the
    tangent space at U1 M V2^T, for every regular M, holds the two blocks whole, U1 (..) + (..) V2^T; and as tangent
    vectors have a rank of 2 r at most, no other space holds more (theorem 5.1). A first step along the gradient in
    `FixedRank` thus changes W by that best approximation of rank 2 r.

    Args:
        r: rank of B A.
        alpha: s = alpha / r; with None s = 1. The start does not depend on it; it is a factor of later changes.
        rslora: s = alpha / sqrt(r) instead.
        init: where the change of W starts.
            "gradient": U1 V2^T, as the authors; G is the gradient on the batches of `steepest.adapters.calibrate`. The
            factor of G, of either sign, does not matter. Where G has a lower rank than 2 r, or a layer smaller sides,
            the spans are completed;
            "principal": the r leading triples of W, as PiSSA (Meng et al. 2024, 2404.02948), with the base weights left
            as they are; refused where W has a lower rank;
            "orthonormal": U and V drawn from the seed, "Stiefel-both" of the authors.
        scale: Frobenius norm of U V^T; "principal" brings its own. All its singular values are equal.

    B and A are one point of `FixedRank`, which `steepest.param_groups` finds; they start with columns and rows of equal
    lengths. Whatever the choice of (B C, C^-1 A), SGD, momentum and Muon make the same changes of W; Adam does for a
    diagonal C. Other optimisers can train the pair as they do LoRA's. U V^T is kept beside it, never taken out of W,
    which may be quantised; `peft.convert_to_lora` gives a LoRA of rank 2 r that does the same.

    This follows the paper alone. Its optimiser, Riemannion, is Muon in the metric of the surrounding space, that of
    `FixedRankEmbedded`, with a retraction by SVD, to which the size of the start is indifferent; the authors take
    `scale=0.01` for language models, and 1 for diffusion. The metric of `FixedRank` divides by B^T B and A A^T, and a
    step that is longer than the start leaves the tangent space far behind: from 0.01 a first step of a large learning
    rate took a loss to 20 times its value, from 1 none did, and the best learning rate came further. So the default is
    1. Their randomised SVD, by backward passes through thin factors, saves the memory of G, which is formed here.

    >>> from steepest.adapters import RiemannLoRAConfig, calibrate
    >>> model, x = torch.nn.Sequential(torch.nn.Linear(8, 8)), torch.randn(20, 8)
    >>> config = RiemannLoRAConfig(r=2, target_modules=["0"])
    >>> config = calibrate(model, config, lambda: (model(x) - x).square().mean().backward())
    >>> from peft import get_peft_model
    >>> model = get_peft_model(model, config)
    """

    r: int = 16
    alpha: float | None = None
    rslora: bool = False
    init: str = "gradient"
    scale: float = 1.0

    trained: ClassVar[tuple[str, ...]] = ("B", "A")
    frozen: ClassVar[tuple[str, ...]] = ("V", "U")
    basis: ClassVar[str | None] = "V"

    def __post_init__(self) -> None:
        check_choice("init", self.init, STARTS)
        check_whole("r", self.r)
        check_range("scale", self.scale, open_low=True)
        check_choice("rslora", self.rslora, (True, False))
        if self.alpha is not None:
            check_range("alpha", self.alpha, open_low=True)
        elif self.rslora:
            raise ValueError("rslora: says how alpha is divided, and alpha is None; give a number, or leave rslora out")

    def factor(self) -> float:
        """s."""
        return 1.0 if self.alpha is None else self.alpha / (math.sqrt(self.r) if self.rslora else self.r)

    def bases(self, source: Source, basis: Tensor | None = None) -> dict[str, Tensor]:
        """V `(in, r)` with orthonormal columns and U `(out, r)`, such that s B A = U V^T at the start."""
        w, r = source.weight, self.r
        sides = f"the smaller side of a layer with {w.shape[1]} inputs and {w.shape[0]} outputs"
        check_rank("r", r, min(w.shape), sides)
        if self.init == "principal":
            v = principal(w, r) if basis is None else basis
            u = w @ v
            check_values("r", r, torch.linalg.vector_norm(u, dim=0), "; or another `init`")
            return {"V": v, "U": u}
        if self.init == "gradient":
            u, v = steepest_start(source, r)
        else:
            u, v = (orthonormal(source.normal(n, r, purpose=name)) for n, name in zip(w.shape, "UV", strict=True))
        return {"V": v if basis is None else basis, "U": self.scale / math.sqrt(r) * u}

    def start(self, source: Source, bases: Tensors) -> dict[str, Tensor]:
        """B and A with s B A = U V^T, and the same lengths of columns and rows."""
        length = (torch.linalg.vector_norm(bases["U"], dim=0) / self.factor()).sqrt()
        return {"B": bases["U"] / (self.factor() * length), "A": (length * bases["V"]).mT.contiguous()}

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
    """U `(out, r)` and V `(in, r)`, orthonormal: singular vectors 1 to r on the left, r + 1 to 2 r on the right. Where
    there are fewer inputs than 2 r, V are the last r; where there are fewer outputs, V is completed at random."""
    g, n = source.gradient, source.weight.shape[1]
    assert g is not None, "init 'gradient' needs Source(gradient=...)"
    v = principal(g, min(2 * rank, *g.shape))
    missing = min(2 * rank, n) - v.shape[1]
    if missing:
        v = torch.linalg.qr(torch.cat([v, source.normal(n, missing, purpose="rest")], dim=1))[0]
    return orthonormal(g @ v[:, :rank]), fix_signs(v[:, -rank:])
