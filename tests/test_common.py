"""The common suites on everything that a walk through the package finds."""

import pytest

from steepest import testing
from steepest.testing.manifold import Case

MANIFOLDS = testing.manifolds()


@pytest.mark.parametrize("check", testing.MANIFOLD_CHECKS, ids=lambda f: f.__name__)
@pytest.mark.parametrize(("manifold", "shape"), MANIFOLDS, ids=[f"{m}-{s}" for m, s in MANIFOLDS])
def test_manifold(manifold, shape, check):
    check(Case(manifold, shape))


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
