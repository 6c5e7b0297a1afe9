"""A mean of many terms on a manifold: all of them, or a few."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from steepest.checks import check_range
from steepest.manifolds.base import Manifold
from steepest.manifolds.tensors import as_tuple, each, like
from steepest.solvers.problem import Iterate, Problem

Term = Callable[[Any, Tensor], Tensor]


class FiniteSum(Problem):
    """f(x) = 1/n sum_i f_i(x), whose value and gradient at an `Iterate` are those of all terms.

    Args:
        term: takes a point and an index tensor `(b,)`, and returns the values `(b,)` of those terms.
        n: how many terms there are; indices are 0 to n - 1.
        manifold: where the points live.
        batch_size: b of a mini-batch.
        chunk_size: how many terms a pass over all of them takes at once.
        replacement: draw the indices of an epoch independently of each other, as the theory has it; otherwise a
            mini-batch takes the next b entries of a random permutation, and of another one when that is used up.
        seed: of the mini-batches.
        device: of the index tensors.

    >>> from steepest import Sphere
    >>> from steepest.solvers import FiniteSum
    >>> data = torch.eye(3)
    >>> problem = FiniteSum(lambda x, i: -(data[i] @ x) ** 2, 3, Sphere(), batch_size=2)
    >>> at = problem.at(torch.tensor([0.6, 0.8, 0.0]))
    >>> round(at.value, 4), problem.part(at, torch.tensor([0])).numpy().round(3), problem.terms
    (-0.3333, array([-0.768,  0.576,  0.   ], dtype=float32), 1)
    """

    def __init__(
        self,
        term: Term,
        n: int,
        manifold: Manifold,
        batch_size: int = 1,
        chunk_size: int = 4096,
        replacement: bool = False,
        seed: int = 0,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(self._mean, manifold, seed=seed)
        check_range("n", n, 1)
        check_range("batch_size", batch_size, 1, n)
        check_range("chunk_size", chunk_size, 1)
        self.term, self.n, self.batch_size, self.chunk_size = term, n, batch_size, chunk_size
        self.replacement = replacement
        self.everything = torch.arange(n, device=device)
        self.terms = 0
        """Gradients of single terms that a method has asked for."""

    def chosen(self, x: Any, index: Tensor) -> Tensor:
        """Values of these terms, `(b,)`."""
        found = self.term(x, index)
        if not isinstance(found, Tensor) or found.shape != index.shape or found.is_complex():
            got = f"{tuple(found.shape)} {found.dtype}" if isinstance(found, Tensor) else type(found).__name__
            raise TypeError(
                f"term: got {got}, expected the real values of {len(index)} terms, of shape {tuple(index.shape)}: one "
                "number for each entry of the index tensor, not their sum."
            )
        return found

    # Gradients, in coordinates. ---------------------------------------------------------------------------------------

    def full(self, at: Iterate) -> Tensor:
        """Riemannian gradient of the mean of all terms, `(d,)`."""
        self.terms += self.n
        return at.gradient

    def part(self, at: Iterate, index: Tensor) -> Tensor:
        """Riemannian gradient of the mean of these terms, `(d,)`."""
        g = self._gradient(lambda x: x, at.x, index)
        with torch.no_grad():
            return at.ravel(self.manifold._pull(at.frame, g))

    def pulled(self, at: Iterate, z: Tensor, index: Tensor) -> Tensor:
        """Gradient at z, in the tangent space at a point, of the mean of these terms after the retraction, `(d,)`."""
        found: Tensor = self._gradient(lambda z: self.manifold._move(at.frame, at.unravel(z)), z, index)
        return found

    def _gradient(self, point: Callable[[Any], Any], leaf: Any, index: Tensor) -> Any:
        self.terms += len(index)
        return self._summed(point, leaf, index)[1]

    def _summed(self, point: Callable[[Any], Any], leaf: Any, index: Tensor) -> tuple[Tensor, Any]:
        """Mean of these terms at `point(leaf)` and its Euclidean gradient, chunk by chunk."""
        value, grads = torch.zeros((), device=index.device), [torch.zeros_like(t) for t in as_tuple(leaf)]
        for chunk in index.split(self.chunk_size):
            with torch.enable_grad():
                inner = each(lambda t: t.detach().requires_grad_(), leaf)
                loss = self.chosen(point(inner), chunk).sum() / len(index)
                if loss.requires_grad:
                    found = torch.autograd.grad(loss, as_tuple(inner), materialize_grads=True)
                    grads = [a + b for a, b in zip(grads, found, strict=True)]
            value = value + loss.detach()
        return value, like(leaf, grads)

    def _mean(self, x: Any) -> Tensor:
        """f(x); where a gradient may be wanted, that of a pass over chunks is kept, and not their graphs."""
        if not (torch.is_grad_enabled() and any(t.requires_grad for t in as_tuple(x))):
            chunks = [self.chosen(x, chunk).sum() / self.n for chunk in self.everything.split(self.chunk_size)]
            return torch.stack(chunks).sum()
        value, g = self._summed(lambda x: x, x, self.everything)
        pairs = zip(as_tuple(x), as_tuple(g), strict=True)
        return value + torch.stack([((t - t.detach()) * b.conj()).real.sum() for t, b in pairs]).sum()

    # Mini-batches. ----------------------------------------------------------------------------------------------------

    @property
    def batches_per_pass(self) -> int:
        """Mini-batches that take as many terms as there are, or a few more."""
        return math.ceil(self.n / self.batch_size)

    def batches(self, count: int, *numbers: int) -> Iterator[Tensor]:
        """So many mini-batches `(b,)`, drawn by the seed and these numbers (the epoch, say) alone."""
        if count < 1:
            return
        generator, size = self.generator(*numbers), self.batch_size
        if self.replacement:
            drawn = torch.randint(self.n, (count * size,), generator=generator, device=generator.device)
        else:
            passes = math.ceil(count * size / self.n)
            drawn = torch.cat([self._shuffled(generator) for _ in range(passes)])[: count * size]
        yield from drawn.to(self.everything.device).split(size)

    def sample(self, size: int, *numbers: int) -> Tensor:
        """Different terms, so many, drawn by the seed and these numbers alone."""
        return self._shuffled(self.generator(*numbers))[:size].to(self.everything.device)

    def _shuffled(self, generator: torch.Generator) -> Tensor:
        return torch.randperm(self.n, generator=generator, device=generator.device)
