"""What a change of parameters does to a model's outputs, to first order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property

import torch
from torch import Tensor

from steepest.curvature.coordinates import Coordinates


class Linearised:
    """The Jacobian J of outputs `(b, C)` with respect to parameters, as one pass through the model has left it: neither
    products with it nor with its transpose run the model again, so that its noise and its statistics stay as they were.

    Args:
        z: the outputs, with their graph.
        params: the tensors from which they were computed.
        coordinates: of the points that these tensors are; K = J P J^T is the kernel of the rows in their metric, with P
            from a gradient to the Riemannian one, `push(pull(.))`.
    """

    def __init__(self, z: Tensor, params: Sequence[Tensor], coordinates: Coordinates) -> None:
        self.z, self.params, self.coordinates = z, list(params), coordinates

    def vjp(self, c: Tensor) -> list[Tensor | None]:
        """J^T c; None for a tensor on which the outputs do not depend."""
        return list(torch.autograd.grad(self.z, self.params, c.to(self.z), retain_graph=True, allow_unused=True))

    def jvp(self, v: Sequence[Tensor]) -> Tensor:
        """J v, by differentiating c -> J^T c once more."""
        dummy, used, grads = self._transposed
        parts = [v[i].to(g) for i, g in zip(used, grads, strict=True)]
        return torch.autograd.grad(grads, dummy, parts, retain_graph=True)[0]

    def kernel(self, e: Tensor) -> tuple[Tensor, Tensor]:
        """K e, and e^T K e as the squared length that it is."""
        with torch.no_grad():
            h = self.coordinates.pull(self._whole(self.vjp(e)))
            return self.jvp(self.coordinates.push(h)).to(e), (h.to(e.dtype) @ h.to(e.dtype))

    def gram(self, chunk: int) -> Tensor:
        """K, `(b C, b C)`, `chunk` rows of it at a time by products with J^T and J: b C passes forth and back."""
        out = []
        for e in self._unit_vectors(chunk):
            with torch.no_grad():
                v = self._whole(self._batched_vjp(e), e.shape[:1])
                if not self.coordinates.flat:
                    v = torch.func.vmap(lambda *g: self.coordinates.push(self.coordinates.pull(g)))(*v)
                dummy, used, grads = self._transposed
                parts = [v[i].to(g) for i, g in zip(used, grads, strict=True)]
                rows = torch.autograd.grad(grads, dummy, parts, retain_graph=True, is_grads_batched=True)[0]
            out.append(rows.flatten(1))
        return torch.cat(out)

    def rows(self, chunk: int) -> Tensor:
        """The rows of J in coordinates, `(b C, n)`, `chunk` of them by one backward pass; K is the product with its
        transpose, and semidefinite but for that product's rounding."""
        out = []
        for e in self._unit_vectors(chunk):
            with torch.no_grad():
                out.append(torch.func.vmap(self.coordinates.pull)(self._whole(self._batched_vjp(e), e.shape[:1])))
        return torch.cat(out)

    def _unit_vectors(self, chunk: int) -> Iterator[Tensor]:
        count = self.z.numel()
        for some in torch.arange(count, device=self.z.device).split(chunk):
            yield torch.nn.functional.one_hot(some, count).to(self.z).reshape(-1, *self.z.shape)

    def _batched_vjp(self, e: Tensor) -> list[Tensor | None]:
        grads = torch.autograd.grad(self.z, self.params, e, retain_graph=True, allow_unused=True, is_grads_batched=True)
        return list(grads)

    def _whole(self, grads: Sequence[Tensor | None], batch: tuple[int, ...] = ()) -> list[Tensor]:
        return [p.new_zeros((*batch, *p.shape)) if g is None else g for p, g in zip(self.params, grads, strict=True)]

    @cached_property
    def _transposed(self) -> tuple[Tensor, list[int], list[Tensor]]:
        """c, and J^T c as a function of it; with the numbers of the tensors that have a part in it."""
        with torch.enable_grad():
            dummy = torch.zeros_like(self.z, requires_grad=True)
            grads = torch.autograd.grad(self.z, self.params, dummy, create_graph=True, allow_unused=True)
        used = [i for i, g in enumerate(grads) if g is not None and g.requires_grad]
        return dummy, used, [g for g in grads if g is not None and g.requires_grad]
