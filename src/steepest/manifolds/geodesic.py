"""Geodesics, their inverse, and second derivatives, from nothing but the frame.

The frame is a square root of the cometric: the squared length of a covector p at x is |pull(x, p)|^2. So geodesics are
the x-part of the flow of the Hamiltonian H(x, p) = |pull(x, p)|^2 / 2,

    x' = push(x, pull(x, p)),    p' = -dH/dx,    push(x, pull(x, p)) = v at the start,

with the derivative by autograd through the formula of `pull`. That formula may continue beyond the manifold in any way:
H does not change along covectors that vanish on the tangent space, so the flow on the manifold does not depend on it.
On a quotient the frame is horizontal, and the flow gives horizontal lifts of the quotient's geodesics.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from steepest.linalg.cg import least_squares
from steepest.manifolds.flow import flow
from steepest.manifolds.implicit import ConvergenceWarning, fixed_point, ravel, unravel, with_derivatives
from steepest.manifolds.tensors import as_tuple, each, like

if TYPE_CHECKING:
    from steepest.manifolds.base import Manifold

__all__ = ["ConvergenceWarning", "flat", "hessian", "integrate", "shoot", "towards"]


def flat(m: Manifold, x: Any, v: Any) -> Any:
    """A covector p at x with `push(x, pull(x, p)) == v`: the tangent vector v with its index lowered."""
    f = m.frame(x)
    return torch.func.vjp(lambda v: m._coords(f, v), v)[1](m._coords(f, v))[0]


# Geodesics. -----------------------------------------------------------------------------------------------------------


def integrate(m: Manifold, x: Any, v: Any) -> Any:
    """End at time one of the geodesic that leaves x with velocity v, with a relative error of about 1000 eps.

    NaN where the geodesic ends before time one (`flow`).
    """

    def energy(x: Any, p: Any) -> Tensor:
        h = m.pull(x, p)
        return m._dot(h, h).sum() / 2

    def field(state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        force, velocity = torch.func.grad(energy, argnums=(0, 1))(like(x, state[:k]), like(x, state[k:]))
        return (*as_tuple(velocity), *(-t for t in as_tuple(force)))

    k = m.arity
    state = (*as_tuple(x), *as_tuple(flat(m, x, v)))
    return like(x, flow(field, state)[:k])


# Their inverse. -------------------------------------------------------------------------------------------------------


def shoot(m: Manifold, x: Any, y: Any, iterations: int = 100) -> Any:
    """v with `exp(x, v) == y` (as points: of a quotient, another representative of y may be reached), or NaN.

    Shooting: the gap at the end of the geodesic, in coordinates, is carried back to x and added (Bryner 2017,
    1610.05999), with Anderson's acceleration. The result carries its first two derivatives (`implicit`).
    """
    shape = as_tuple(m.pull(x, x))
    target = m.represent(y)

    def tangent(z: Tensor) -> Any:
        h = unravel(z, shape, m.block_ndims)
        f = m.frame(x)
        return m._push(f, m._horizontal(f, h if len(shape) > 1 else h[0]))

    def miss(z: Tensor) -> Tensor:
        return _flatten(m, x, each(torch.sub, m.represent(m.exp(x, tangent(z))), target))

    with torch.no_grad():
        start = ravel(shape, m.block_ndims) * 0
        z = fixed_point(lambda z: _correction(m, x, m.exp(x, tangent(z)), y), start, "log", iterations)
    if torch.is_grad_enabled() and any(t.requires_grad for t in (*as_tuple(x), *as_tuple(y))):
        z = with_derivatives(miss, z)
    return tangent(z)


def _correction(m: Manifold, x: Any, end: Any, y: Any) -> Tensor:
    """Coordinates at x, as one vector, of the tangent vector at `end` that leads towards y."""
    return ravel(as_tuple(m.carry(end, x, towards(m, end, y))), m.block_ndims)


def towards(m: Manifold, x: Any, y: Any, iterations: int = 50) -> Any:
    """Coordinates at x of a tangent vector that leads towards y, to first order in the gap between what the two points
    represent: cheap, and on a quotient the same for every representative of y."""
    gap = each(torch.sub, m.represent(y), m.represent(x))
    f = m.frame(x)
    if type(m).represent is _plain(m):
        return m._coords(f, gap)
    shape = as_tuple(m._pull(f, x))

    def forth(z: Tensor) -> Tensor:
        h = unravel(z, shape, m.block_ndims)
        v = m._push(f, h if len(shape) > 1 else h[0])
        return _flatten(m, x, torch.func.jvp(m.represent, (x,), (v,))[1])

    zero = ravel(shape, m.block_ndims) * 0
    back = torch.func.vjp(forth, zero)[1]
    # a poor direction is as good as a fine one, as long as its error vanishes with the gap
    solution, _ = least_squares(forth, lambda c: back(c)[0], _flatten(m, x, gap), 1, 1, 1e-3, iterations)
    return like(shape if len(shape) > 1 else shape[0], unravel(solution, shape, m.block_ndims))


def _plain(m: Manifold) -> Any:
    """`Manifold.represent`, which returns the point itself."""
    return next(c for c in type(m).__mro__ if c.__name__ == "Manifold").__dict__["represent"]


def _flatten(m: Manifold, x: Any, w: Any) -> Tensor:
    """What a point represents as one real vector for each batch element."""
    batch = as_tuple(x)[0].ndim - m.point_ndims[0]
    return ravel(as_tuple(w), tuple(t.ndim - batch for t in as_tuple(w)))


# Second derivatives. --------------------------------------------------------------------------------------------------


def hessian(m: Manifold, x: Any, g: Any, gv: Any, v: Any) -> Any:
    """Riemannian Hessian of f times v, for the Euclidean gradient g and `gv`, the Euclidean Hessian times v.

    With P(x) c = push(x, pull(x, c)), the cometric, w = P g the gradient and p the covector of v (`flat`),

        Hess f [v] = P (gv + d_x <g, P p> / 2) + (DP[v] g - DP[w] p) / 2,

    the bilinear form D^2 f - Df(Christoffel) with the Christoffel symbols of a cometric; the last bracket is tangent,
    up to a part that is vertical on a quotient and is taken out. It serves every metric alike, where the Weingarten map
    (Absil, Mahony and Trumpf 2013) serves the metric of the embedding.
    """
    p = flat(m, x, v)
    w = m.grad(x, g)
    back = torch.func.vjp(lambda x: m.grad(x, p), x)[1]
    curved = m.grad(x, each(lambda a, b: a + b / 2, gv, back(g)[0]))
    along_v = torch.func.jvp(lambda x: m.grad(x, g), (x,), (v,))[1]
    along_w = torch.func.jvp(lambda x: m.grad(x, p), (x,), (w,))[1]
    bracket = m.push(x, m.coords(x, each(torch.sub, along_v, along_w)))
    return each(lambda a, b: a + b / 2, curved, bracket)
