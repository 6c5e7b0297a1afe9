"""What every manifold must satisfy: its points, its frame, its retraction; `geodesics.py` has the rest."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from steepest.manifolds.base import OPERATIONS, Manifold
from steepest.manifolds.tensors import as_tuple, each, like
from steepest.testing.asserts import add, assert_close, assert_slope, distance, dot, norm, scale

MANIFOLD_CHECKS: list[Callable[[Case], None]] = []
"""Every check, in order; each takes a `Case`."""

ROUND_OFF = 1e-9
"""Allowed in float64: some hundred operations on entries of size one."""


def check_manifold(manifold: Manifold, shape: Any, *, seed: int = 0) -> None:
    """Run every check on points of the given shape.

    Args:
        manifold: the instance.
        shape: of one point, without batch dimensions; a tuple of shapes where `manifold.arity > 1`.
        seed: of the random points.
    """
    for dtype in dtypes(manifold):
        for check in MANIFOLD_CHECKS:
            check(Case(manifold, shape, seed, dtype))


def dtypes(manifold: Manifold) -> list[torch.dtype]:
    """The double precisions in which points of the manifold exist."""
    return [t for kind, t in (("real", torch.float64), ("complex", torch.complex128)) if kind in manifold.scalars]


def law(function: Callable[[Case], None]) -> Callable[[Case], None]:
    """Enter a check into `MANIFOLD_CHECKS`."""
    MANIFOLD_CHECKS.append(function)
    return function


@dataclasses.dataclass(frozen=True)
class Case:
    """A manifold and the shape of its points, with random things on it."""

    manifold: Manifold
    shape: Any
    seed: int = 0
    dtype: torch.dtype = torch.float64

    def generator(self) -> torch.Generator:
        """A fresh one, the same at each call."""
        return torch.Generator().manual_seed(self.seed)

    def shapes(self, batch: tuple[int, ...] = ()) -> Any:
        """The point's shape behind batch dimensions."""
        if self.manifold.arity == 1:
            return (*batch, *self.shape)
        return tuple((*batch, *s) for s in self.shape)

    def point(self, batch: tuple[int, ...] = (), dtype: torch.dtype | None = None) -> Any:
        """A random point."""
        return self.manifold.random_point(self.shapes(batch), generator=self.generator(), dtype=dtype or self.dtype)

    def another(self, batch: tuple[int, ...] = ()) -> Any:
        """A second random point."""
        g = torch.Generator().manual_seed(self.seed + 99)
        return self.manifold.random_point(self.shapes(batch), generator=g, dtype=self.dtype)

    @property
    def single(self) -> torch.dtype:
        """The single precision of the case's dtype."""
        return torch.complex64 if self.dtype.is_complex else torch.float32

    def noise(self, x: Any, seed: int = 1) -> Any:
        """Gaussian tensors of the shapes of x, with norm about one for each."""
        g = torch.Generator().manual_seed(self.seed + seed)
        parts = [torch.randn(t.shape, generator=g, dtype=t.dtype) / max(t.numel(), 1) ** 0.5 for t in as_tuple(x)]
        return like(x, parts)

    def coordinates(self, x: Any, seed: int = 2) -> Any:
        """Gaussian coordinates at x, not conforming."""
        return self.noise(self.manifold.pull(x, x), seed)

    def tangent(self, x: Any, seed: int = 2) -> Any:
        """A random tangent vector at x."""
        return self.manifold.push(x, self.coordinates(x, seed))


@law
def check_random_point(case: Case) -> None:
    """A random point is one, the same for the same generator, in the dtype asked for."""
    m, x = case.manifold, case.point()
    m.check_point(x)
    assert_close(case.point(), x, "random_point with one seed twice", 0)
    for dtype in (case.single, case.dtype):
        assert all(t.dtype == dtype for t in as_tuple(case.point(dtype=dtype))), f"random_point ignores dtype {dtype}"
    residual = m.residual(case.point((2, 3)))
    assert residual.shape == (2, 3), "residual: expected one number per batch element"
    assert not residual.is_complex(), "residual: expected real numbers"


@law
def check_names(case: Case) -> None:
    """The class is frozen, can be hashed, and returns from JSON as it was."""
    m = case.manifold
    assert dataclasses.is_dataclass(m), "a manifold is a dataclass"
    assert m.__dataclass_params__.frozen, "a manifold is frozen"
    assert hash(m) == hash(dataclasses.replace(m)), "equal manifolds hash alike"
    assert Manifold.from_spec(json.loads(json.dumps(m.to_spec()))) == m, "to_spec does not survive JSON"
    assert len(m.blocks) == len(m.owners) == len(m.block_ndims), "blocks, owners and block_ndims differ in length"


