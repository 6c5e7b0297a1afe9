"""Several manifolds side by side."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from steepest.manifolds.base import Manifold
from steepest.manifolds.euclidean import Euclidean
from steepest.manifolds.fixed_rank import FixedRank
from steepest.manifolds.spd import SPD
from steepest.manifolds.stiefel import Stiefel
from steepest.manifolds.tensors import Tensors, as_tuple


@dataclasses.dataclass(frozen=True)
class Product(Manifold):
    """Tuples of points, one of each factor, under the sum of the factors' metrics.

    The tensors of a point stand in one flat tuple, and so do the blocks of its coordinates. An optimiser may take the
    tensors one by one as well; as a product they are clipped by their joint norm and projected together.

    >>> from steepest import Stiefel, SPD
    >>> manifold = Product((Stiefel(), SPD()))
    >>> manifold.arity, manifold.blocks
    (2, ('0.skew', '0.horizontal', '1.h'))
    """

    factors: tuple[Manifold, ...]

    def __post_init__(self) -> None:
        if len(self.factors) < 2:
            raise ValueError(f"factors: expected a tuple of two manifolds or more, got {self.factors!r}")
        object.__setattr__(self, "factors", tuple(Manifold.from_spec(f) for f in self.factors))

    @property
    def arity(self) -> int:
        """Sum of the factors' arities."""
        return sum(f.arity for f in self.factors)

    @property
    def blocks(self) -> tuple[str, ...]:
        """The factors' blocks, with the factor's number in front."""
        return tuple(f"{i}.{name}" for i, f in enumerate(self.factors) for name in f.blocks)

    @property
    def block_ndims(self) -> tuple[int, ...]:
        """The factors', in turn."""
        return tuple(n for f in self.factors for n in f.block_ndims)

    @property
    def owners(self) -> tuple[int, ...]:
        """The factors', in turn."""
        starts = _starts([f.arity for f in self.factors])
        return tuple(start + o for start, f in zip(starts, self.factors, strict=True) for o in f.owners)

    def frame(self, x: tuple[Tensor, ...]) -> tuple[Any, ...]:
        """The factors' frames."""
        return tuple(f.frame(part) for f, part in zip(self.factors, self._points(x), strict=True))

    def _push(self, f: Any, h: Any) -> Any:
        return self._each("_push", f, self._coordinates(h))

    def _pull(self, f: Any, g: Any) -> Any:
        return self._each("_pull", f, self._points(g))

    def _coords(self, f: Any, v: Any) -> Any:
        return self._each("_coords", f, self._points(v))

    def _conform(self, f: Any, h: Any) -> Any:
        return self._each("_conform", f, self._coordinates(h))

    def _leave(self, f: Any) -> Any:
        return tuple(m._leave(part) for m, part in zip(self.factors, f, strict=True))

    def _carry(self, f: Any, to: Any, h: Any) -> Any:
        return self._each("_carry", f, to, self._coordinates(h))

    def _move(self, f: Any, h: Any) -> Any:
        return self._each("_move", f, self._coordinates(h))

    def _decay(self, f: Any, h: Any, rate: float) -> Any:
        return self._each("_decay", f, self._coordinates(h), [rate] * len(self.factors))

    def represent(self, x: Any) -> Any:
        """What each factor's point stands for."""
        return self._each("represent", self._points(x))

    def project(self, x: Any) -> Any:
        """Each factor's projection."""
        return self._each("project", self._points(x))

    def residual(self, x: Any) -> Tensor:
        """The largest of the factors' residuals."""
        parts = [m.residual(p) for m, p in zip(self.factors, self._points(x), strict=True)]
        worst = parts[0]
        for part in parts[1:]:
            worst = worst.maximum(part)
        return worst

    def random_point(self, shape: Any, **kwargs: Any) -> Any:
        """A random point of each factor."""
        shapes = _regroup(shape, [m.arity for m in self.factors])
        return _flat(m.random_point(s, **kwargs) for m, s in zip(self.factors, shapes, strict=True))

    def shape_error(self, x: Any) -> str:
        """The first factor's that is wrong."""
        for i, (m, part) in enumerate(zip(self.factors, self._points(x), strict=True)):
            if fault := m.shape_error(part):
                return f"factor {i}: {fault}"
        return ""

    @property
    def point_ndims(self) -> tuple[int, ...]:
        """The factors', in turn."""
        return tuple(n for f in self.factors for n in f.point_ndims)

    @property
    def scalars(self) -> tuple[str, ...]:
        """What all factors may have."""
        return tuple(s for s in ("real", "complex") if all(s in f.scalars for f in self.factors))

    @property
    def parallel(self) -> bool:
        """Whether all factors' transports are parallel."""
        return all(f.parallel for f in self.factors)

    @property
    def closed(self) -> frozenset[str]:
        """What all factors have formulas for; the mean always comes from the shared routine."""
        return frozenset.intersection(*(f.closed for f in self.factors))

    def exp(self, x: Any, v: Any) -> Any:
        """The factors'."""
        return self._each("exp", self._points(x), self._points(v))

    def log(self, x: Any, y: Any) -> Any:
        """The factors'."""
        return self._each("log", self._points(x), self._points(y))

    def dist(self, x: Any, y: Any) -> Tensor:
        """Root of the summed squares of the factors' distances, shape `(*b,)`."""
        parts = self._each("dist", self._points(x), self._points(y))
        return torch.linalg.vector_norm(torch.stack(parts), dim=0)

    def transport(self, x: Any, y: Any, v: Any) -> Any:
        """The factors'."""
        return self._each("transport", self._points(x), self._points(y), self._points(v))

    def hessian(self, x: Any, g: Any, gv: Any, v: Any) -> Any:
        """The factors'; `gv` holds what couples them."""
        return self._each("hessian", *(self._points(t) for t in (x, g, gv, v)))

    def dim(self, shape: Any, scalars: str = "real") -> int:
        """Sum of the factors'."""
        shapes = _regroup(shape, [m.arity for m in self.factors])
        return sum(m.dim(s, scalars) for m, s in zip(self.factors, shapes, strict=True))

    @classmethod
    def examples(cls) -> list[tuple[Manifold, Any]]:
        """Factors with one and with two tensors, one and two blocks."""
        return [
            (cls((Stiefel(), SPD())), ((5, 2), (3, 3))),
            (cls((FixedRank(), Stiefel("canonical"), Euclidean(1))), ((4, 2), (2, 3), (4, 2), (5,))),
        ]

    def _points(self, x: tuple[Tensor, ...]) -> list[Any]:
        return _regroup(x, [m.arity for m in self.factors])

    def _coordinates(self, h: tuple[Tensor, ...]) -> list[Any]:
        return _regroup(h, [len(m.blocks) for m in self.factors])

    def _each(self, method: str, *arguments: Sequence[Any]) -> tuple[Tensor, ...]:
        functions: list[Callable[..., Tensors]] = [getattr(m, method) for m in self.factors]
        return _flat(call(*parts) for call, *parts in zip(functions, *arguments, strict=True))


def _starts(sizes: list[int]) -> list[int]:
    return [sum(sizes[:i]) for i in range(len(sizes))]


def _regroup(x: Sequence[Any], sizes: list[int]) -> list[Any]:
    """Cut a flat tuple into the factors' parts; a part of one tensor is the bare tensor."""
    cuts = zip(_starts(sizes), sizes, strict=True)
    return [x[start] if size == 1 else tuple(x[start : start + size]) for start, size in cuts]


def _flat(parts: Any) -> tuple[Tensor, ...]:
    return tuple(t for part in parts for t in as_tuple(part))
