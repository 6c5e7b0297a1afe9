"""The Hamiltonian method: minimise the norm of the gradient."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from steepest.solvers.base import Method, State
from steepest.solvers.conjugate_gradients import ConjugateGradients
from steepest.solvers.loop import named
from steepest.solvers.minmax.base import MinMaxMethod
from steepest.solvers.minmax.saddle import Saddle
from steepest.solvers.problem import Iterate


@dataclasses.dataclass(frozen=True)
class Hamiltonian(MinMaxMethod):
    """Minimise H(x, y) = |grad f(x, y)|^2 / 2 on the product of the manifolds, by any method of `minimize`.

    grad H = Hess f [grad f], with the Hessian of f in both points together. Where Hess f is nowhere singular (f may be
    linear in x and in y), H has no stationary points but those of f, and descends to them where descent in x and ascent
    in y go round in circles: it needs no step sizes, and converges linearly under the Polyak-Lojasiewicz condition,
    which holds for f strongly convex in x and strongly concave in y, or bilinear. It does not tell a saddle from a
    minimum or a maximum: elsewhere it ends at any stationary point of f, and where Hess f [grad f] = 0 it may end at
    one of H only. Under a metric that lets gradients vanish towards a boundary, as Fisher's does, it may run there:
    start it near the saddle.

    Args:
        inner: the method, or its name: "ConjugateGradients" (the authors' RHM-CG), "SteepestDescent" (RHM-SD), "LBFGS";
            those that take second derivatives of H take third ones of f.

    Han, Mishra, Jawanpuria and Gao 2023 (2204.11418), algorithm 1. Steps of a fixed length are `Consensus(weight=0)`.

    >>> from steepest.solvers import Hamiltonian, minmax
    >>> a = torch.tensor([[1.0, 2.0], [0.0, 1.0]])
    >>> result = minmax(lambda x, y: x @ a @ y, torch.ones(2), torch.ones(2), method=Hamiltonian("LBFGS"))
    >>> result.success, result.x.abs().max().item() < 1e-5
    (True, True)
    """

    inner: Method | str = dataclasses.field(default_factory=ConjugateGradients)

    energy: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "inner", named(Method, self.inner, "inner"))

    @property
    def _method(self) -> Method:
        assert isinstance(self.inner, Method)
        return self.inner

    @property
    def curvature(self) -> bool:
        """Of H: whether the inner method does."""
        return self._method.curvature

    def init(self, saddle: Saddle, at: Iterate) -> State:
        """That of the inner method."""
        return self._method.init(at)

    def step(self, saddle: Saddle, at: Iterate, state: State) -> tuple[Iterate, State]:
        """That of the inner method, on H."""
        return self._method.step(at, state)

    def fault(self, saddle: Saddle, at: Iterate) -> str:
        """That of the inner method, which must take derivatives."""
        if self._method.order == 0:
            return "needs an inner method that takes gradients: they cost little more than values of H"
        return self._method.fault(saddle.manifold, at.x)

    @classmethod
    def examples(cls) -> list[MinMaxMethod]:
        """Three methods of the first order."""
        return [cls(), cls("SteepestDescent"), cls("LBFGS")]