@law
def check_adjoint(case: Case) -> None:
    """<pull(x, g), h> == <g, push(x, h)>."""
    m, x = case.manifold, case.point()
    for seed in range(3):
        g, h = case.noise(x, seed), case.coordinates(x, 10 + seed)
        assert_close(dot(m.pull(x, g), h), dot(g, m.push(x, h)), "pull is not the adjoint of push", ROUND_OFF)


@law
def check_right_inverse(case: Case) -> None:
    """push(x, coords(x, v)) == v, and coords(x, v) lies in the range of pull."""
    m, x = case.manifold, case.point()
    v = case.tangent(x)
    h = m.coords(x, v)
    assert_close(m.push(x, h), v, "push(coords(v)) is not v", ROUND_OFF)
    assert_close(m.conform(x, h), h, "coords(v) is not in the range of pull", ROUND_OFF)


@law
def check_coisometry(case: Case) -> None:
    """coords(push(h)) is the orthogonal projection conform(h): isometric off the kernel, and zero on it."""
    m, x = case.manifold, case.point()
    h, k = case.coordinates(x), case.coordinates(x, 3)
    c = m.conform(x, h)
    assert_close(
        m.coords(x, m.push(x, h)), c, "coords(push(h)) is not conform(h): the frame is not orthonormal", ROUND_OFF
    )
    assert_close(m.conform(x, c), c, "conform is not idempotent", ROUND_OFF)
    assert_close(dot(c, k), dot(h, m.conform(x, k)), "conform is not self-adjoint", ROUND_OFF)
    p = m.pull(x, case.noise(x))
    assert_close(m.conform(x, p), p, "pull(g) does not conform", ROUND_OFF)
    f, tiny = m.frame(x), 1e-5
    here, there = m._move(f, scale(h, tiny)), m._move(f, scale(c, tiny))
    assert_close(here, there, "a step moves along the kernel of push", 100 * tiny**2)  # the retraction's second order


@law
def check_inner(case: Case) -> None:
    """The inner product is that of coordinates; the gradient represents the differential; linear maps are linear."""
    m, x = case.manifold, case.point()
    u, v, g = case.tangent(x), case.tangent(x, 3), case.noise(x)
    assert_close(
        m.inner(x, u, v), dot(m.coords(x, u), m.coords(x, v)), "inner is not that of the coordinates", ROUND_OFF
    )
    assert_close(m.inner(x, m.grad(x, g), v), dot(g, v), "the gradient does not represent the differential", ROUND_OFF)
    assert_close(m.norm(x, v) ** 2, m.inner(x, v, v), "norm is not the root of inner", ROUND_OFF)
    h, k = case.coordinates(x), case.coordinates(x, 3)
    mixed = add(scale(m.push(x, h), 2.0), m.push(x, k))
    assert_close(m.push(x, add(scale(h, 2.0), k)), mixed, "push is not linear", ROUND_OFF)


@law
def check_tangent(case: Case) -> None:
    """x + t push(x, h) leaves the manifold by O(t^2) only."""
    m, x = case.manifold, case.point()
    v = case.tangent(x)
    assert_slope(lambda t: m.residual(add(x, v, t)).max().item(), 2, "push(h) is not tangent: the residual of x + t v")


@law
def check_retract(case: Case) -> None:
    """retract(x, t v) = x + t v + O(t^2), on the manifold, and x for t = 0."""
    m, x = case.manifold, case.point()
    v = case.tangent(x)
    assert_close(m.retract(x, scale(v, 0.0)), x, "retract(x, 0) is not x", ROUND_OFF)
    error = lambda t: norm(add(m.retract(x, scale(v, t)), add(x, v, t), -1.0))  # noqa: E731
    assert_slope(error, 2, "retract(x, t v) - x - t v")
    y = m.retract(x, v)
    m.check_point(y, "retract(x, v)")
    assert_close(m._move(m.frame(x), m.coords(x, v)), y, "_move is not retract of push", ROUND_OFF)


