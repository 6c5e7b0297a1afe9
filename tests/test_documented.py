"""Every public name is described and has an example, and all examples run."""

import doctest
import importlib
import inspect
import pkgutil

import pytest
import torch

import steepest
from steepest import (
    adapters,
    bases,
    curvature,
    linalg,
    manifolds,
    norms,
    optim,
    projectors,
    solvers,
    testing,
    transforms,
)

PUBLIC = [
    getattr(m, n)
    for m in (steepest, bases, manifolds, norms, optim, projectors, curvature, solvers, adapters)
    for n in m.__all__
]
CLASSES = sorted({c for c in PUBLIC if inspect.isclass(c)}, key=lambda c: c.__name__)
ABSTRACT = {
    "Manifold",
    "Norm",
    "Projector",
    "LayerPreconditioner",
    "Rescale",
    "Structure",
    "Basis",
    "Adapter",
    "Method",
    "LineSearch",
    "ConstrainedMethod",
    "Region",
    "Iterate",
    "Record",
    "Stop",
    "AdapterConfig",
    "Moment",
    "Optimizer",
    "RoleOptimizer",
    "MatrixOptimizer",
    "Constraint",
    "Shared",
    "MatrixShared",
}
MODULES = [
    name
    for package in (
        linalg,
        bases,
        manifolds,
        norms,
        projectors,
        transforms,
        optim,
        curvature,
        solvers,
        adapters,
        testing,
    )
    for name in [package.__name__, *(m.name for m in pkgutil.walk_packages(package.__path__, package.__name__ + "."))]
]


@pytest.mark.parametrize("module", MODULES)
def test_examples_run(module):
    names = {n: getattr(steepest, n) for n in steepest.__all__} | {"torch": torch}
    torch.manual_seed(0)
    flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    result = doctest.testmod(importlib.import_module(module), extraglobs=names, optionflags=flags)
    assert result.failed == 0


@pytest.mark.parametrize("thing", CLASSES, ids=lambda c: c.__name__)
def test_class_has_an_example(thing):
    assert thing.__doc__
    assert ">>>" in thing.__doc__ or thing.__name__ in ABSTRACT


def test_public_functions_have_examples():
    functions = [f for f in PUBLIC if inspect.isfunction(f)]
    assert len(functions) >= 4
    for function in functions:
        assert function.__doc__, function.__name__
    missing = {f.__name__ for f in functions if ">>>" not in f.__doc__}
    assert missing <= {"constraints"}, missing
