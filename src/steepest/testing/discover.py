"""Every implementation, found by walking the package."""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING, Any

from steepest.bases import Basis
from steepest.curvature import PRECONDITIONERS, LayerPreconditioner
from steepest.manifolds import Manifold
from steepest.norms import Norm
from steepest.optim import OPTIMIZERS, Optimizer
from steepest.projectors import Projector
from steepest.solvers import Method
from steepest.transforms import Transform

if TYPE_CHECKING:
    from steepest.adapters import Adapter


def _walk(package: str) -> None:
    """Import every module of a subpackage, so that its classes have entered their family."""
    path = importlib.import_module(f"steepest.{package}").__path__
    for module in pkgutil.walk_packages(path, f"steepest.{package}."):
        importlib.import_module(module.name)


def manifolds() -> list[tuple[Manifold, Any]]:
    """Every example of every manifold: the instance and the shape of its points."""
    _walk("manifolds")
    return [example for _, family in sorted(Manifold.known.items()) for example in family.examples()]


def norms() -> list[Norm]:
    """Every example of every norm."""
    _walk("norms")
    return [example for _, family in sorted(Norm.known.items()) for example in family.examples()]


def transforms() -> list[Transform]:
    """Every example of every transform."""
    _walk("transforms")
    return [example for _, family in sorted(Transform.known.items()) for example in family.examples()]


def bases() -> list[Basis]:
    """Every example of every basis."""
    _walk("bases")
    return [example for _, family in sorted(Basis.known.items()) for example in family.examples()]


def projectors() -> list[Projector]:
    """Every example of every projector."""
    _walk("projectors")
    return [example for _, family in sorted(Projector.known.items()) for example in family.examples()]


def solvers() -> list[Method]:
    """Every example of every method of `minimize`."""
    _walk("solvers")
    return [example for _, family in sorted(Method.known.items()) for example in family.examples()]


def preconditioners() -> list[tuple[type[LayerPreconditioner], dict[str, Any]]]:
    """Every preconditioner of layers with the options of each of its examples."""
    _walk("curvature")
    return [(family, options) for _, family in sorted(PRECONDITIONERS.items()) for options in family.examples()]


def adapters() -> list[Adapter]:
    """Every example of every adapter; this imports PEFT, if it is installed."""
    _walk("adapters")
    from steepest.adapters import Adapter

    return [example for _, family in sorted(Adapter.known.items()) for example in family.examples()]


def optimizers() -> dict[str, type[Optimizer]]:
    """Every optimiser by its name, but those that take a required option besides the parameters."""
    _walk("optim")
    return {name: family for name, family in sorted(OPTIMIZERS.items()) if name != "composed"}
