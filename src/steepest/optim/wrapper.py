"""What wraps an optimiser: all that it does not do itself is the optimiser's."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from steepest.linalg.precision import widen
from steepest.manifolds.base import Manifold
from steepest.manifolds.euclidean import Euclidean
from steepest.manifolds.tensors import as_tuple, like
from steepest.optim.constrain import Constraint
from steepest.optim.engine import Optimizer
from steepest.optim.point import Point


class Wrapper(torch.optim.Optimizer, abc.ABC):
    """An optimiser around another, of this package or of torch: with its groups, its state and its hooks, so that
    schedulers, and all else that takes an optimiser, work on either.

    A subclass gives `step`, and `_own` and `_load_own` for what it remembers.
    """

    name = ""
    """Of what a subclass remembers, in the state dictionary."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(f"optimizer: got {type(optimizer).__name__}, expected an optimiser of steepest or of torch")
        self.optimizer = optimizer

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The optimiser's."""
        return self.optimizer.param_groups

    @property
    def state(self) -> Any:
        """The optimiser's; what the wrapper remembers is in `state_dict()` alone."""
        return self.optimizer.state

    @property
    def defaults(self) -> dict[str, Any]:
        """The optimiser's."""
        return self.optimizer.defaults

    def __getattr__(self, name: str) -> Any:
        if name == "optimizer" or (name.startswith("__") and name.endswith("__")):
            raise AttributeError(name)  # while it is being copied or unpickled
        return getattr(self.optimizer, name)

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "step"}  # which schedulers replace by one that counts

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def __repr__(self) -> str:
        return f"{type(self).__name__} around {self.optimizer!r}"

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the optimiser."""
        self.optimizer.add_param_group(param_group)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients."""
        self.optimizer.zero_grad(set_to_none)

    # Checkpoints. -----------------------------------------------------------------------------------------------------

    @abc.abstractmethod
    def _own(self) -> dict[str, Any]:
        """What it remembers: numbers, strings, and lists of tensors or None in the order of the parameters."""

    @abc.abstractmethod
    def _load_own(self, state: dict[str, Any]) -> None:
        """Restore that."""

    def state_dict(self) -> dict[str, Any]:
        """The optimiser's, with what the wrapper remembers."""
        return {**self.optimizer.state_dict(), self.name: self._own()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore both."""
        state = dict(state_dict)
        own = state.pop(self.name, None)
        if own is None:
            raise ValueError(
                f"state_dict: has no {self.name!r}, expected the state of a {type(self).__name__}; that of the bare "
                "optimiser goes into `.optimizer.load_state_dict`."
            )
        self.optimizer.load_state_dict(state)
        self._load_own(own)

    # What subclasses work with. ---------------------------------------------------------------------------------------

    def _params(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    def _points(self) -> list[Point]:
        """All points; torch's optimisers know of no manifold."""
        if isinstance(self.optimizer, Optimizer):
            return [point for group in self.param_groups for point in self.optimizer._points(group)]
        return [Point((p,), ("parameter",), Constraint(Euclidean(p.ndim), (None,), {})) for p in self._params()]

    def _listed(self, kept: dict[Tensor, Tensor]) -> list[Tensor | None]:
        return [kept.get(p) for p in self._params()]

    def _unlisted(self, listed: list[Tensor | None], name: str) -> dict[Tensor, Tensor]:
        params = self._params()
        if len(listed) != len(params):
            raise ValueError(f"state_dict: {name} has {len(listed)} tensors, expected one for each of {len(params)}")
        pairs = zip(params, listed, strict=True)
        return {p: t.detach().to(p.device, copy=True) for p, t in pairs if t is not None}


def grads_of(params: Sequence[Tensor]) -> dict[Tensor, Tensor]:
    """Gradients, in tensors of their own, at least in float32."""
    return {p: widen(p.grad.detach().clone()) for p in params if p.grad is not None}


def covector(manifold: Manifold, f: Any, h: Any, like_x: Any) -> Any:
    """The Euclidean gradient g with `_pull(f, g) == _conform(f, h)`, packed as the point is.

    The adjoint of `_coords`: it is linear, and `_coords(_push(h))` is `_conform(h)`, of which this is the transpose. So
    whatever has been computed in coordinates can be handed to an optimiser as a gradient.
    """
    with torch.enable_grad():
        v = [torch.zeros_like(t, requires_grad=True) for t in as_tuple(like_x)]
        found = as_tuple(manifold._coords(f, like(like_x, v)))
        return like(like_x, torch.autograd.grad(found, v, as_tuple(h), materialize_grads=True))
