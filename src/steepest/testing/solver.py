"""What every method of `minimize` must satisfy."""

from __future__ import annotations

import dataclasses
import json
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from steepest.linalg.precision import widen
from steepest.manifolds import SPD, Euclidean, FixedRank, Grassmann, Manifold, Product, Sphere, Stiefel
from steepest.manifolds.tensors import as_tuple, each
from steepest.solvers import Method, Result, minimize
from steepest.testing.asserts import assert_close

SOLVER_CHECKS: list[Callable[[Method], None]] = []
"""Every check, in order."""

PLACES: list[tuple[Manifold, Any]] = [
    (Euclidean(), (3, 2)),
    (Sphere(), (5,)),
    (Stiefel(), (5, 2)),
    (Grassmann(), (5, 2)),
    (SPD(), (3, 3)),
    (SPD("bures-wasserstein"), (2, 2)),
    (FixedRank(), ((4, 1), (1, 3))),
    (Product((Stiefel("canonical"), Euclidean(1))), ((4, 2), (3,))),
]
"""Manifolds and shapes of their points: with and without a kernel of the frame, quotients, one to three blocks."""

GAP = {0: 1e-3, 1: 1e-8, 2: 1e-12}
"""How far above the optimum, zero, a method of each order may end: without derivatives only as far as values tell."""


def _gap(method: Method) -> float:
    return GAP[method.order] if method.accuracy is None else method.accuracy


def check_solver(method: Method) -> None:
    """Run every check.

    >>> from steepest.solvers import LBFGS
    >>> from steepest.testing import check_solver
    >>> check_solver(LBFGS(memory=3))
    """
    for check in SOLVER_CHECKS:
        check(method)


def _check(function: Callable[[Method], None]) -> Callable[[Method], None]:
    SOLVER_CHECKS.append(function)
    return function


class Target:
    """Half the squared distance, in the matrices that points stand for, to a point not far from the start: zero at the
    optimum, and without another one on the way."""

    def __init__(self, manifold: Manifold, shape: Any, dtype: torch.dtype = torch.float64, batch: int = 0) -> None:
        generator = torch.Generator().manual_seed(1)
        if batch:
            shape = (batch, *shape) if manifold.arity == 1 else tuple((batch, *s) for s in shape)
        self.manifold = manifold
        self.x0 = manifold.random_point(shape, dtype=torch.float64, generator=generator)
        v = manifold.random_tangent(self.x0, generator=generator)
        size = float(manifold.norm(self.x0, v).max())
        goal = manifold.retract(self.x0, each(lambda t: 0.6 / max(size, 1e-9) * t, v))
        self.goal = [t.to(dtype) for t in as_tuple(manifold.represent(goal))]
        self.x0 = each(lambda t: t.to(dtype), self.x0)

    def __call__(self, x: Any) -> Tensor:
        """The function."""
        pairs = zip(as_tuple(self.manifold.represent(x)), self.goal, strict=True)
        return torch.stack([(a - b).abs().square().sum() for a, b in pairs]).sum() / 2


def places(method: Method) -> list[tuple[Manifold, Any]]:
    """Those of `PLACES` on which it works."""
    found = [(m, shape) for m, shape in PLACES if not method.fault(m, Target(m, shape).x0)]
    assert found, f"{method} works on none of {[m for m, _ in PLACES]}: {[method.fault(*_point(p)) for p in PLACES]}"
    return found


def _point(place: tuple[Manifold, Any]) -> tuple[Manifold, Any]:
    return place[0], Target(*place).x0


def _run(method: Method, target: Target, iterations: int = 300, **options: Any) -> Result:
    return minimize(target, target.x0, target.manifold, method, max_iterations=iterations, **options)


@_check
def check_optimum(method: Method) -> None:
    """It gets there, stays on the manifold, and says truly what it has found."""
    for m, shape in places(method):
        target = Target(m, shape)
        tolerance = 1e-7 if method.order == 2 else 1e-5
        result = _run(method, target, 2000, tolerance=tolerance)
        gap = _gap(method)
        assert result.value <= gap, f"{method} on {m}: ends at {result.value:.2g}, allowed {gap:.0g}\n{result}"
        assert math.isclose(result.value, float(target(result.x)), rel_tol=1e-6, abs_tol=1e-14), "value of x"
        assert m.residual(result.x).max() < 1e-10, f"{method} leaves {m}"  # rounding of float64, and some steps of it
        lowest = min(r.value for r in result.history)
        assert result.value <= lowest * (1 + 1e-14), "a better point was lost"  # the gradient decides among roundings
        assert [r.iteration for r in result.history] == list(range(result.iterations + 1)), "history has gaps"
        if method.order:
            assert result.success == (result.gradient_norm <= tolerance), str(result)


