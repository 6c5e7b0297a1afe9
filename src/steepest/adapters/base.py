"""What an adapter is: a layer's weight W becomes (W + D) M, with few trained numbers in D and M."""

from __future__ import annotations

import abc
import dataclasses
import math
import zlib
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from steepest.manifolds.base import Manifold
from steepest.spec import Spec

Tensors = Mapping[str, Tensor]
"""The tensors of one adapter in one layer, trained and frozen, by their names."""
GRADIENT = "_steepest_gradient"
"""Attribute of a layer that holds the gradient of its weight, until an adapter takes it; and of a config that has been
calibrated in this process, and so has to find gradients, where one that was read from a file need not."""


@dataclasses.dataclass(frozen=True)
class Source:
    """What an adapter starts from: the layer that it adapts.

    Args:
        weight: W `(out, in)`, detached, in float64.
        gradient: of the loss with respect to W on some batches, in float64; None where nobody has computed one.
        seed: of all random numbers, another one for each layer.

    >>> from steepest.adapters import LOFT, Source
    >>> source = Source(torch.randn(6, 8).double(), seed=1)
    >>> adapter = LOFT(r=4)
    >>> t = adapter.bases(source)
    >>> t |= adapter.start(source, t)
    >>> bool((adapter.merge(t, source.weight) - source.weight).abs().max() < 1e-12)
    True
    """

    weight: Tensor
    gradient: Tensor | None = None
    seed: int = 0

    def normal(self, *shape: int, purpose: str = "") -> Tensor:
        """Standard normal numbers in float64 that depend on seed, shape and purpose alone; drawn on the CPU, so that
        they are the same on every device."""
        generator = torch.Generator().manual_seed(zlib.crc32(f"{self.seed} {purpose} {shape}".encode()))
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(self.weight.device)

    def kaiming(self, *shape: int, fan_in: int, purpose: str = "") -> Tensor:
        """Uniform numbers with the bound 1 / sqrt(fan_in), in float64: how PEFT starts LoRA's A."""
        normal = self.normal(*shape, purpose=purpose)
        return torch.special.erf(normal / math.sqrt(2)) / math.sqrt(fan_in)  # the distribution function: uniform


class Adapter(Spec, abc.ABC):
    """One parametrisation of a change of W `(out, in)`: W' = (W + D) M. A frozen dataclass; its fields are the options.

    The layer's output is never computed from W', but from its input: y = W (M x) + D (M x), where `turn` gives M x and
    `add` gives D (M x). So W may be quantised, sharded, or shared. Methods are pure functions of the tensors `t`, which
    are those that `start` and `bases` gave, on the device and in the dtype that the layer computes in; inputs are rows,
    `x (..., in)`.
    """

    trained: ClassVar[tuple[str, ...]]
    """Names of the trained tensors; options may leave some of them out."""
    frozen: ClassVar[tuple[str, ...]] = ()
    """Names of tensors that are computed once and kept as they are."""
    basis: ClassVar[str | None] = None
    """The frozen tensor, with orthonormal columns, from which `bases` can make the others; None if there is none."""
    mergeable: ClassVar[bool] = True
    """Whether the adapted layer is linear in its input."""

    @abc.abstractmethod
    def start(self, source: Source, bases: Tensors) -> dict[str, Tensor]:
        """The trained tensors, in float64, such that W' = W."""

    def bases(self, source: Source, basis: Tensor | None = None) -> dict[str, Tensor]:
        """The frozen tensors, in float64 where they are no indices; where `basis` is given, those that belong to it."""
        return {}

    def turn(self, t: Tensors, x: Tensor) -> Tensor:
        """M x for each row: x M^T."""
        return x

    def turn_back(self, t: Tensors, x: Tensor) -> Tensor:
        """M^T x for each row, which is x M; the inverse of `turn` where M is orthogonal."""
        return x

    def add(self, t: Tensors, x: Tensor) -> Tensor | None:
        """D x for each row, x D^T `(..., out)`; None where D = 0."""
        return None

    def shift(self, t: Tensors) -> Tensor | None:
        """D `(out, in)`; None where D = 0."""
        return None

    def orthogonal(self) -> bool:
        """Whether M is orthogonal and D = 0, so that W' has the singular values of W."""
        return False

    def points(self) -> dict[tuple[str, ...], Manifold]:
        """Which trained tensors are a point of which manifold; `steepest.param_groups` finds them there."""
        return {}

    def penalty(self, t: Tensors) -> Tensor | None:
        """What the method adds to the loss for this layer; None where it adds nothing."""
        return None

    def wants_gradient(self) -> bool:
        """Whether `bases` or `start` need `source.gradient`, which `steepest.adapters.calibrate` computes."""
        return False

    @abc.abstractmethod
    def count(self, out_features: int, in_features: int) -> int:
        """How many numbers are trained in a layer of that size: the formula, not the sum."""

    @classmethod
    @abc.abstractmethod
    def examples(cls) -> list[Adapter]:
        """Instances that the common suite checks; each has to fit a layer of 12 inputs and 10 outputs."""

    def merge(self, t: Tensors, weight: Tensor) -> Tensor:
        """W' = (W + D) M from W `(out, in)`."""
        d = self.shift(t)
        return self.turn_back(t, weight if d is None else weight + d)

    def unmerge(self, t: Tensors, weight: Tensor) -> Tensor:
        """W from W' `(out, in)`."""
        if type(self).turn is not Adapter.turn:
            weight = self._turned_back(t, weight)
        d = self.shift(t)
        return weight if d is None else weight - d

    def _turned_back(self, t: Tensors, weight: Tensor) -> Tensor:
        """W' M^-1: by the transpose of M, unless that is no inverse, as after steps that have left the manifold."""
        turned = self.turn(t, weight)
        error = torch.linalg.vector_norm(self.turn_back(t, turned) - weight)
        if self.orthogonal() and error <= 1e-5 * torch.linalg.vector_norm(weight):  # rounding of float32
            return turned
        identity = torch.eye(weight.shape[-1], dtype=weight.dtype, device=weight.device)
        return torch.linalg.solve(self.turn_back(t, identity), weight, left=False)


def check_choice(name: str, value: Any, known: Any) -> None:
    """Raise a ValueError that lists what an option can be, unless it is one of that."""
    if value not in known:
        raise ValueError(f"{name}: got {value!r}, expected one of {', '.join(map(repr, known))}")


def is_whole(value: Any, least: int = 1) -> bool:
    """Whether a number is whole, and not less than `least`; True and False are none."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def check_whole(name: str, value: Any, least: int = 1) -> None:
    """Raise a ValueError unless a number is whole, and not less than `least`."""
    if not is_whole(value, least):
        raise ValueError(f"{name}: got {value!r}, expected a whole number from {least} on")


def check_rank(name: str, value: Any, limit: int, of: str) -> None:
    """Raise a ValueError unless a rank is a whole number from 1 to `limit`."""
    if not is_whole(value) or value > limit:
        raise ValueError(f"{name}: got {value!r}, expected a whole number from 1 to {limit}, {of}")
