"""Solutions of equations, and their derivatives.

An iteration that solves F(z, a) = 0 for z need not be differentiated through. From the solution z*, the chord method z
<- z - J^-1 F(z, a), with the constant J = dF/dz at z*, changes nothing in value, but each step makes the dependence on
a exact to one order more: two steps give the first and the second derivative.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from steepest.linalg.cg import least_squares

Linear = Callable[[Tensor], Tensor]


class ConvergenceWarning(UserWarning):
    """An iteration has not converged, and its result is NaN for some elements of the batch."""


def fixed_point(step: Linear, z: Tensor, what: str, iterations: int = 100, memory: int = 6) -> Tensor:
    """The fixed point of z <- z + step(z), `(*b, d)`, from the combination of the last steps that would leave the
    shortest one (Anderson 1965; Walker and Ni 2011). NaN, with a warning that names `what`, for elements that do not
    get there."""
    tolerance = 2000 * torch.finfo(z.dtype).eps
    zs: list[Tensor] = []
    gs: list[Tensor] = []
    done = torch.zeros(z.shape[:-1], dtype=torch.bool, device=z.device)
    for _ in range(iterations):
        g = step(z)
        bad = ~g.isfinite().all(-1)
        g = torch.where(bad.unsqueeze(-1), 0, g)
        size = torch.linalg.vector_norm(g, dim=-1)
        done = done | (~bad & (size <= tolerance * (1 + torch.linalg.vector_norm(z, dim=-1))))
        if (done | bad).all():
            break
        zs, gs = [*zs[-memory:], z], [*gs[-memory:], g]
        z = torch.where(done.unsqueeze(-1), z, z + _accelerated(zs, gs))
    if not done.all():
        warnings.warn(
            f"{what}: no solution found for {int((~done).sum())} of {done.numel()} in {iterations} iterations; the "
            "points may be too far apart. The result is NaN there.",
            ConvergenceWarning,
            stacklevel=5,
        )
    return torch.where(done.unsqueeze(-1), z, torch.nan)


def _accelerated(zs: list[Tensor], gs: list[Tensor]) -> Tensor:
    """The move from the last of zs, given the steps gs at all of them."""
    if len(zs) == 1:
        return gs[0]
    dz, dg = (torch.stack([b - a for a, b in pairwise(s)], -1) for s in (zs, gs))
    gram = dg.mT @ dg
    ridge = 1e-14 * gram.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None] + torch.finfo(gram.dtype).tiny
    eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    weights = torch.linalg.solve(gram + ridge * eye, dg.mT @ gs[-1].unsqueeze(-1))
    return gs[-1] - ((dz + dg) @ weights).squeeze(-1)


def with_derivatives(residual: Linear, z: Tensor) -> Tensor:
    """z `(*b, d)`, which solves `residual(z) == 0`, `(*b, e)`, with its first two derivatives with respect to every
    tensor that `residual` uses.

    Where several z solve it, the one that stays is that of least change. Each batch element has an equation of its own.
    """
    z0 = z = z.detach()
    rest = residual(z0).detach()  # rounding, which J^+ might enlarge
    inverse = _dense_inverse(residual, z0) if z0.shape[-1] <= DENSE else _iterative_inverse(residual, z0)
    for _ in range(2):
        z = z - inverse(residual(z) - rest)
    return z


DENSE = 64
"""Unknowns up to which J is made column by column and inverted; with more, J^+ b is found by iteration."""


def _dense_inverse(residual: Linear, z: Tensor) -> Linear:
    eye = torch.eye(z.shape[-1], dtype=z.dtype, device=z.device)
    with torch.no_grad():
        columns = [torch.func.jvp(residual, (z,), (e.expand_as(z),))[1] for e in eye]
        jacobian = torch.stack(columns, -1).nan_to_num()  # of an unsolved element, whose z is NaN and stays it
        inverse = torch.linalg.pinv(jacobian, rtol=torch.finfo(z.dtype).eps ** 0.7)
    return lambda b: (inverse @ b.unsqueeze(-1)).squeeze(-1)


def _iterative_inverse(residual: Linear, z: Tensor) -> Linear:
    adjoint = torch.func.vjp(residual, z)[1]
    return lambda b: _Solve.apply(b, lambda t: torch.func.jvp(residual, (z,), (t,))[1], lambda c: adjoint(c)[0])


class _Solve(torch.autograd.Function):
    """J^+ b for the linear map J and its adjoint; the derivative is the same with the two exchanged."""

    @staticmethod
    def forward(ctx: Any, b: Tensor, forth: Linear, back: Linear) -> Tensor:
        ctx.forth, ctx.back = forth, back
        eps = torch.finfo(b.dtype).eps
        return least_squares(forth, back, b, 1, 1, tolerance=4 * eps, iterations=500)[0]

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return _Solve.apply(g, ctx.back, ctx.forth), None, None


def ravel(parts: tuple[Tensor, ...], ndims: tuple[int, ...]) -> Tensor:
    """Tensors `(*b, ...)`, each with its own number of trailing dimensions, as one real `(*b, d)`."""
    flat = []
    for t, n in zip(parts, ndims, strict=True):
        batch = t.shape[: t.ndim - n]
        flat.append((torch.view_as_real(t) if t.is_complex() else t).reshape(*batch, -1))
    return torch.cat(flat, -1)


def unravel(z: Tensor, parts: tuple[Tensor, ...], ndims: tuple[int, ...]) -> tuple[Tensor, ...]:
    """What `ravel` made one vector of, in the shapes of `parts`."""
    out, start = [], 0
    for t, n in zip(parts, ndims, strict=True):
        shape = t.shape[t.ndim - n :]
        size = shape.numel() * (2 if t.is_complex() else 1)
        piece = z[..., start : start + size]
        start += size
        batch = z.shape[:-1]
        out.append(
            torch.view_as_complex(piece.reshape(*batch, *shape, 2).contiguous())
            if t.is_complex()
            else piece.reshape((*batch, *shape))
        )
    return tuple(out)
