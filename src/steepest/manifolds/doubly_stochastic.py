"""Positive matrices with given row and column sums."""

from __future__ import annotations

import abc
import dataclasses
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from steepest.linalg.sinkhorn import SumSolver, sinkhorn, sum_solver
from steepest.linalg.symmetric import sym
from steepest.manifolds.base import Manifold
from steepest.spec import tensor_field


class Frame(NamedTuple):
    """The point, the entrywise root of it, and the solver for the multipliers of its sums."""

    x: Tensor
    root: Tensor
    solve: SumSolver


class _FixedSums(Manifold):
    """What the two manifolds share: X is positive, and its sums are given; the metric is Fisher's, sum U V / X.

    In coordinates k = V / sqrt X the metric is flat, and the sums of sqrt X k must vanish.
    """

    @abc.abstractmethod
    def _sums(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Row and column sums of a point, as tensors like x."""

    @abc.abstractmethod
    def _centred(self, f: Frame, h: Tensor) -> Tensor:
        """The orthogonal projection onto coordinates whose tangent vector has zero sums."""

    def frame(self, x: Tensor) -> Frame:
        """The root and the factorised equation of the multipliers."""
        return Frame(x, x.sqrt(), sum_solver(x))

    def _push(self, f: Frame, h: Tensor) -> Tensor:
        return f.root * self._centred(f, h)

    def _pull(self, f: Frame, g: Tensor) -> Tensor:
        return self._centred(f, f.root * g)

    def _coords(self, f: Frame, v: Tensor) -> Tensor:
        return self._centred(f, v / f.root)

    def _conform(self, f: Frame, h: Tensor) -> Tensor:
        return self._centred(f, h)

    def _move(self, f: Frame, h: Tensor) -> Tensor:
        return self._scaled(f.x.log() + self._centred(f, h) / f.root)

    def _scaled(self, logits: Tensor) -> Tensor:
        x = sinkhorn(logits, *self._sums(logits))
        # a long step would make an entry zero, which no later one could leave; eps^2 does not show in the sums
        return torch.maximum(x, torch.finfo(x.dtype).eps ** 2 * x.amax((-2, -1), keepdim=True))

    def project(self, x: Tensor) -> Tensor:
        """Entries raised to at least `eps` times the largest, then rows and columns scaled to their sums: the nearest
        point in relative entropy, not in the Frobenius norm."""
        floor = torch.finfo(x.dtype).eps * x.amax((-2, -1), keepdim=True)
        return self._scaled(torch.maximum(x, floor).log())

    def residual(self, x: Tensor) -> Tensor:
        """Largest relative error of a sum; infinite where an entry is not positive."""
        rows, columns = self._sums(x)
        error = torch.maximum((x.sum(-1) / rows - 1).abs().amax(-1), (x.sum(-2) / columns - 1).abs().amax(-1))
        return torch.where((x > 0).all(-1).all(-1), error, torch.where(x.isnan().any(-1).any(-1), torch.nan, torch.inf))

    def random_point(self, shape: tuple[int, ...], *, generator: Any = None, **kwargs: Any) -> Tensor:
        """Independent exponential entries plus a twentieth, scaled to the sums."""
        return self._scaled((0.05 - torch.log1p(-torch.rand(shape, generator=generator, **kwargs))).log())


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class DoublyStochastic(_FixedSums):
    """Positive matrices X `(*b, m, n)` with given row and column sums: transport plans, relaxed permutations.

    The metric is Fisher's, sum U V / X. With Pi the orthogonal projection onto the coordinates k for which sqrt X * k
    has zero row and column sums, `push(X, h) = sqrt X * Pi h`; it costs one Cholesky factorisation of size n. The
    retraction is X * exp(V / X), scaled to the sums (`steepest.linalg.sinkhorn`).

    Args:
        rows: row sums, positive, `(m,)`; None: ones.
        columns: column sums, positive, `(n,)`, of the same total; None: equal ones.

    Douik and Hassibi 2018 (1802.02628), section III; Shi, Gao, Hong, Choy and Wang 2021 (coupling matrices).

    >>> x = DoublyStochastic().random_point((3, 3))
    >>> [round(s, 4) for s in x.sum(0).tolist()]
    [1.0, 1.0, 1.0]
    """

    rows: Any = None
    columns: Any = None

    def __post_init__(self) -> None:
        for name in ("rows", "columns"):
            _check_sums(name, tensor_field(self, name))
        if self.rows is not None and self.columns is not None:
            totals = self.rows.sum().item(), self.columns.sum().item()
            if not math.isclose(*totals, rel_tol=1e-6):
                raise ValueError(f"columns: they sum to {totals[1]:g}, expected the total of rows, {totals[0]:g}")

    def _sums(self, x: Tensor) -> tuple[Tensor, Tensor]:
        m, n = x.shape[-2:]
        if self.rows is not None:
            rows = self.rows.to(x)
            total = rows.sum()
        else:
            total = self.columns.to(x).sum() if self.columns is not None else x.new_tensor(float(m))
            rows = (total / m).expand(m)
        columns = self.columns.to(x) if self.columns is not None else (total / n).expand(n)
        return rows, columns

    def _centred(self, f: Frame, h: Tensor) -> Tensor:
        weighted = f.root * h
        a, b = f.solve(weighted.sum(-1), weighted.sum(-2))
        return h - f.root * (a.unsqueeze(-1) + b.unsqueeze(-2))

    def shape_error(self, x: Tensor) -> str:
        """Matrices of the sizes of the sums."""
        if x.ndim < 2:
            return f"shape {tuple(x.shape)} is not (..., m, n)"
        for name, sums, size in (("rows", self.rows, x.shape[-2]), ("columns", self.columns, x.shape[-1])):
            if sums is not None and sums.shape[-1] != size:
                return f"shape {tuple(x.shape)} does not fit the {sums.shape[-1]} {name} of the manifold"
        return ""

    def dim(self, shape: tuple[int, ...], scalars: str = "real") -> int:
        """(m - 1) (n - 1)."""
        return (shape[-2] - 1) * (shape[-1] - 1)

    @classmethod
    def examples(cls) -> list[tuple[Manifold, Any]]:
        """Square, rectangular with sums of its own, a single entry."""
        return [(cls(), (4, 4)), (cls([0.2, 0.5, 0.3], [0.6, 0.4]), (3, 2)), (cls(), (2, 5)), (cls(), (1, 1))]


@dataclasses.dataclass(frozen=True)
class SymmetricDoublyStochastic(_FixedSums):
    """Symmetric positive matrices X `(*b, n, n)` whose rows, and so columns, sum to one: similarities, graph weights.

    As `DoublyStochastic`, with symmetric coordinates: `push(X, h) = sqrt X * (sym(h) - sqrt X * (a 1^T + 1 a^T))` with
    a such that the sums vanish.

    Douik and Hassibi 2018 (1802.02628), section IV.

    >>> x = SymmetricDoublyStochastic().random_point((3, 3))
    >>> bool(SymmetricDoublyStochastic().residual(x) < 1e-5)
    True
    """

    def _sums(self, x: Tensor) -> tuple[Tensor, Tensor]:
        ones = torch.ones_like(x[..., 0, :])
        return ones, ones

    def _centred(self, f: Frame, h: Tensor) -> Tensor:
        h = sym(h)
        sums = (f.root * h).sum(-1)
        a, b = f.solve(sums, sums)
        half = (a + b) / 2  # the solution is a = b, up to a constant that is added to one and taken from the other
        return h - f.root * (half.unsqueeze(-1) + half.unsqueeze(-2))

    def _scaled(self, logits: Tensor) -> Tensor:
        return sym(super()._scaled(sym(logits)))

    def residual(self, x: Tensor) -> Tensor:
        """Largest relative error of a sum, or asymmetry; infinite where an entry is not positive."""
        return torch.maximum(super().residual(x), (x - x.mT).abs().amax((-2, -1)))

    def shape_error(self, x: Tensor) -> str:
        """Square matrices."""
        square = x.ndim >= 2 and x.shape[-2] == x.shape[-1]
        return "" if square else f"shape {tuple(x.shape)} is not (..., n, n): a symmetric matrix is square"

    def dim(self, shape: tuple[int, ...], scalars: str = "real") -> int:
        """n (n - 1) / 2."""
        return shape[-1] * (shape[-1] - 1) // 2

    @classmethod
    def examples(cls) -> list[tuple[Manifold, Any]]:
        """Two sizes, a single entry."""
        return [(cls(), (4, 4)), (cls(), (2, 2)), (cls(), (1, 1))]


def _check_sums(name: str, sums: Tensor | None) -> None:
    if sums is not None and (sums.ndim != 1 or not bool((sums > 0).all() and sums.isfinite().all())):
        raise ValueError(f"{name}: expected a vector of positive sums, got {sums}")
