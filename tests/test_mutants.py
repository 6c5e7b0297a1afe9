"""The suites are worth what they kill: each of these faults must fail at least one check."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from steepest import SGD, SPD, Euclidean, FixedRank, Grassmann, Muon, Sphere, Stiefel, testing
from steepest.linalg import sym
from steepest.manifolds import Manifold
from steepest.norms import Max, Norm, Rows, Spectral
from steepest.optim import OPTIMIZERS
from steepest.testing.manifold import Case
from steepest.transforms import Momentum, Transform, chain


def mutate(original, **methods):
    """A subclass with other methods that leaves no trace in the library's tables."""
    tables = [(t, dict(t)) for t in (Manifold.known, Norm.known, Transform.known, OPTIMIZERS)]
    mutant = type(original.__name__, (original,), methods)
    for table, before in tables:
        table.clear()
        table.update(before)
    if dataclasses.is_dataclass(original):
        mutant = dataclasses.dataclass(frozen=True)(mutant)
    return mutant


def run(checks, thing):
    """All checks but that of names, which no mutant passes: it bears the name of another class."""
    for check in checks:
        if check.__name__ != "check_names":
            check(thing)


def _drifting_retraction(self, x, h):
    return x + self._push(x, h)


def _unit_frame_of_canonical(self, x, g):
    xg = x.mT @ g
    return (xg - xg.mT) / 2, g - x @ xg


def _eigen_frame(self, x):
    w, v = torch.linalg.eigh(sym(x))
    return v * w.sqrt().unsqueeze(-2)


MANIFOLDS = {
    "retraction leaves the manifold": (mutate(Sphere, _move=_drifting_retraction), (5,)),
    "pull is not the adjoint": (mutate(Sphere, _pull=lambda self, x, g: g), (5,)),
    "gradient of twice the size": (mutate(Grassmann, _pull=lambda self, x, g: 2 * (g - x @ (x.mT @ g))), (5, 2)),
    "metrics mixed up": (mutate(Stiefel, _pull=_unit_frame_of_canonical), (5, 2)),
    "momentum left behind": (mutate(Grassmann, _carry=lambda self, f, to, h: h), (5, 2)),
    "frame from eigenvectors": (mutate(SPD, frame=_eigen_frame), (4, 4)),
    "first order only as second": (mutate(SPD, _decay=lambda self, f, h, rate: h + rate * f), (3, 3)),
    "geodesic of another metric": (mutate(Stiefel, exp=lambda self, x, v: Stiefel("euclidean").exp(x, v)), (5, 2)),
    "Hessian without curvature": (mutate(Sphere, hessian=lambda self, x, g, gv, v: self.grad(x, gv)), (5,)),
    "mean of entries": (mutate(SPD, mean=lambda self, points, weights=None: points.mean(0)), (3, 3)),
    "dimension of the ambient space": (mutate(Grassmann, dim=lambda self, shape, scalars="real": 10), (5, 2)),
    "log twice as long": (mutate(Grassmann, log=lambda self, x, y: 2 * Grassmann.log(self, x, y)), (5, 2)),
    "closed names no operation": (mutate(Sphere, closed=frozenset({"volume"})), (5,)),
    "distance without root": (mutate(SPD, dist=lambda self, x, y: SPD.dist(self, x, y) ** 2), (3, 3)),
    "transport by doing nothing": (mutate(SPD, transport=lambda self, x, y, v: v), (3, 3)),
    "batch mixed": (mutate(Sphere, project=lambda self, x: x / x.norm()), (5,)),
    "residual always zero": (mutate(Stiefel, residual=lambda self, x: 0 * x.sum((-2, -1))), (5, 2)),
    "factors swapped": (mutate(FixedRank, _carry=lambda self, f, to, h: (h[0] * 2, h[1] / 2)), ((5, 2), (2, 4))),
}


@pytest.mark.parametrize("fault", MANIFOLDS)
def test_manifold_suite_kills(fault):
    family, shape = MANIFOLDS[fault]
    instance = family("canonical") if family.__name__ == "Stiefel" and "metric" in fault else family()
    with pytest.raises((AssertionError, ValueError)):
        run(testing.MANIFOLD_CHECKS, Case(instance, shape))


def _sign_by_parts(self, g):
    return torch.complex(g.real.sign(), g.imag.sign()) if g.is_complex() else g.sign()