@_check
def check_start_is_kept(method: Method) -> None:
    """x0 and torch's own generator are as they were; two runs are the same."""
    for m, shape in places(method)[:2]:
        target = Target(m, shape)
        before, random = [t.clone() for t in as_tuple(target.x0)], torch.get_rng_state()
        first, second = _run(method, target, 5), _run(method, target, 5)
        assert all(torch.equal(a, b) for a, b in zip(before, as_tuple(target.x0), strict=True)), "x0 was changed"
        assert torch.equal(random, torch.get_rng_state()), "torch's own generator was used"
        assert_close(first.x, second.x, "two runs from one seed", 0)


@_check
def check_resume(method: Method) -> None:
    """A run that was broken off goes on to the very numbers of the unbroken one."""
    with tempfile.TemporaryDirectory() as folder:
        for i, (m, shape) in enumerate(places(method)):
            target, path = Target(m, shape), Path(folder) / f"{i}.pt"
            whole = _run(method, target, 7, tolerance=0.0)
            _run(method, target, 3, tolerance=0.0, checkpoint=path)
            resumed = _run(method, target, 7, tolerance=0.0, checkpoint=path)
            assert [r[:3] for r in whole.history] == [r[:3] for r in resumed.history] or method.order == 0, "history"
            assert_close(whole.x, resumed.x, f"{method} on {m}: resumed", 0)


@_check
def check_not_a_number(method: Method) -> None:
    """Where the function is not defined nothing is accepted."""
    for m, shape in places(method)[:3]:
        target = Target(m, shape)
        start = float(target(target.x0))

        def partial(x: Any, target: Target = target, start: float = start) -> Tensor:
            value = target(x)
            return torch.where(value < start / 4, torch.nan, value)

        result = minimize(partial, target.x0, m, method, max_iterations=30)
        assert math.isfinite(result.value), f"{method} on {m}: accepted NaN"
        assert result.value <= start * (1 + 1e-9), f"{method} on {m}: ended above the start"
        assert all(t.isfinite().all() for t in as_tuple(result.x)), f"{method} on {m}: x is not finite"


@_check
def check_precision(method: Method) -> None:
    """It works in float32, and half precisions are computed with, and come back, in float32."""
    for m, shape in places(method)[:3]:
        for dtype in (torch.float32, torch.bfloat16):
            target = Target(m, shape, dtype)
            target.x0 = m.project(each(widen, target.x0))
            result = _run(method, target, 200, tolerance=1e-3)
            assert all(t.dtype == torch.float32 for t in as_tuple(result.x)), "dtype"
            assert result.value < 0.05 * float(target(target.x0)), f"{method} on {m} in {dtype}: {result}"


@_check
def check_batch(method: Method) -> None:
    """Leading dimensions are a product of manifolds."""
    for m, shape in places(method)[:3]:
        target = Target(m, shape, batch=2)
        result = _run(method, target, 1000, tolerance=1e-5)
        limit = max(_gap(method), 1e-8) * (10 if method.order == 0 else 1)  # more dimensions for values to search
        assert result.value <= limit, f"{method} on a batch of {m}: {result}"


@_check
def check_limits(method: Method) -> None:
    """Limits and callbacks end it."""
    m, shape = places(method)[0]
    target = Target(m, shape)
    short = _run(method, target, 2, tolerance=0.0)
    assert short.iterations <= 2
    assert not short.success or short.gradient_norm == 0 or not method.order  # which tells by itself when it is over
    assert _run(method, target, 50, tolerance=0.0, max_evaluations=1).iterations <= 1
    ended = _run(method, target, 50, tolerance=0.0, callback=lambda record, x: record.iteration == 1)
    assert ended.iterations == 1, "the callback"


@_check
def check_spec(method: Method) -> None:
    """It can be written down as JSON and built again, it cannot be changed, and it says what it is."""
    again = Method.from_spec(json.loads(json.dumps(method.to_spec())))
    assert again == method, f"{method} came back as {again}"
    assert repr(again) == repr(method), f"{method} came back as {again}"
    assert dataclasses.is_dataclass(method)
    for field in dataclasses.fields(method):
        try:
            setattr(method, field.name, None)
        except dataclasses.FrozenInstanceError:
            continue
        raise AssertionError(f"{type(method).__name__} is not frozen")
