"""The common suites on everything that a walk through the package finds."""

import functools

import pytest

from steepest import testing
from steepest.testing.manifold import Case, dtypes

SHOOTING = {"check_exp", "check_geodesic", "check_log", "check_dist", "check_hessian", "check_transport"}
"""Checks that integrate and shoot along geodesics where no formula is known."""
FAR = {"SpectralSphere", "SymplecticStiefel"}, {"MeanKernel"}
"""Manifolds and metrics whose geodesics take many steps: tens of seconds, so they are shot in the long run only."""


def _cases():
    """Every example with every check; what shoots, in the common run, on the first example of each class only."""
    seen = set()
    for m, shape in testing.manifolds():
        for dtype in dtypes(m):
            metric = getattr(m, "metric", None)
            again = (type(m), metric) in seen or type(m).__name__ in FAR[0] or type(metric).__name__ in FAR[1]
            for check in testing.MANIFOLD_CHECKS:
                shoots = check.__name__ in SHOOTING and not {"exp", "log"} <= m.closed
                marks = [pytest.mark.slow] if again and shoots else []
                kind = "complex" if dtype.is_complex else "real"
                yield pytest.param(m, shape, dtype, check, marks=marks, id=f"{m}-{shape}-{kind}-{check.__name__}")
            seen.add((type(m), metric))


@pytest.mark.parametrize(("manifold", "shape", "dtype", "check"), list(_cases()))
def test_manifold(manifold, shape, dtype, check):
    check(Case(manifold, shape, dtype=dtype))


@pytest.mark.parametrize("check", testing.NORM_CHECKS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("norm", testing.norms(), ids=str)
def test_norm(norm, check):
    check(norm)


@pytest.mark.parametrize("check", testing.BASIS_CHECKS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("basis", testing.bases(), ids=str)
def test_basis(basis, check):
    check(basis)


@pytest.mark.parametrize("check", testing.PROJECTOR_CHECKS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("projector", testing.projectors(), ids=str)
def test_projector(projector, check):
    check(projector)


LONG = {"CubicNewton", "FrankWolfe", "NelderMead", "NystromNewton", "ParticleSwarm", "ZerothOrderFrankWolfe"}
"""Methods of many, or of dear, steps: in the common run they show that they get there, and the cheap things."""


def _solvers():
    """Every example with every check; in the common run the first of each class."""
    seen = set()
    for method in testing.solvers():
        for check in testing.SOLVER_CHECKS:
            short = check.__name__ in ("check_optimum", "check_limits", "check_spec")
            long = type(method) in seen or (type(method).__name__ in LONG and not short)
            marks = [pytest.mark.slow] if long and check.__name__ != "check_spec" else []
            yield pytest.param(method, check, marks=marks, id=f"{method}-{check.__name__}")
        seen.add(type(method))


@pytest.mark.parametrize(("method", "check"), list(_solvers()))
def test_solver(method, check):
    check(method)


def _preconditioners():
    """Every example; in the common run the first two of each class."""
    seen = []
    for family, options in testing.preconditioners():
        said = ",".join(f"{k}={v}" for k, v in options.items() if not callable(v))
        marks = [pytest.mark.slow] if seen.count(family) > 1 else []
        seen.append(family)
        yield pytest.param(functools.partial(family, **options), marks=marks, id=f"{family.__name__}({said})")


@pytest.mark.parametrize("check", testing.PRECONDITIONER_CHECKS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("make", list(_preconditioners()))
def test_preconditioner(make, check):
    check(make)


@pytest.mark.parametrize("check", testing.TRANSFORM_CHECKS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("transform", testing.transforms(), ids=str)
def test_transform(transform, check):
    check(transform)


def _names():
    """Every optimiser; one that is another under other defaults in the long run only."""
    known = testing.optimizers()
    for name, family in known.items():
        derived = any(base in known.values() for base in family.__mro__[1:])
        yield pytest.param(name, marks=[pytest.mark.slow] if derived else [])


ENGINE = ("check_gradients_untouched", "check_half_precision", "check_torch_interface", "check_refusals")
"""Checks of what the engine does for all of them."""


def _checks():
    for check in testing.OPTIMIZER_CHECKS:
        marks = [pytest.mark.of_each_kind] if check.__name__ in ENGINE else []
        yield pytest.param(check, marks=marks, id=check.__name__)


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["kinds", "every manifold"])
@pytest.mark.parametrize("check", list(_checks()))
@pytest.mark.parametrize("name", list(_names()))
def test_optimizer(name, check, every):
    optimizer, places = testing.optimizers()[name], testing.places(every)
    if not every and check.__name__ != "check_descends":  # every second kind, and the others for the next optimiser
        places = places[list(testing.optimizers()).index(name) % 2 :: 2]
    check(functools.partial(optimizer, **optimizer.in_suite), places)
