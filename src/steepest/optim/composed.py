"""Any chain as an optimiser."""

from __future__ import annotations

from typing import Any, Unpack

from steepest.optim.engine import Optimizer
from steepest.optim.options import Shared, options
from steepest.transforms import Chain, Transform, chain


class Composed(Optimizer):
    """The optimiser of a chain of transforms that you put together yourself.

    Args:
        params: parameters, named parameters or groups; see `Optimizer`.
        transforms: one transform, or several in the order in which they act, or a chain; a group may have its own.
        lr: learning rate.
        shared: see `Shared`.

    >>> from steepest.norms import Max
    >>> from steepest.transforms import ClipNorm, Dualize, Momentum
    >>> layer = torch.nn.Linear(3, 2, bias=False)
    >>> signum = Composed(layer.parameters(), [ClipNorm(1.0), Momentum(0.9), Dualize(Max())], lr=1e-3)
    """

    def __init__(
        self,
        params: Any,
        transforms: Transform | Chain | list[Any],
        lr: float = 1e-3,
        **shared: Unpack[Shared],
    ) -> None:
        transforms = specs(transforms)
        super().__init__(params, options(locals()))

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As `Optimizer`; transforms of the group's own are written down as plain values."""
        if isinstance(param_group, dict) and "transforms" in param_group:
            param_group = {**param_group, "transforms": specs(param_group["transforms"])}
        super().add_param_group(param_group)

    def chain(self, group: dict[str, Any]) -> Chain:
        """The group's transforms."""
        return chain_of(group["transforms"])


def specs(transforms: Any) -> list[dict[str, Any]]:
    """One transform, several, or a chain, as plain values."""
    parts = transforms if isinstance(transforms, list | tuple) else [transforms]
    links = chain(*(t if isinstance(t, Transform | Chain) else Transform.from_spec(t) for t in parts)).links
    return [link.to_spec() for link in links]


def chain_of(values: list[dict[str, Any]]) -> Chain:
    """The chain that `specs` wrote down."""
    return chain(*(Transform.from_spec(spec) for spec in values))
