"""Nelder and Mead's simplex and the particle swarm: what is special about methods that take values alone."""

import math

import pytest
import torch

from steepest import SPD, Euclidean, FixedRank, Grassmann, Product, Sphere, Stiefel, minimize
from steepest.manifolds.tensors import as_tuple
from steepest.solvers import NelderMead, ParticleSwarm, Problem
from steepest.solvers.nelder_mead import _basis
from steepest.testing.solver import Target


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


METHODS = [NelderMead(), ParticleSwarm(particles=20, tolerance=1e-4)]


@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
def test_functions_of_anything_will_do(method):
    """numpy, whole numbers, Python's own: the function sees plain tensors, and its value has no graph."""
    goal = torch.tensor([0.6, 0.0, 0.8]).numpy()
    seen = []

    def fun(x):
        seen.append(x.requires_grad)
        return torch.tensor(float(abs(x.numpy() - goal).max()), dtype=torch.float32)

    result = minimize(fun, torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64), Sphere(), method)
    assert result.value < 2e-3  # the corner of a maximum, which neither follows exactly
    assert not any(seen)
    assert len(seen) - result.evaluations.values == isinstance(method, ParticleSwarm)  # the attempt to map it
    assert result.evaluations.gradients == 0
    assert math.isnan(result.gradient_norm)


@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
def test_no_gradient_is_computed(method):
    """A backward formula that raises is never called."""

    class Refuses(torch.autograd.Function):
        @staticmethod
        def forward(x):
            return x.square().sum()

        @staticmethod
        def setup_context(ctx, inputs, output):
            pass

        @staticmethod
        def vmap(info, dims, x):
            return x.square().flatten(1).sum(1), 0

        @staticmethod
        def backward(ctx, g):
            raise AssertionError("a gradient was asked for")

    result = minimize(lambda x: Refuses.apply(x - 1), torch.zeros(2, 1, dtype=torch.float64), method=method)
    assert result.success
    assert result.value < 1e-6  # the coarser tolerance squared, and room


# The simplex. ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("manifold", "shape"),
    [
        (Euclidean(), (2, 3)),
        (Sphere(), (2, 4)),
        (Stiefel("canonical"), (5, 2)),
        (Grassmann(), (5, 2)),
        (SPD(), (3, 3)),
        (SPD("bures-wasserstein"), (3, 3)),
        (FixedRank(), ((4, 2), (2, 3))),
        (Product((Grassmann(), Euclidean(1))), ((4, 2), (3,))),
    ],
    ids=str,
)
def test_the_simplex_spans_the_tangent_space(manifold, shape):
    x = manifold.random_point(shape, dtype=torch.float64, generator=generator())
    at = Problem(lambda x: torch.zeros(()), manifold).at(x)
    basis = _basis(at)
    batch = 2 if manifold == Sphere() else 1
    one = shape[-1:] if manifold == Sphere() else shape
    assert len(basis) == batch * manifold.dim(one)
    eye = torch.eye(len(basis), dtype=basis.dtype)
    torch.testing.assert_close(basis @ basis.mT, eye, atol=1e-12, rtol=0)  # rounding of an eigendecomposition
    torch.testing.assert_close(at.conform(basis), basis, atol=1e-12, rtol=0)


def test_complex_points():
    """The largest eigenvector of a Hermitian matrix."""
    a = torch.randn(3, 3, dtype=torch.complex128, generator=generator())
    a = a + a.mH
    x0 = torch.eye(3, 1, dtype=torch.complex128)
    for method in METHODS:
        result = minimize(lambda x: -(x.mH @ a @ x).real.squeeze(), x0, Stiefel(), method)
        assert abs(result.value + float(torch.linalg.eigvalsh(a)[-1])) < 1e-6, method


@pytest.mark.slow
def test_adaptive_factors_help_in_many_dimensions():
    """Gao and Han 2012, section 4: on a quadratic in 16 dimensions the standard factors are slower in the end."""
    scales = torch.linspace(1, 10, 16, dtype=torch.float64)

    def end(adaptive):
        method = NelderMead(adaptive=adaptive, size=1.0)
        start = torch.ones(16, dtype=torch.float64)
        return minimize(lambda x: (scales * x**2).sum(), start, Euclidean(1), method, max_iterations=1500).value

    assert end(True) < 1e-2 * end(False)  # measured: 1e-5


def test_the_simplex_crosses_the_manifold():
    """From near one pole to the other: the retraction at x0 covers half of the sphere, so the base must move."""
    goal = torch.tensor([0.0, 0.0, -1.0], dtype=torch.float64)
    x0 = torch.tensor([0.1, 0.0, math.sqrt(0.99)], dtype=torch.float64)
    result = minimize(lambda x: (x - goal).square().sum(), x0, Sphere(), NelderMead(size=0.1))
    assert result.success
    assert result.value < 1e-12


