"""A second loss, as far as it leaves the first one alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from steepest.checks import check_range
from steepest.manifolds.euclidean import Euclidean
from steepest.manifolds.tensors import as_tuple, each
from steepest.optim.point import Point
from steepest.optim.wrapper import Wrapper, covector, grads_of


class Bloop(Wrapper):
    """An optimiser of a main loss that also lowers an auxiliary one, in directions orthogonal to the main gradient.

    The optimiser is given g_main + `weight` (g_aux - <g_aux, m> / <m, m> m), with the running mean m of g_main, which a
    single mini-batch tells too little of. Points at which it ends are stationary for the main loss, and of those the
    auxiliary loss chooses. On manifolds inner products are Riemannian, those of all parameters summed, and m is carried
    along with the points, as momentum is. Of torch's own optimisers, which know of no manifold, they are plain.

    Where a gradient of the main loss is not finite, the mean is left as it was.

    Args:
        optimizer: any, with its parameters. It stays reachable as `.optimizer`; schedulers may be put on either.
        weight: of the auxiliary gradient.
        ema: how much of the new gradient the mean takes; 1 is plain projection. It begins with the first gradient.

    Hsieh, Thornton, Ndiaye, Klein, Cuturi and Ablin 2024, "Careful with that scalpel: improving gradient surgery with
    an EMA" (2402.02998), algorithm 1, with the defaults of their code, but for an absolute 1e-7 in its denominator.

    >>> x = torch.nn.Parameter(torch.tensor([1.0, 1.0]))
    >>> optimizer = Bloop(SGD([x], lr=0.5), weight=1.0)
    >>> losses = optimizer.step(lambda: (x[0] ** 2 / 2, ((x - 3) ** 2).sum() / 2))
    >>> x.tolist()
    [0.5, 2.0]
    """

    name = "bloop"

    def __init__(self, optimizer: torch.optim.Optimizer, weight: float = 0.1, ema: float = 0.1) -> None:
        super().__init__(optimizer)
        check_range("weight", weight)
        check_range("ema", ema, 0, 1, open_low=True)
        self.weight, self.ema = weight, ema
        self._mean: dict[Tensor, Tensor] = {}

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step.

        Args:
            closure: computes and returns the main and the auxiliary loss, as tensors, and calls no `backward`.

        Returns:
            What the closure returned.
        """
        if closure is None:
            raise TypeError("closure: got None, expected a function that returns the main and the auxiliary loss")
        with torch.enable_grad():
            main, auxiliary = losses = closure()
        grads, second = (self._gradients(loss, loss is main) for loss in (main, auxiliary))
        with torch.no_grad():
            points = [p for p in self._points() if any(t in grads or t in second for t in p.params)]
            for p in (p for point in points for p in point.params):
                for kept in (grads, second):
                    kept.setdefault(p, torch.zeros_like(next((k[p] for k in (grads, second) if p in k), p)))
            self._remember(grads)
            share = self._share(points, second)
            for p, g in grads.items():
                p.grad = (g + self.weight * (second[p] - share * self._mean[p])).to(p.dtype)
            left = [(point, self._leaving(point)) for point in points]
            self.optimizer.step()
            for point, leaving in left:
                self._follow(point, leaving)
        return losses

    def _gradients(self, loss: Tensor, retain: bool) -> dict[Tensor, Tensor]:
        self.zero_grad()
        loss.backward(retain_graph=retain)
        return grads_of(self._params())

    def _remember(self, grads: dict[Tensor, Tensor]) -> None:
        """The running mean, unless something is not finite."""
        if not grads:
            return
        finite = torch.stack([g.isfinite().all() for g in grads.values()]).all()
        for p, g in grads.items():
            old = self._mean.get(p)
            fresh = g if old is None else old + self.ema * (g - old)
            self._mean[p] = torch.where(finite, fresh, torch.zeros_like(g) if old is None else old)

    def _share(self, points: list[Point], second: dict[Tensor, Tensor]) -> Tensor | float:
        """<g_aux, m> / <m, m>."""
        inner = [self._inner(point, second) for point in points]
        top, square = sum(a for a, _ in inner), sum(b for _, b in inner)
        return torch.where(square > 0, top / square, 0) if isinstance(square, Tensor) else 0.0

    def _inner(self, point: Point, second: dict[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        h, m = (self._pulled(point, kept) for kept in (second, self._mean))
        pairs = list(zip(h, m, strict=True))
        dots = torch.stack([(a.conj() * b).real.sum() for a, b in pairs]).sum()
        return dots, torch.stack([b.abs().square().sum() for _, b in pairs]).sum()

    def _pulled(self, point: Point, kept: dict[Tensor, Tensor]) -> tuple[Tensor, ...]:
        """Coordinates of a Euclidean gradient."""
        grads = [kept[p] for p in point.params]
        manifold = point.constraint.manifold
        if isinstance(manifold, Euclidean):
            return tuple(grads)
        return as_tuple(manifold.pull(point.value(), point.constraint.point(grads)))

    def _leaving(self, point: Point) -> Any:
        """The frame, and the mean in it; of plain parameters nothing."""
        manifold = point.constraint.manifold
        if isinstance(manifold, Euclidean):
            return None
        f = manifold.frame(each(torch.clone, point.value()))
        return f, manifold._pull(f, point.constraint.point([self._mean[p] for p in point.params]))

    def _follow(self, point: Point, leaving: Any) -> None:
        """The mean as a Euclidean gradient at the new point."""
        if leaving is None:
            return
        (f, h), manifold, x = leaving, point.constraint.manifold, point.value()
        to = manifold.frame(x)
        means = [self._mean[p] for p in point.params]
        point.constraint.write(means, covector(manifold, to, manifold._carry(f, to, h), x))

    # Checkpoints. -----------------------------------------------------------------------------------------------------

    def _own(self) -> dict[str, Any]:
        return {"mean": self._listed(self._mean)}

    def _load_own(self, state: dict[str, Any]) -> None:
        self._mean = self._unlisted(state["mean"], "mean")
