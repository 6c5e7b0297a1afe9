"""Any chain as an optimiser."""

from __future__ import annotations

from typing import Any

from steepest.optim.engine import Optimizer, options
from steepest.transforms import Chain, Transform, chain


class Composed(Optimizer):
    """The optimiser of a chain of transforms that you put together yourself.

    Args:
        params: parameters, named parameters or groups; see `Optimizer`.
        transforms: one transform, or several in the order in which they act, or a chain; a group may have its own.
        lr: learning rate.
        maximize: ascend.
        nonfinite: "raise", "skip" or "ignore" for gradients with NaN or infinite entries.
        compile: compile the step of matrices and points; see `Optimizer`.

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
        *,
        maximize: bool = False,
        nonfinite: str = "raise",
        compile: bool = False,
    ) -> None:
        transforms = _specs(transforms)
        super().__init__(params, options(locals()))

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As `Optimizer`; transforms of the group's own are written down as plain values."""
        if isinstance(param_group, dict) and "transforms" in param_group:
            param_group = {**param_group, "transforms": _specs(param_group["transforms"])}
        super().add_param_group(param_group)

    def chain(self, group: dict[str, Any]) -> Chain:
        """The group's transforms."""
        return chain(*(Transform.from_spec(spec) for spec in group["transforms"]))


def _specs(transforms: Any) -> list[dict[str, Any]]:
    parts = transforms if isinstance(transforms, list | tuple) else [transforms]
    links = chain(*(t if isinstance(t, Transform | Chain) else Transform.from_spec(t) for t in parts)).links
    return [link.to_spec() for link in links]