NORMS = {
    "complex sign by parts": mutate(Max, dual=_sign_by_parts),
    "conjugate forgotten": mutate(Spectral, dual=lambda self, g: Spectral.dual(self, g.conj())),
    "modulus forgotten": mutate(Rows, value=lambda self, h: h.real.norm(dim=-1).amax(-1)),
    "complex numbers refused without a word": mutate(Max, dual=lambda self, g: g.sign()),
}


@pytest.mark.parametrize("fault", NORMS)
def test_norm_suite_kills(fault):
    with pytest.raises((AssertionError, RuntimeError)):
        run(testing.NORM_CHECKS, NORMS[fault]())


MEMORY: list[float] = []


def _remembers_elsewhere(self, h, state, ctx):
    MEMORY.append(1.0)
    return h * len(MEMORY)


def _writes_input(self, h, state, ctx):
    return h.mul_(2)


def _global_norm(self, h, state, ctx):
    return h / h.norm()


def _parts_of_a_mark(self, h, state, ctx):
    return torch.view_as_complex(2 * torch.view_as_real(h)) if h.is_complex() else 2 * h


def _divides_by_zero(self, h, state, ctx):
    return h / h.abs().amax((-1,), keepdim=True)


TRANSFORMS = {
    "memory outside of the state": mutate(Momentum, update=_remembers_elsewhere),
    "input written": mutate(Momentum, update=_writes_input),
    "batch mixed": mutate(Momentum, update=_global_norm),
    "lazy conjugate": mutate(Momentum, update=_parts_of_a_mark),
    "zero divided": mutate(Momentum, update=_divides_by_zero),
    "state without batch": mutate(Momentum, init=lambda self, h, ctx: {"buffer": h.new_zeros(h.shape[1:])}),
}


@pytest.mark.parametrize("fault", TRANSFORMS)
def test_transform_suite_kills(fault):
    with pytest.raises((AssertionError, RuntimeError)):
        run(testing.TRANSFORM_CHECKS, TRANSFORMS[fault]())


def _step_ignoring_maximize(self, closure=None):
    for group in self.param_groups:
        group["maximize"] = False
    return SGD.step(self, closure)


def _step_writing_gradients(self, closure=None):
    for group in self.param_groups:
        for p in group["params"]:
            if p.grad is not None:
                p.grad.add_(1e-3)
    return SGD.step(self, closure)


def _step_with_hidden_memory(self, closure=None):
    self.count = getattr(self, "count", 0) + 1
    for group in self.param_groups:
        group["lr"] *= 1 + 0.01 * self.count
    out = SGD.step(self, closure)
    for group in self.param_groups:
        group["lr"] /= 1 + 0.01 * self.count
    return out


def _step_letting_nan_through(self, closure=None):
    for group in self.param_groups:
        group["nonfinite"] = "ignore"
    return SGD.step(self, closure)


class _Backwards(Transform):
    def update(self, h, state, ctx):
        return -h

    @classmethod
    def examples(cls):
        return []


Transform.known.pop("_Backwards")

OPTIMIZERS_AT_FAULT = {
    "maximize ignored": mutate(SGD, step=_step_ignoring_maximize),
    "gradients written": mutate(SGD, step=_step_writing_gradients),
    "memory outside of the state": mutate(SGD, step=_step_with_hidden_memory),
    "NaN let through": mutate(SGD, step=_step_letting_nan_through),
    "ascent": mutate(Muon, matrix_chain=lambda self, group: chain(Momentum(0.0), _Backwards())),
}


FEW = [(Euclidean(), (5, 3)), (Stiefel(), (5, 2)), (FixedRank(), ((5, 2), (2, 4)))]
"""A mutant that survives on these survives on all; the suite's time goes into places."""


def run_optimizer(factory):
    for check in testing.OPTIMIZER_CHECKS:
        check(factory, [(m, s, torch.float64) for m, s in FEW])


@pytest.mark.parametrize("fault", OPTIMIZERS_AT_FAULT)
def test_optimizer_suite_kills(fault):
    with pytest.raises((AssertionError, ValueError)):
        run_optimizer(OPTIMIZERS_AT_FAULT[fault])


def test_what_is_right_survives():
    run(testing.MANIFOLD_CHECKS, Case(mutate(Sphere)(), (5,)))
    run(testing.NORM_CHECKS, mutate(Spectral)())
    run(testing.TRANSFORM_CHECKS, mutate(Momentum)())
    run_optimizer(mutate(SGD))