def test_a_flat_function_ends_truthfully():
    result = minimize(lambda x: torch.ones(()), torch.zeros(2, 2), method="NelderMead")
    assert not result.success
    assert "same, up to rounding" in result.reason
    assert result.evaluations.values == 11, "the corners; a reflection, a contraction, and the others shrunk"


def test_too_many_coordinates():
    with pytest.raises(ValueError, match=r"2000 coordinates squared.*ParticleSwarm"):
        minimize(lambda x: x.square().sum(), torch.ones(40, 50), method="NelderMead")


# The swarm. -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["NelderMead", "ParticleSwarm"])
def test_a_single_number(method):
    """From zero the simplex comes to lie evenly around the minimum, with one value at both ends."""
    result = minimize(lambda x: (x - 2) ** 2, torch.zeros((), dtype=torch.float64), method=method)
    assert result.success
    assert abs(result.x - 2) < 1e-6  # some times the tolerance of both, ten roots of the precision


def test_all_particles_in_one_call_or_one_after_the_other():
    """The same run, whether torch.vmap takes the function or not; that is found out once."""
    target = Target(Product((Stiefel(), Euclidean(1))), ((4, 2), (3,)))
    calls = []

    def picky(x):
        calls.append(None)
        return torch.as_tensor(float(target(x)), dtype=torch.float64)  # a number: nothing for vmap

    method = ParticleSwarm(particles=10)
    runs = [minimize(f, target.x0, target.manifold, method, max_iterations=4) for f in (target, picky)]
    for a, b in zip(*(as_tuple(run.x) for run in runs), strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=0)  # values may round differently in a batch
    assert runs[0].evaluations.values == runs[1].evaluations.values == 1 + 5 * 10
    assert len(calls) == 1 + 1 + 5 * 10  # x0, the attempt to map, the particles


def test_the_swarm_leaves_a_valley():
    """Rastrigin's function has a minimum near every pair of whole numbers; from (3, -2) slopes lead to the nearest."""

    def rastrigin(x):
        return (x**2 - 10 * torch.cos(2 * math.pi * x) + 10).sum()

    x0 = torch.tensor([3.0, -2.0], dtype=torch.float64)
    assert minimize(rastrigin, x0, Euclidean(1), "LBFGS").value > 1
    result = minimize(rastrigin, x0, Euclidean(1), ParticleSwarm(spread=3.0))
    assert result.success
    assert result.value < 1e-10  # 200 times the tolerance squared


@pytest.mark.parametrize("manifold", [Sphere(), SPD(), Grassmann()], ids=str)
def test_logarithms_lead_there_as_well(manifold):
    shape = (5,) if manifold == Sphere() else (3, 3) if manifold == SPD() else (4, 2)
    target = Target(manifold, shape)
    result = minimize(target, target.x0, manifold, ParticleSwarm(particles=20, log=True, tolerance=1e-4))
    assert result.success
    assert result.value < 1e-6


def test_the_representative_of_a_subspace_does_not_matter():
    """On a quotient, particles are drawn to subspaces, in whatever basis."""
    from steepest.manifolds.geodesic import towards

    m = Grassmann()
    x, y = (m.random_point((3, 5, 2), dtype=torch.float64, generator=generator(s)) for s in (1, 2))
    turn = torch.linalg.qr(torch.randn(2, 2, dtype=torch.float64, generator=generator(3)))[0]
    torch.testing.assert_close(towards(m, x, y @ turn), towards(m, x, y), atol=1e-3, rtol=0)  # the inner tolerance


def test_particles_that_leave_the_finite_numbers_stay():
    """A spread far too wide on SPD overflows the exponential, and does no harm."""
    target = Target(SPD(), (2, 2))
    result = minimize(target, target.x0, SPD(), ParticleSwarm(spread=500.0, particles=10), max_iterations=20)
    assert math.isfinite(result.value)
    assert result.value <= float(target(target.x0))


@pytest.mark.parametrize(
    ("option", "value"),
    [("particles", 1), ("inertia", 1.0), ("social", -1.0), ("spread", 0.0), ("tolerance", math.nan), ("patience", 0)],
)
def test_options_of_the_swarm(option, value):
    with pytest.raises(ValueError, match=option):
        ParticleSwarm(**{option: value})


@pytest.mark.parametrize(("option", "value"), [("size", 0.0), ("tolerance", -1.0), ("recentre", 0)])
def test_options_of_the_simplex(option, value):
    with pytest.raises(ValueError, match=option):
        NelderMead(**{option: value})