@law
def check_batch(case: Case) -> None:
    """A batch gives what its elements give one by one."""
    m, x = case.manifold, case.point((2, 3))
    h, g = case.coordinates(x), case.noise(x)
    y = m.retract(x, m.push(x, h))
    calls: dict[str, Callable[..., Any]] = {
        "push": lambda x, y, g, h: m.push(x, h),
        "pull": lambda x, y, g, h: m.pull(x, g),
        "conform": lambda x, y, g, h: m.conform(x, h),
        "carry": lambda x, y, g, h: m.carry(x, y, h),
        "decay": lambda x, y, g, h: m.decay(x, h, 0.1),
        "retract": lambda x, y, g, h: m.retract(x, m.push(x, h)),
        "project": lambda x, y, g, h: m.project(add(x, g, 0.01)),
        "residual": lambda x, y, g, h: m.residual(add(x, g, 0.01)),
        "represent": lambda x, y, g, h: m.represent(x),
        "exp": lambda x, y, g, h: m.exp(x, m.push(x, h)),
        "log": lambda x, y, g, h: m.log(x, y),
        "dist": lambda x, y, g, h: m.dist(x, y),
        "transport": lambda x, y, g, h: m.transport(x, y, m.push(x, h)),
        "norm": lambda x, y, g, h: m.norm(x, m.push(x, h)),
        "hessian": lambda x, y, g, h: m.hessian(x, g, scale(g, 0.5), m.push(x, h)),
    }
    for name, call in calls.items():
        if name in m.closed or name not in ("exp", "log", "dist"):  # else these are the general methods
            whole = call(x, y, g, h)
            one = call(*(like(a, [t[1, 2] for t in as_tuple(a)]) for a in (x, y, g, h)))
            assert_close(like(whole, [t[1, 2] for t in as_tuple(whole)]), one, f"{name} of a batch", ROUND_OFF)


@law
def check_precision(case: Case) -> None:
    """float32 in, float32 out, near the float64 result."""
    m, x = case.manifold, case.point()
    g, h = case.noise(x), case.coordinates(x)
    low = [each(lambda t: t.to(case.single), a) for a in (x, g, h)]
    for name in ("pull", "push", "retract"):
        call = getattr(m, name)
        argument, narrow = (g, low[1]) if name == "pull" else (h, low[2])
        if name == "retract":
            argument, narrow = m.push(x, h), m.push(low[0], low[2])
        result = call(low[0], narrow)
        assert all(t.dtype == case.single for t in as_tuple(result)), (
            f"{name} of {case.single} is {as_tuple(result)[0].dtype}"
        )
        # single precision times the condition of a random point, at most a few thousand here
        assert_close(result, call(x, argument), f"{name} in float32", 2e-3)


@law
def check_project(case: Case) -> None:
    """project leaves points alone, brings near ones back, and does so once and for all."""
    m, x = case.manifold, case.point()
    assert_close(m.project(x), x, "project moves a point", 1e-7)
    z = add(x, case.noise(x), 0.1)
    y = m.project(z)
    m.check_point(y, "project(x + noise)")
    if distance(y, z) > 1e-3:
        assert m.residual(z).item() > 1e-6, "residual is zero off the manifold"
    assert_close(m.project(y), y, "project is not idempotent", 1e-7)


@law
def check_carry(case: Case) -> None:
    """carry is linear, gives conforming coordinates, does nothing where the point stays, and is smooth."""
    m, x = case.manifold, case.point()
    h, k = (m.conform(x, case.coordinates(x, s)) for s in (2, 3))
    y = m.retract(x, case.tangent(x, 4))
    there = m.carry(x, y, h)
    assert_close(m.conform(y, there), there, "carry(h) does not conform at the new point", ROUND_OFF)
    assert_close(m.carry(x, x, h), h, "carry to the same point changes h", ROUND_OFF)
    mixed = add(scale(there, 2.0), m.carry(x, y, k))
    assert_close(m.carry(x, y, add(scale(h, 2.0), k)), mixed, "carry is not linear", ROUND_OFF)
    if m.identity_carry:
        assert_close(there, h, "identity_carry is set, but carry changes h", 0)
    v = case.tangent(x, 5)
    error = lambda t: distance(m.carry(x, m.retract(x, scale(v, t)), h), h)  # noqa: E731
    assert_slope(error, 1, "carry does not tend to the identity")


@law
def check_many_coordinates(case: Case) -> None:
    """Coordinates may have leading dimensions that the frame has not: a solver carries all its memory at once."""
    m, x = case.manifold, case.point()
    y = m.retract(x, case.tangent(x, 4))
    several = [case.coordinates(x, s) for s in (2, 3)]
    stacked = like(several[0], [torch.stack(parts) for parts in zip(*map(as_tuple, several), strict=True)])
    for name, call in (("push", lambda h: m.push(x, h)), ("conform", lambda h: m.conform(x, h))):
        single = [as_tuple(call(h)) for h in several]
        expected = tuple(torch.stack(parts) for parts in zip(*single, strict=True))
        assert_close(as_tuple(call(stacked)), expected, f"{name} of stacked coordinates", ROUND_OFF)
    single = [as_tuple(m.carry(x, y, h)) for h in several]
    expected = tuple(torch.stack(parts) for parts in zip(*single, strict=True))
    assert_close(as_tuple(m.carry(x, y, stacked)), expected, "carry of stacked coordinates", ROUND_OFF)


