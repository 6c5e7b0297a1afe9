"""Adafactor."""

from __future__ import annotations

from typing import Any, Unpack

from steepest.optim.engine import Optimizer
from steepest.optim.options import Shared, options
from steepest.transforms import Chain, ClipRMS, FactoredScale, ParameterScale, WeightDecay, chain


class Adafactor(Optimizer):
    """Adam without momentum, whose second moment is kept as sums of rows and of columns, in steps relative to the
    parameter's size; torch.optim.Adafactor on plain matrices and vectors.

    Args:
        params: parameters, named parameters or groups; see `Optimizer`.
        lr: largest relative length of a step; at step t it is min(lr, 1/sqrt(t)).
        beta2_decay: the second moment forgets by the factor 1 - t^beta2_decay.
        eps: bound of the second moment from below, None for the precision of what it is computed in, and of the
            parameter's size.
        d: largest root mean square of a step before it is scaled.
        weight_decay: decoupled decay.
        shared: see `Shared`.

    Shazeer and Stern 2018 (1804.04235), with the learning rate and the eps of torch.optim.Adafactor. Unlike there,
    bfloat16 parameters are computed with in float32, whose precision eps is then, parameters of three axes and more
    are matrices whose rows the first axis counts, and complex ones are taken. A step on a manifold has the same length
    as if the point's size were one.

    >>> layer = torch.nn.Linear(200, 100)
    >>> optimizer = Adafactor(layer.parameters())
    >>> layer(torch.ones(200)).sum().backward(); optimizer.step()
    >>> sum(s.numel() for s in optimizer.state[layer.weight].values())
    301
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-2,
        beta2_decay: float = -0.8,
        eps: tuple[float | None, float] = (None, 1e-3),
        d: float = 1.0,
        weight_decay: float = 0.0,
        **shared: Unpack[Shared],
    ) -> None:
        super().__init__(params, options(locals()))

    def chain(self, group: dict[str, Any]) -> Chain:
        """The second moment's division, clipped, relative to the parameter; decay."""
        eps, least = group["eps"]
        scales = FactoredScale(-group["beta2_decay"], eps), ClipRMS(group["d"]), ParameterScale(least, capped=True)
        return chain(*scales, WeightDecay(group["weight_decay"]))
