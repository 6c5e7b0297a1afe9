"""Spectral Adapter: what is trained are the leading singular vectors."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from steepest.adapters.base import Adapter, Source, Tensors, check_choice, check_rank, check_whole
from steepest.adapters.bases import check_values, principal
from steepest.adapters.rotations import Cayley

FORMS = ("additive", "rotational")


@dataclasses.dataclass(frozen=True)
class SpectralAdapter(Adapter):
    """W' = (U + B) diag(s c) (V + A^T)^T + W_rest, or W' = U Q_u diag(s c) Q_v^T V^T + W_rest: of the singular value
    decomposition of W some columns U `(out, r)`, s `(r,)`, V `(in, r)` are tuned, in addition to them or by rotations
    Q, and the rest stays (Zhang and Pilanci 2024, 2405.13952).

    Adapters of several concepts take columns of their own: with `offset` 0, r, 2 r, ... they may be trained apart, and
    be active or merged together, and W' is what the formula gives for all of these columns at once.

    Args:
        r: number of singular columns that are tuned.
        form: "additive", with A `(r, in)` and B `(out, r)` that start from zero; or "rotational", with Cayley rotations
            within the r columns of each side, so that their spans stay as they are.
        offset: number of leading singular columns that are left alone, for adapters of other concepts.
        scales: train factors c, at first one, of the singular values. None: "rotational" alone does.

    The rest of W is never formed; the change D is computed by thin products, and is exactly zero at the start. Columns
    of a singular value that is zero are refused.

    The authors' code has three forms: the additive one without c (language models), the additive one with s + c in
    place of s c (fusion of concepts), and the rotational one with s c (diffusion). Here c is a factor always, so that
    it means the same in every layer. They train r x r matrices X and take the Cayley transform of their skew part; as
    the symmetric part moves nothing, here the entries above the diagonal are trained alone, theta = -(X - X^T) / 2, and
    one number takes the place of two. For language models they round the rest of W to bfloat16, which changes the model
    at the start; here it does not.

    >>> from steepest.adapters import SpectralAdapterConfig
    >>> cat = SpectralAdapterConfig(r=8, target_modules=["query", "value"])
    >>> dog = SpectralAdapterConfig(r=8, offset=8, target_modules=["query", "value"])
    """

    r: int = 8
    form: str = "additive"
    offset: int = 0
    scales: bool | None = None

    trained: ClassVar[tuple[str, ...]] = ("A", "B", "theta_u", "theta_v", "c")
    frozen: ClassVar[tuple[str, ...]] = ("V", "s", "U")
    basis: ClassVar[str | None] = "V"

    def __post_init__(self) -> None:
        check_choice("form", self.form, FORMS)
        check_choice("scales", self.scales, (None, True, False))
        check_whole("r", self.r)
        check_whole("offset", self.offset, least=0)

    def bases(self, source: Source, basis: Tensor | None = None) -> dict[str, Tensor]:
        """V, and with it U diag(s) = W V."""
        w = source.weight
        shape = f"the smaller side of a layer with {w.shape[1]} inputs and {w.shape[0]} outputs"
        check_rank("offset + r", self.offset + self.r, min(w.shape), shape)
        v = principal(w, self.offset + self.r)[:, self.offset :] if basis is None else basis
        us = w @ v
        s = torch.linalg.vector_norm(us, dim=0)
        check_values("offset + r", self.offset + self.r, s)
        return {"V": v, "s": s, "U": us / s}

    def start(self, source: Source, bases: Tensors) -> dict[str, Tensor]:
        """Nothing added, or nothing turned."""
        (m, n), r, zeros = source.weight.shape, self.r, source.weight.new_zeros
        scales = {"c": zeros(r) + 1} if self._scales() else {}
        if self.form == "additive":
            return {"A": zeros(r, n), "B": zeros(m, r)} | scales
        return {name: Cayley().start((), r, source) for name in ("theta_u", "theta_v")} | scales

    def add(self, t: Tensors, x: Tensor) -> Tensor:
        """D x, from coordinates in V."""
        z = x @ t["V"]
        if self.form == "rotational":
            return z @ self._core(t).mT @ t["U"].mT
        before, after = z * t["s"], (z + x @ t["A"].mT) * self._values(t)
        return (after - before) @ t["U"].mT + after @ t["B"].mT

    def shift(self, t: Tensors) -> Tensor:
        """D."""
        if self.form == "rotational":
            return t["U"] @ self._core(t) @ t["V"].mT
        values = self._values(t)
        inner = values[:, None] * t["A"] + (values - t["s"])[:, None] * t["V"].mT
        return t["U"] @ inner + t["B"] @ (values[:, None] * (t["A"] + t["V"].mT))

    def count(self, out_features: int, in_features: int) -> int:
        """r (out + in), or r (r - 1); with scales r more."""
        columns = self.r * (out_features + in_features) if self.form == "additive" else self.r * (self.r - 1)
        return columns + (self.r if self._scales() else 0)

    @classmethod
    def examples(cls) -> list[Adapter]:
        """Both forms, in leading and in later columns, with scales and without."""
        return [
            cls(r=3),
            cls(r=3, offset=3, scales=True),
            cls(r=4, form="rotational"),
            cls(r=3, form="rotational", offset=4, scales=False),
        ]

    def _scales(self) -> bool:
        return self.form == "rotational" if self.scales is None else self.scales

    def _values(self, t: Tensors) -> Tensor:
        """s c."""
        return t["s"] * t["c"] if "c" in t else t["s"]

    def _core(self, t: Tensors) -> Tensor:
        """Q_u diag(s c) Q_v^T - diag(s): D in the coordinates of U and V."""
        with torch.autocast(t["U"].device.type, enabled=False):
            qu, qv = (Cayley().matrix(t[name], self.r) for name in ("theta_u", "theta_v"))
            return qu * self._values(t) @ qv.mT - torch.diag_embed(t["s"])