@law
def check_leave(case: Case) -> None:
    """What _leave keeps of a frame carries as the frame does, and also when the point's own tensors have moved on."""
    m, x = case.manifold, case.point()
    h, y = m.conform(x, case.coordinates(x, 2)), m.retract(x, case.tangent(x, 4))
    there = m.carry(x, y, h)
    own = like(x, [t.clone() for t in as_tuple(x)])
    left = m._leave(m.frame(own))
    for t, moved in zip(as_tuple(own), as_tuple(y), strict=True):
        t.copy_(moved)
    assert_close(
        m._carry(left, m.frame(y), h), there, "_leave keeps less than _carry takes, or tensors of the point", 0
    )


@law
def check_smooth_frame(case: Case) -> None:
    """Coordinates vary smoothly with the point: no eigenbasis, no sign that flips."""
    m, x = case.manifold, case.point()
    g, v = case.noise(x), case.tangent(x)
    error = lambda t: distance(m.pull(m.retract(x, scale(v, t)), g), m.pull(x, g))  # noqa: E731
    assert_slope(error, 1, "pull(x, g) is not smooth in x")


@law
def check_refusals(case: Case) -> None:
    """A wrong number of dimensions and NaN entries are refused, and so is a point off the manifold."""
    m, x = case.manifold, case.point()
    bad = {"NaN": scale(x, float("nan"))}
    if m.residual(scale(x, 3.0)).item() > 0.1:
        bad["a point off the manifold"] = scale(x, 3.0)
    if m.ndim > 0:
        bad["a single number"] = like(x, [t.flatten()[0] for t in as_tuple(x)])
    for what, point in bad.items():
        try:
            m.check_point(point, "w")
        except ValueError as error:
            assert str(error).startswith("w"), f"the error does not name the argument: {error}"
        else:
            raise AssertionError(f"check_point accepts {what}")


@law
def check_dim(case: Case) -> None:
    """dim is the number of independent directions in which what the point stands for can move."""
    m, x = case.manifold, case.point()
    h = case.coordinates(x)
    f = m.frame(x)

    def moved(t: Tensor) -> Tensor:
        v = m._push(f, like(h, cut(t, as_tuple(h))))
        return real_vector(torch.func.jvp(m.represent, (x,), (v,))[1])

    zero = torch.zeros(real_vector(h).numel(), dtype=torch.float64)
    rank = torch.linalg.matrix_rank(torch.func.jacrev(moved)(zero), atol=1e-9, rtol=1e-9).item()
    claimed = m.dim(case.shape, "complex" if case.dtype.is_complex else "real")
    assert rank == claimed, f"dim is {claimed}, but push reaches {rank} independent directions"


@law
def check_scalars(case: Case) -> None:
    """A point with entries of the wrong kind is refused."""
    m, x = case.manifold, case.point()
    if case.dtype.is_complex or "complex" in m.scalars:
        return
    try:
        m.check_point(each(lambda t: t.to(torch.complex128), x), "w")
    except ValueError as error:
        assert str(error).startswith("w"), f"the error does not name the argument: {error}"
    else:
        raise AssertionError("check_point accepts complex entries on a real manifold")


@law
def check_operations(case: Case) -> None:
    """`closed` names operations, and what has no formula is the general method."""
    assert case.manifold.closed <= set(OPERATIONS), f"closed names what is no operation: {case.manifold.closed}"


@law
def check_decay(case: Case) -> None:
    """Decay shrinks what the point stands for by its rate, or leaves the coordinates alone."""
    m, x = case.manifold, case.point()
    h = case.coordinates(x)
    assert_close(m.decay(x, h, 0.0), h, "decay at rate 0 changes h", ROUND_OFF)
    growth = add(m.decay(x, h, 1.0), h, -1.0)
    if norm(growth) == 0:
        return
    v = m.push(x, growth)
    shrunk = lambda t: m.represent(m.retract(x, scale(v, -t)))  # noqa: E731
    if not isinstance(shrunk(0.0), tuple):  # of a product some factors shrink and some do not
        error = lambda t: norm(add(shrunk(t), scale(m.represent(x), 1 - t), -1.0))  # noqa: E731
        assert_slope(error, 2, "decay does not shrink the matrix by its rate")


def real_vector(x: Any) -> Tensor:
    """All entries as one real vector."""
    parts = [torch.view_as_real(t) if t.is_complex() else t for t in as_tuple(x)]
    return torch.cat([t.reshape(-1) for t in parts])


def cut(flat: Tensor, parts: tuple[Tensor, ...]) -> list[Tensor]:
    """The inverse of `real_vector`, in the shapes of `parts`."""
    out = []
    for t in parts:
        size = t.numel() * (2 if t.is_complex() else 1)
        piece, flat = flat[:size], flat[size:]
        out.append(torch.view_as_complex(piece.reshape(*t.shape, 2)) if t.is_complex() else piece.reshape(t.shape))
    return out
