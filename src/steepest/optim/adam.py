"""Adam and its variants."""

from __future__ import annotations

from typing import Any, Unpack

from steepest.optim.engine import Optimizer
from steepest.optim.options import Shared, options
from steepest.transforms import AdamScale, Chain, WeightDecay, chain


class Adam(Optimizer):
    """Adam; torch.optim.Adam on plain parameters, and on a manifold the same in the coordinates of its frame.

    Args:
        params: parameters, named parameters or groups; see `Optimizer`.
        lr: learning rate.
        betas: factors of the averages of the gradient and of its squared entries.
        eps: added to the root of the latter.
        weight_decay: added to the gradient times the parameter (L2); for the decoupled kind see `AdamW`.
        shared: see `Shared`.

    Kingma and Ba 2015 (1412.6980). Becigneul and Ganea 2019 (1810.00760) for manifolds, there with one second moment to
    a point; here each coordinate has its own.

    >>> x = torch.nn.Parameter(torch.ones(2))
    >>> optimizer = Adam([x], lr=0.1)
    >>> (x**2).sum().backward(); optimizer.step(); [round(v, 3) for v in x.tolist()]
    [0.9, 0.9]
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        **shared: Unpack[Shared],
    ) -> None:
        super().__init__(params, options(locals()))

    def chain(self, group: dict[str, Any]) -> Chain:
        """Decay into the gradient, then Adam."""
        return chain(WeightDecay(group["weight_decay"]), AdamScale(tuple(group["betas"]), group["eps"]))


class AdamW(Optimizer):
    """Adam with decoupled weight decay; torch.optim.AdamW on plain parameters.

    Args: as `Adam`, but that `weight_decay` shrinks the parameter itself at every step by the factor
    1 - lr * weight_decay (what that means on a manifold says `WeightDecay`).

    Loshchilov and Hutter 2019 (1711.05101).

    >>> optimizer = AdamW(torch.nn.Linear(2, 2).parameters(), lr=1e-3, weight_decay=0.1)
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        **shared: Unpack[Shared],
    ) -> None:
        super().__init__(params, options(locals()))

    def chain(self, group: dict[str, Any]) -> Chain:
        """Adam, then decay of the parameter itself."""
        return chain(AdamScale(tuple(group["betas"]), group["eps"]), WeightDecay(group["weight_decay"]))


class AMSGrad(Optimizer):
    """Adam whose second moment never decreases; torch.optim.Adam(amsgrad=True) on plain parameters.

    Args: as `Adam`.

    Reddi, Kale and Kumar 2018 (1904.09237).

    >>> optimizer = AMSGrad(torch.nn.Linear(2, 2).parameters(), lr=1e-3)
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        **shared: Unpack[Shared],
    ) -> None:
        super().__init__(params, options(locals()))

    def chain(self, group: dict[str, Any]) -> Chain:
        """Decay into the gradient, then Adam with the largest second moment so far."""
        scale = AdamScale(tuple(group["betas"]), group["eps"], amsgrad=True)
        return chain(WeightDecay(group["weight_decay"]), scale)
