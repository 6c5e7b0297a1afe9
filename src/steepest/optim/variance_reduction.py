"""Gradients of mini-batches without most of their variance, for any optimiser."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from steepest.checks import check_range
from steepest.manifolds.euclidean import Euclidean
from steepest.optim.point import Point
from steepest.optim.wrapper import Wrapper, covector, grads_of

KINDS = ("svrg", "srg", "storm")


class VarianceReduced(Wrapper):
    """An optimiser that is given, in place of the gradient of a mini-batch at x, one corrected by the same mini-batch's
    gradient at another point.

    | `kind` | |
    |---|---|
    | "svrg" | g_B(x) - g_B(a) + g(a) with the anchor a, where `anchor` has computed the full gradient g(a) |
    | "srg" | v = g_B(x) - g_B(y) + v(y) with the point y before the last step; `anchor` makes v the full gradient |
    | "storm" | v = g_B(x) - (1 - `mixing`) (g_B(y) - v(y)); needs no anchor |

    Each step computes two gradients, and two more copies of the parameters are kept. On a manifold what belongs to the
    other point is pulled back there, carried to x as momentum is, and handed to the optimiser as the Euclidean gradient
    that has these coordinates at x: the corrected gradient is the Riemannian one. Torch's own optimisers know of no
    manifold, and get plain differences.

    Both calls of the closure see the same numbers of torch's generators (dropout, say). What else changes with a
    forward pass, as batch normalisation's means do, changes twice.

    A correction that is not finite is left out, and does not enter what is kept; what the optimiser does of gradients
    that are not finite is its own.

    Args:
        optimizer: any, with its parameters. It stays reachable as `.optimizer`; schedulers may be put on either.
        kind: as above.
        mixing: of "storm": 1 is plain, 0 is "srg".

    Johnson and Zhang 2013; Nguyen, Liu, Scheinberg and Takac 2017 (1703.00102); Cutkosky and Orabona 2019
    (1905.10018); on manifolds Zhang, Reddi and Sra 2016 (1605.07147), Kasai, Sato and Mishra 2018, Han and Gao 2020
    (2008.04555), whose steps are those of `SGD`.

    >>> x = torch.nn.Parameter(torch.zeros(2))
    >>> data = torch.tensor([[1.0, 3.0], [3.0, 1.0]])
    >>> optimizer = VarianceReduced(SGD([x], lr=0.5))
    >>> def closure(rows):
    ...     loss = ((x - data[rows]) ** 2).sum(-1).mean() / 2
    ...     loss.backward()
    ...     return loss
    >>> loss = optimizer.anchor(lambda: closure([0, 1]))
    >>> loss = optimizer.step(lambda: closure([0]))
    >>> x.tolist()
    [1.0, 1.0]
    """

    name = "variance_reduction"

    def __init__(self, optimizer: torch.optim.Optimizer, kind: str = "svrg", mixing: float = 0.1) -> None:
        super().__init__(optimizer)
        if kind not in KINDS:
            raise ValueError(f"kind: unknown {kind!r}, expected one of {', '.join(KINDS)}")
        check_range("mixing", mixing, 0, 1)
        self.kind, self.mixing = kind, mixing
        self._place: dict[Tensor, Tensor] = {}
        self._gradient: dict[Tensor, Tensor] = {}

    def anchor(self, closure: Callable[[], Any]) -> Any:
        """Take the parameters as they are for the anchor; once in an epoch.

        Args:
            closure: computes the loss on all data and its gradient, in as many backward passes as it likes.

        Returns:
            What the closure returns.

        Raises:
            ValueError: the gradient is not finite; the anchor stays what it was.
        """
        loss, grads = self._gradients(closure)
        self.zero_grad()
        if not all(bool(g.isfinite().all()) for g in grads.values()):
            raise ValueError("closure: its gradient has NaN or infinite entries; the anchor stays what it was")
        self._place, self._gradient = {p: p.detach().clone() for p in grads}, grads
        return loss

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of the optimiser on the corrected gradient; on the plain one before there is an anchor.

        Args:
            closure: computes the loss on a mini-batch and its gradient; called twice, on the same mini-batch.

        Returns:
            What the closure returned at the parameters as they are.
        """
        if closure is None:
            raise TypeError("closure: got None, expected a function that computes loss and gradient of a mini-batch")
        before = _random_state()
        loss, here = self._gradients(closure)
        if self._place:
            after = _random_state()
            _set_random_state(before)
            there = self._elsewhere(closure)
            _set_random_state(after)
            self._correct(here, there)
        recursive = self.kind == "storm" or (self.kind == "srg" and self._place)
        if recursive:
            self._keep(here)
        with torch.no_grad():
            for p, g in here.items():
                p.grad = g.to(p.dtype)
        self.optimizer.step()
        return loss

    def _gradients(self, closure: Callable[[], Any]) -> tuple[Any, dict[Tensor, Tensor]]:
        self.zero_grad()
        with torch.enable_grad():
            loss = closure()
        return loss, grads_of(self._params())

    @torch.no_grad()
    def _elsewhere(self, closure: Callable[[], Any]) -> dict[Tensor, Tensor]:
        """Gradients at the other point; the parameters are as they were, whatever the closure does."""
        kept = {p: p.detach().clone() for p in self._place}
        try:
            for p, t in self._place.items():
                p.copy_(t)
            return self._gradients(closure)[1]
        finally:
            for p, t in kept.items():
                p.copy_(t)

    @torch.no_grad()
    def _correct(self, here: dict[Tensor, Tensor], there: dict[Tensor, Tensor]) -> None:
        """Take from gradients here what those of the other point are short of the better one."""
        share = 1 - self.mixing if self.kind == "storm" else 1.0
        for point in self._points():
            if not all(p in here and p in there and p in self._place for p in point.params):
                continue
            lacks = self._moved(point, [there[p] - self._gradient[p] for p in point.params])
            finite = torch.stack([t.isfinite().all() for t in lacks]).all()
            for p, t in zip(point.params, lacks, strict=True):
                here[p] -= torch.where(finite, share * t, 0)

    def _moved(self, point: Point, gradient: list[Tensor]) -> list[Tensor]:
        """A Euclidean gradient at the other point as one at the parameters."""
        constraint, manifold = point.constraint, point.constraint.manifold
        if isinstance(manifold, Euclidean):
            return gradient
        f = manifold.frame(constraint.point([self._place[p] for p in point.params]))
        x = point.value()
        to = manifold.frame(x)
        h = manifold._carry(f, to, manifold._pull(f, constraint.point(gradient)))
        found = [torch.empty_like(g) for g in gradient]
        constraint.write(found, covector(manifold, to, h, x))
        return found

    @torch.no_grad()
    def _keep(self, grads: dict[Tensor, Tensor]) -> None:
        """This point for the next step's other one, where the gradient is finite."""
        for point in self._points():
            if all(p in grads for p in point.params):
                finite = torch.stack([grads[p].isfinite().all() for p in point.params]).all()
                for p in point.params:
                    old, g = self._place.get(p, p), self._gradient.get(p, torch.zeros_like(grads[p]))
                    self._place[p] = torch.where(finite, p.detach(), old).clone()
                    self._gradient[p] = torch.where(finite, grads[p], g)

    # Checkpoints. -----------------------------------------------------------------------------------------------------

    def _own(self) -> dict[str, Any]:
        return {"kind": self.kind, "place": self._listed(self._place), "gradient": self._listed(self._gradient)}

    def _load_own(self, state: dict[str, Any]) -> None:
        if state["kind"] != self.kind:
            raise ValueError(f"state_dict: is of kind {state['kind']!r}, expected {self.kind!r}")
        self._place = self._unlisted(state["place"], "place")
        self._gradient = self._unlisted(state["gradient"], "gradient")


def _random_state() -> tuple[Tensor, list[Tensor]]:
    return torch.get_rng_state(), torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []


def _set_random_state(state: tuple[Tensor, list[Tensor]]) -> None:
    torch.set_rng_state(state[0])
    if state[1]:
        torch.cuda.set_rng_state_all(state[1])
