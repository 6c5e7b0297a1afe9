"""A function of two points as one function on the product of their manifolds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from steepest.manifolds.base import Manifold
from steepest.manifolds.product import Product
from steepest.manifolds.tensors import as_tuple, like
from steepest.solvers.problem import Evaluations, Iterate, Problem


class Saddle:
    """f(x, y) to be minimised over x and maximised over y, and H = |grad f|^2 / 2, which is zero where both is done to
    first order.

    Args:
        fun: takes x and y, as their manifolds pack them, and returns a real number as a tensor; made of torch
            operations. With `terms`, it takes a third argument, an index `(b,)` of integers, and returns the values
            `(b,)` of these terms, of which f is the mean.
        manifold_x, manifold_y: where they live.
        terms: how many there are. None: f is no sum.
        seed: of all that is random.

    `problem` is f, and `hamiltonian` is H, on the product of the manifolds, both in coordinates, those of x first.

    >>> from steepest import Euclidean
    >>> from steepest.solvers import Saddle
    >>> saddle = Saddle(lambda x, y: x @ y, Euclidean(1), Euclidean(1))
    >>> here = saddle.problem.at((torch.tensor([1.0, 0.0]), torch.tensor([2.0, 0.0])))
    >>> saddle.field(here).tolist(), saddle.hamiltonian.at(here.x).value  # x goes down, y goes up
    ([-2.0, -0.0, 1.0, 0.0], 2.5)
    """

    def __init__(
        self,
        fun: Callable[..., Tensor],
        manifold_x: Manifold,
        manifold_y: Manifold,
        terms: int | None = None,
        seed: int = 0,
    ) -> None:
        self.fun, self.terms = fun, terms
        self.manifold_x, self.manifold_y = manifold_x, manifold_y
        self.manifold = Product((manifold_x, manifold_y))
        self.problem = Problem(self._whole, self.manifold, seed=seed)
        self.hamiltonian = Problem(self._energy, self.manifold, seed=seed)

    def pair(self, z: tuple[Tensor, ...]) -> tuple[Any, Any]:
        """A point of the product -> x and y, as their manifolds pack them."""
        k = self.manifold_x.arity
        x, y = z[:k], z[k:]
        return x[0] if k == 1 else x, y[0] if len(y) == 1 else y

    def parts(self, at: Iterate, z: Tensor) -> tuple[Tensor, Tensor]:
        """Coordinates `(n,)` -> those of x and those of y."""
        blocks = at.blocks[: len(self.manifold_x.blocks)]
        k = sum(b.numel() * (2 if b.is_complex() else 1) for b in blocks)
        return z[:k], z[k:]

    def field(self, at: Iterate, ratio: float = 1.0) -> Tensor:
        """The direction (-grad_x f, ratio grad_y f) of descent in x and ascent in y."""
        x, y = self.parts(at, at.gradient)
        return torch.cat([-x, ratio * y])

    def sample(self, at: Iterate, size: int, *numbers: int) -> Iterate:
        """The mean of `size` terms, drawn with replacement by a generator that depends on the numbers, at a point."""
        assert self.terms is not None
        generator = self.problem.generator(*numbers)
        drawn = torch.randint(self.terms, (size,), generator=generator, device=generator.device)
        index = drawn.to(as_tuple(at.x)[0].device)
        part = Problem(lambda z: self._mean(z, index), self.manifold, seed=self.problem.seed)
        part.evaluations, part.curvature = self.problem.evaluations, True
        return part.at(at.x)

    @property
    def evaluations(self) -> Evaluations:
        """Of f: each value of H is a gradient of f, and each gradient of H a product with the Hessian of f."""
        f, h = self.problem.evaluations, self.hamiltonian.evaluations
        return Evaluations(f.values, f.gradients + h.values, f.products + h.gradients + h.products)

    def _whole(self, z: tuple[Tensor, ...]) -> Tensor:
        if self.terms is None:
            return self.fun(*self.pair(z))
        return self._mean(z, torch.arange(self.terms, device=z[0].device))

    def _mean(self, z: tuple[Tensor, ...], index: Tensor) -> Tensor:
        values = self.fun(*self.pair(z), index)
        if not isinstance(values, Tensor) or values.shape != index.shape:
            got = f"shape {tuple(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
            raise TypeError(f"fun: got {got}, expected the values {tuple(index.shape)} of the terms, not their mean")
        return values.mean()

    def _energy(self, z: tuple[Tensor, ...]) -> Tensor:
        """|pull(z, df)|^2 / 2; its derivative, by autograd through the frame, is that of the norm on the manifold."""
        with torch.enable_grad():  # a value of H takes a gradient of f, whether or not one of H is wanted
            z = tuple(t if t.requires_grad else t.detach().requires_grad_() for t in z)
            loss = self._whole(z)
            if loss.requires_grad:
                g = torch.autograd.grad(loss, z, create_graph=True, materialize_grads=True)
            else:
                g = tuple(torch.zeros_like(t) for t in z)
            h = as_tuple(self.manifold.pull(z, like(z, g)))
            return torch.stack([(b.conj() * b).real.sum() for b in h]).sum() / 2
