"""The common suites on everything that a walk through the package finds."""

import pytest

from steepest import testing
from steepest.testing.manifold import Case, dtypes

MANIFOLDS = [(m, s, t) for m, s in testing.manifolds() for t in dtypes(m)]
NAMES = [f"{m}-{s}-{'complex' if t.is_complex else 'real'}" for m, s, t in MANIFOLDS]


@pytest.mark.parametrize("check", testing.MANIFOLD_CHECKS, ids=lambda f: f.__name__)
@pytest.mark.parametrize(("manifold", "shape", "dtype"), MANIFOLDS, ids=NAMES)
def test_manifold(manifold, shape, dtype, check):
    check(Case(manifold, shape, dtype=dtype))


@pytest.mark.parametrize("check", testing.NORM_CHECKS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("norm", testing.norms(), ids=str)
def test_norm(norm, check):
    check(norm)


@pytest.mark.parametrize("check", testing.TRANSFORM_CHECKS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("transform", testing.transforms(), ids=str)
def test_transform(transform, check):
    check(transform)


@pytest.mark.parametrize("check", testing.OPTIMIZER_CHECKS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", testing.optimizers())
def test_optimizer(name, check):
    check(testing.optimizers()[name])
