"""One attention head's subspace for all of them."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

from torch import Tensor

from steepest.checks import check_range
from steepest.projectors.base import Moment, Projector, State
from steepest.projectors.power import Power
from steepest.projectors.principal import Principal


@dataclasses.dataclass(frozen=True)
class OneHead(Projector):
    """The subspace that `projector` finds for the rows of one head, another one at each move, serves all heads of a
    matrix whose rows are those of `heads` heads, one head after the other. That is `heads` times cheaper to find. Where
    a head has fewer rows than the subspace has dimensions, as few neighbours as have enough are asked.

    A matrix whose number of rows is no multiple of `heads`, as when it is projected on the other side, is asked whole.
    Schedules are the projector's; `every` and `spread` of this one say nothing.

    Liao et al. 2024, "GaLore+" (2412.19820), "cross-head low-rank projection"; which head is asked the abstract does
    not say.

    >>> optimizer = GaLore(param_groups(torch.nn.Linear(8, 8)), projector=OneHead(projector=Power(), heads=4))
    """

    projector: Projector = Power()  # noqa: RUF009  (a frozen value)
    heads: int = 1

    needs_momentum: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "projector", Projector.from_spec(self.projector))
        check_range("heads", self.heads, 1)
        if self.projector.needs_momentum:
            raise ValueError(f"projector: {type(self.projector).__name__} compares with the momentum of all rows")

    @property
    def orthonormal(self) -> bool:
        """As the projector's."""
        return self.projector.orthonormal

    def age(self, at: Moment) -> int:
        """As the projector's."""
        return self.projector.age(at)

    def init(self, x: Tensor, rank: int) -> State:
        """The projector's."""
        return self.projector.init(x, rank)

    def basis(self, x: Tensor, rank: int, state: State, at: Moment) -> Tensor:
        """The projector's."""
        return self.projector.basis(x, rank, state, at)

    def before(self, x: Tensor, rank: int, state: State, at: Moment) -> State | None:
        """The projector's, of one head."""
        return self.projector.before(self._head(x, rank, at), rank, state, at)

    def after(self, x: Tensor, low: Tensor, state: State, at: Moment) -> State | None:
        """The projector's, of one head."""
        rank = low.shape[-1]
        return self.projector.after(self._head(x, rank, at), self._head(low, rank, at), state, at)

    def _head(self, x: Tensor, rank: int, at: Moment) -> Tensor:
        rows = x.shape[-2]
        if rows % self.heads:
            return x
        asked = math.ceil(rank * self.heads / rows)
        size = asked * rows // self.heads
        return x.narrow(-2, self.projector.epoch(at) % (self.heads // asked) * size, size)

    @classmethod
    def examples(cls) -> list[Projector]:
        """One head, two, and heads of fewer rows than any subspace has dimensions."""
        every_second = Power(every=2, spread=False), Principal(every=2, spread=False)
        return [cls(), *(cls(projector=p, heads=heads) for p, heads in zip(every_second, (2, 6), strict=True))]
