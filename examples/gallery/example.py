"""What a problem of the gallery is: a function on a manifold whose minimum is known by other means."""

from __future__ import annotations

import abc
import argparse
import functools
import importlib
import inspect
import math
import pathlib
from typing import Any

import torch
from torch import Tensor

from steepest import Manifold, minimize
from steepest.solvers import Result


class Example(abc.ABC):
    """A problem with its answer: a frozen dataclass whose fields are its size and its seed.

    `manifold`, `x0` and `fun` are what `minimize` takes; `optimum` and `error` come from another algorithm, which knows
    nothing of manifolds: a decomposition, a fixed-point iteration, a certificate. All is in float64.
    """

    @property
    @abc.abstractmethod
    def manifold(self) -> Manifold:
        """Where points live."""

    @property
    @abc.abstractmethod
    def x0(self) -> Any:
        """Where to start."""

    @abc.abstractmethod
    def fun(self, x: Any) -> Tensor:
        """The function to be minimised."""

    @property
    @abc.abstractmethod
    def optimum(self) -> float:
        """Its least value, by other means."""

    @abc.abstractmethod
    def error(self, x: Any) -> float:
        """How far the point is from the known solution, or from satisfying what proves it one; zero at the best."""

    @classmethod
    @abc.abstractmethod
    def tiny(cls) -> list[Example]:
        """Instances that are solved in milliseconds."""

    @classmethod
    @abc.abstractmethod
    def medium(cls) -> list[Example]:
        """Instances that are worth a clock."""

    @functools.cached_property
    def start(self) -> float:
        """The function at `x0`."""
        return float(self.fun(self.x0))

    def gap(self, value: float) -> float:
        """How much of the way from the start to the optimum is left."""
        return (value - self.optimum) / (self.start - self.optimum)

    def solve(self, method: Any = "LBFGS", **options: Any) -> Result:
        """`minimize` it."""
        return minimize(self.fun, self.x0, self.manifold, method, **options)

    @property
    def generator(self) -> torch.Generator:
        """Seeded by the field of that name."""
        return torch.Generator().manual_seed(self.seed)  # type: ignore[attr-defined]


def randn(*shape: int, generator: torch.Generator) -> Tensor:
    """Normal numbers in float64."""
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def random_spd(k: int, n: int, condition: float, generator: torch.Generator) -> Tensor:
    """k positive definite matrices, with eigenvalues spread evenly over the logarithms of `condition`."""
    q = torch.linalg.qr(randn(k, n, n, generator=generator))[0]
    exponents = torch.rand(k, 1, n, dtype=torch.float64, generator=generator) - 0.5
    return (q * condition**exponents) @ q.mT


def gallery() -> list[type[Example]]:
    """Every problem, found in the files of this folder."""
    for path in sorted(pathlib.Path(__file__).parent.glob("*.py")):
        importlib.import_module(path.stem)
    return sorted(Example.__subclasses__(), key=lambda family: family.__module__ + family.__name__)


def run(example: Example) -> Result:
    """What each file does when it is run: minimise, and compare with the known answer."""
    parser = argparse.ArgumentParser(description=inspect.getdoc(type(example)))
    parser.add_argument("--method", default="LBFGS", help="a method of steepest.solvers (default: LBFGS)")
    parser.add_argument("--tolerance", type=float, default=1e-8, help="of the gradient's norm (default: 1e-8)")
    parser.add_argument("--every", type=int, default=5, help="print every so many-th iteration (default: 5)")
    options = parser.parse_args()
    print(f"{example} on {example.manifold}\n")
    result = example.solve(options.method, tolerance=options.tolerance, verbose=options.every)
    print(f"\n{result}\n\noptimum by other means {example.optimum:.15g}")
    gap = example.gap(result.value)
    print(f"gap {gap:.2g} of the start's, error of the solution {example.error(result.x):.2g}")
    if not math.isfinite(gap) or gap > 1e-6:
        raise SystemExit("not the optimum")
    return result
