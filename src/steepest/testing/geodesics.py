"""What geodesics, their inverse, transport, second derivatives and means must satisfy on every manifold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from steepest.manifolds import geodesic
from steepest.manifolds.base import Manifold
from steepest.manifolds.tensors import as_tuple, each, like
from steepest.testing.asserts import add, assert_close, assert_slope, dot, norm, scale
from steepest.testing.manifold import ROUND_OFF, Case, cut, law, real_vector


@law
def check_exp(case: Case) -> None:
    """exp agrees with retract to first order, stays on the manifold, and moves with constant speed along itself."""
    m, x = case.manifold, case.point()
    v = scale(case.tangent(x), 0.5)
    m.check_point(m.exp(x, v), "exp(x, v)")
    assert_close(m.exp(x, scale(v, 0.0)), x, "exp(x, 0) is not x", ROUND_OFF)
    assert_slope(lambda t: norm(add(m.exp(x, scale(v, t)), add(x, v, t), -1.0)), 2, "exp(x, t v) - x - t v")
    curve = lambda t: m.exp(x, each(lambda a: t * a, v))  # noqa: E731
    one = torch.ones((), dtype=torch.float64)
    halfway, velocity = _velocity(curve, one / 2, "exp" in m.closed)
    assert_close(m.norm(halfway, velocity), m.norm(x, v), "the speed of the geodesic is not constant", 1e-7)
    end = m.exp(halfway, scale(velocity, 0.5))
    assert_close(m.represent(end), m.represent(curve(one)), "the geodesic does not continue itself", 1e-7)


def _velocity(curve: Callable[[Tensor], Any], t: Tensor, differentiable: bool) -> tuple[Any, Any]:
    """Point and derivative of a curve; by central differences of order four where autograd has none."""
    if differentiable:
        return curve(t), torch.func.jvp(curve, (t,), (torch.ones_like(t),))[1]
    step = 1e-2
    a, b, c, d = (curve(t + k * step) for k in (-2, -1, 1, 2))
    return curve(t), each(lambda a, b, c, d: (a - 8 * b + 8 * c - d) / (12 * step), a, b, c, d)


@law
def check_geodesic(case: Case) -> None:
    """exp is the geodesic of the metric that the frame gives: it ends where the integration of that one does."""
    m, x = case.manifold, case.point()
    if "exp" in m.closed:
        v = scale(case.tangent(x), 0.3)
        there = m.represent(geodesic.integrate(m, x, v))
        assert_close(m.represent(m.exp(x, v)), there, "exp is not the geodesic of the frame's metric", 1e-8)


def _reachable(case: Case, x: Any) -> Any:
    """A second random point, or a near one where determinants differ in sign: O(n) falls in two pieces."""
    z = case.another()
    first, second = as_tuple(x)[0], as_tuple(z)[0]
    square = first.shape[-1] == first.shape[-2] if first.ndim == 2 else False
    apart = square and not first.is_complex() and torch.linalg.det(first) * torch.linalg.det(second) < 0
    return case.manifold.exp(x, scale(case.tangent(x, 9), 0.3)) if apart else z


@law
def check_log(case: Case) -> None:
    """log inverts exp on either side, and dist is its norm."""
    m, x = case.manifold, case.point()
    v = scale(m.push(x, m.coords(x, case.tangent(x))), 0.3)
    y = m.exp(x, v)
    found = m.log(x, y)
    assert_close(m.represent(m.exp(x, found)), m.represent(y), "exp(x, log(x, y)) is not y", 1e-7)
    assert_close(m.log(x, x), scale(x, 0.0), "log(x, x) is not zero", 1e-7)
    if "log" in m.closed:
        assert_close(m.norm(x, found), m.norm(x, v), "log(x, exp(x, v)) is not as long as v", 1e-7)
        z = _reachable(case, x)
        back = m.exp(x, m.log(x, z))
        assert_close(m.represent(back), m.represent(z), "exp(x, log(x, z)) is not z", 1e-7)
        assert_close(m.dist(x, z), m.norm(x, m.log(x, z)), "dist is not the norm of log", 1e-7)


@law
def check_dist(case: Case) -> None:
    """dist is symmetric, zero at coincident points with a finite gradient, and exact at small distances."""
    m, x = case.manifold, case.point()
    if "dist" in m.closed:  # else it is the length of log, which shoots along the geodesics that check_exp has seen
        z = _reachable(case, x)
        assert_close(m.dist(x, z), m.dist(z, x), "dist is not symmetric", 1e-8)
        assert m.dist(x, x).abs().item() < 1e-7, f"dist(x, x) is {m.dist(x, x).item():.2g}"
    v = scale(case.tangent(x), 1e-6)
    near = m.dist(x, m.exp(x, v))
    assert_close(near, m.norm(x, horizontal(m, x, v)), "dist at 1e-6 is not the length of the step", 1e-11)


@law
def check_transport(case: Case) -> None:
    """transport gives tangent vectors at y, starts as identity, and where parallel is an isometry that turns log(x, y)
    into -log(y, x)."""
    m, x = case.manifold, case.point()
    y = m.exp(x, scale(case.tangent(x, 7), 0.3))
    u, v = case.tangent(x), case.tangent(x, 3)
    there, other = m.transport(x, y, u), m.transport(x, y, v)
    assert_close(m.push(y, m.coords(y, there)), there, "transport(v) is not tangent at y", 1e-7)
    assert_close(m.transport(x, x, u), u, "transport to the same point changes v", 1e-7)
    if m.parallel:
        assert_close(m.inner(y, there, other), m.inner(x, u, v), "transport is not an isometry", 1e-7)
        moved = m.transport(x, y, m.log(x, y))
        assert_close(moved, scale(m.log(y, x), -1.0), "transport of log(x, y) is not -log(y, x)", 1e-7)


@law
def check_hessian(case: Case) -> None:
    """The Hessian is the second derivative along geodesics, and symmetric; for f of what the point stands for."""
    m, x = case.manifold, case.point()
    weights = each(lambda t: torch.linspace(-1, 1, t.numel(), dtype=torch.float64).reshape(t.shape), m.represent(x))

    def f(x: Any) -> Tensor:
        w = m.represent(x)
        terms = zip(as_tuple(w), as_tuple(weights), strict=True)
        return sum(((t.abs() ** 2 * (1 + k)).sum() / 2 + (t.real * k).sum() for t, k in terms), torch.zeros(()))

    u, v = (horizontal(m, x, case.tangent(x, seed)) for seed in (2, 3))
    gradient = torch.func.grad(f)
    g = gradient(x)
    apply = lambda w: m.hessian(x, g, torch.func.jvp(gradient, (x,), (w,))[1], w)  # noqa: E731
    hu, hv = apply(u), apply(v)
    assert_close(m.push(x, m.coords(x, hv)), hv, "the Hessian is not tangent", 1e-7)
    assert_close(m.inner(x, hu, v), m.inner(x, u, hv), "the Hessian is not symmetric", 1e-7)
    along = lambda t: f(m.exp(x, each(lambda a: t * a, v)))  # noqa: E731
    zero = torch.zeros((), dtype=torch.float64)
    second = torch.func.grad(torch.func.grad(along))(zero) if "exp" in m.closed else _second(along)
    # the difference quotient divides the integration's error, 1e-13, by step^2, and has one of (step / radius)^8
    assert_close(m.inner(x, hv, v), second, "the Hessian is not the second derivative along the geodesic", 3e-6)


def _second(along: Callable[[Tensor], Tensor], step: float = 2e-2) -> Tensor:
    """Second derivative at zero, by central differences of order eight."""
    weights = {0: -205 / 72, 1: 8 / 5, 2: -1 / 5, 3: 8 / 315, 4: -1 / 560}
    at = {k: along(torch.tensor(k * step, dtype=torch.float64)) for k in range(-4, 5)}
    return torch.stack([weights[abs(k)] * y for k, y in at.items()]).sum() / step**2


@law
def check_mean(case: Case) -> None:
    """The mean of two points lies halfway; of one point it is that point; of equal points too; and the gradient of the
    summed squared distances vanishes at it."""
    m, x = case.manifold, case.point()
    if not {"exp", "log"} <= m.closed:
        return  # the general methods: the same routine on the same equations
    y, z = (m.exp(x, scale(case.tangent(x, s), 0.3)) for s in (2, 3))
    three = each(lambda *t: torch.stack(t), x, y, z)
    same = each(lambda t: torch.stack([t, t]), x)
    assert_close(m.represent(m.mean(same)), m.represent(x), "the mean of equal points is another", 1e-8)
    two = m.mean(each(lambda *t: torch.stack(t), x, y))
    assert_close(m.dist(two, x), m.dist(x, y) / 2, "the mean of two points is not halfway", 1e-8)
    w = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    center = m.mean(three, w)
    pulls = [scale(m.log(center, p), t) for p, t in zip((x, y, z), w.tolist(), strict=True)]
    rest = each(lambda *t: sum(t), *pulls)
    assert m.norm(center, rest).item() < 1e-8, "the gradient at the mean is not zero"


@law
def check_derivatives(case: Case) -> None:
    """Derivatives are finite where formulas like to divide by zero: a zero step, coincident points."""
    m, x = case.manifold, case.point()
    zero = scale(case.tangent(x), 0.0)
    places: dict[str, Callable[..., Any]] = {"retract": lambda x, v: m.retract(x, v)}
    for name in ("exp", "log", "dist"):
        if name in m.closed:
            places[name] = getattr(m, name)
    for name, call in places.items():
        second = x if name in ("log", "dist") else zero
        a, b = ([t.clone().requires_grad_() for t in as_tuple(s)] for s in (x, second))
        result = as_tuple(call(like(x, a), like(x, b)))
        weights = [torch.linspace(1, 2, t.numel(), dtype=t.dtype).reshape(t.shape) for t in result]
        grads: list[Tensor] = [
            g
            for g in torch.autograd.grad(dot(tuple(result), tuple(weights)), [*a, *b], allow_unused=True)
            if g is not None
        ]
        assert all(g.isfinite().all() for g in grads), f"{name}: the derivative at a coincident point is not finite"


def horizontal(m: Manifold, x: Any, v: Any) -> Any:
    """v without the part that does not change what x stands for: for a quotient with a frame of the total space."""
    h, f = m.coords(x, v), m.frame(x)

    def push(t: Tensor) -> Any:
        return m._push(f, like(h, cut(t, as_tuple(h))))

    jacobian = torch.func.jacrev(lambda t: real_vector(torch.func.jvp(m.represent, (x,), (push(t),))[1]))(
        real_vector(h)
    )
    return push(torch.linalg.lstsq(jacobian, jacobian @ real_vector(h), driver="gelsd").solution)
