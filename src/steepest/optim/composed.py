"""Any chain as an optimiser."""

from __future__ import annotations

from typing import Any, ClassVar, Unpack

from steepest.optim.engine import Optimizer
from steepest.optim.options import Shared, options
from steepest.transforms import Chain, Transform, chain_of


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

    chains: ClassVar[tuple[str, ...]] = ("transforms",)

    def __init__(
        self,
        params: Any,
        transforms: Transform | Chain | list[Any],
        lr: float = 1e-3,
        **shared: Unpack[Shared],
    ) -> None:
        super().__init__(params, options(locals()))

    def chain(self, group: dict[str, Any]) -> Chain:
        """The group's transforms."""
        return chain_of(group["transforms"])
