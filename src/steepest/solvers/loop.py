"""What the loops around methods share: how they begin, when they end, and what they do about drift."""

from __future__ import annotations

import dataclasses
import inspect
import time
from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor

from steepest.checks import check_range
from steepest.linalg.precision import widen
from steepest.manifolds.base import Manifold
from steepest.manifolds.euclidean import Euclidean
from steepest.manifolds.tensors import as_tuple, each
from steepest.solvers.problem import Iterate
from steepest.solvers.result import HEADER, Record

T = TypeVar("T")
MEND = 100
"""Steps after which drift off the manifold is looked for."""
PATIENCE = 40
"""Steps without progress, in the value or in the gradient, after which rounding is taken to be reached."""


def place(manifold: Manifold | None, x: Any, name: str = "x0") -> tuple[Manifold, Any]:
    """The manifold, by default all tensors, and the point, detached and checked; `name` is what errors call it."""
    x = tuple(x) if isinstance(x, list) else x
    if not (manifold is None or isinstance(manifold, Manifold)):
        raise TypeError(f"manifold: got {manifold!r}, expected an instance of a manifold, such as Sphere(), or None")
    for t in as_tuple(x):
        if not isinstance(t, Tensor) or not (t.is_floating_point() or t.is_complex()):
            got = f"a tensor of {t.dtype}" if isinstance(t, Tensor) else f"{type(t).__name__}"
            raise TypeError(
                f"{name}: got {got}, expected a tensor (or a tuple of tensors) of floating point or complex numbers, "
                f"as `torch.as_tensor({name}, dtype=torch.float64)` makes it"
            )
    manifold = _flat(x) if manifold is None else manifold
    x = each(lambda t: widen(t.detach()), x)
    manifold.check_point(x, name)
    return manifold, x


def _flat(x: Any) -> Manifold:
    from steepest.manifolds.product import Product

    factors = tuple(Euclidean(t.ndim) for t in as_tuple(x))
    return factors[0] if len(factors) == 1 else Product(factors)


def named(family: Callable[..., T], method: Any, name: str = "method") -> T:
    """The method of this family: an instance as it is, one from its specification, or by its name, in any case and with
    or without underscores, with its default options. `name` is what errors call it."""
    kinds: Any = family
    known = ", ".join(sorted(kinds.known))
    if isinstance(method, dict):
        method = kinds.from_spec(method)
    if isinstance(method, kinds):
        return method
    if not isinstance(method, str):
        raise TypeError(f"{name}: got {method!r}, expected an instance of one of {known}, or its name")
    plain: dict[str, Callable[..., T]] = {kind.lower(): one for kind, one in kinds.known.items()}
    found = plain.get(method.lower().replace("_", "").replace("-", "").replace(" ", ""))
    if found is None:
        raise ValueError(f"{name}: unknown {method!r}, expected one of {known}")
    needed = [p.name for p in inspect.signature(found).parameters.values() if p.default is p.empty]
    if needed:
        raise ValueError(f"{name}: {method} needs {', '.join(needed)}; pass an instance, not its name")
    return found()


def check_limits(
    tolerance: float,
    iterations: int,
    evaluations: int | None = None,
    seconds: float | None = None,
    every: float = 0.0,
    verbose: int = 0,
    unit: str = "max_iterations",
) -> None:
    """Refuse what makes no sense."""
    check_range("tolerance", tolerance)
    check_range(unit, iterations)
    check_range("max_evaluations", evaluations or 0)
    check_range("max_seconds", seconds or 0)
    check_range("checkpoint_every", every)
    check_range("verbose", verbose)


@dataclasses.dataclass(frozen=True)
class Limits:
    """Where a run stops."""

    tolerance: float | None
    """Of the gradient's norm; None where the method tells by itself when it has finished."""
    iterations: int
    evaluations: int | None = None
    seconds: float | None = None
    unit: str = "max_iterations"
    """What the second number is called."""
    measure: str = "gradient norm"
    """What the norm is of."""

    def reason(self, record: Record) -> tuple[str, bool] | None:
        """Why to stop here, and whether that is success."""
        if self.tolerance is not None and record.gradient_norm <= self.tolerance:
            return f"{self.measure} is at most the tolerance, {self.tolerance:g}", True
        if record.iteration >= self.iterations:
            return f"{self.unit} = {self.iterations} reached", False
        if self.evaluations is not None and record.evaluations >= self.evaluations:
            return f"max_evaluations = {self.evaluations} reached", False
        if self.seconds is not None and record.seconds >= self.seconds:
            return f"max_seconds = {self.seconds:g} reached", False
        return None


class Journal:
    """What a run writes down: its history, the lines of its table, and the seconds.

    Args:
        history: the records of the runs that this one goes on from.
        started: when it began, on the clock of `time.perf_counter`, less what those took.
        verbose: print every so many-th record.
    """

    header = HEADER
    row: Callable[[Record], str] = staticmethod(Record.row)

    def __init__(self, history: list[Record], started: float, verbose: int) -> None:
        self.history, self.started, self.verbose = history, started, verbose

    def _begin(self) -> None:
        if self.verbose:
            print(self.header)

    def _write(self, record: Record) -> bool:
        """Whether it is new: a run that goes on looks at its first point again."""
        fresh = not self.history or self.history[-1].iteration < record.iteration
        if fresh:
            self.history.append(record)
        if self.verbose and record.iteration % self.verbose == 0:
            print(self.row(record))
        return fresh

    def _end(self, reason: str) -> None:
        if self.verbose:
            print(reason)

    def _seconds(self) -> float:
        return time.perf_counter() - self.started


def shown(note: dict[str, Any]) -> dict[str, float | str]:
    """What the history keeps of a note."""
    return {k: v for k, v in note.items() if isinstance(v, int | float | str)}


def mended(at: Iterate, limit: float = 1000, worse: float | None = 1e-8) -> Iterate:
    """The point without what rounding has added to its distance from the manifold, where that is more than `limit`
    times the precision; the point as it is where f would be higher by more than the share `worse` of it (None:
    whatever f is). Off the manifold values may be lower than any on it."""
    manifold = at.problem.manifold
    eps = 1e-15 if at.dtype.itemsize == 8 else 1e-7
    if float(manifold.residual(at.x).max()) <= limit * eps:
        return at
    found = at.problem.at(manifold.project(at.x))
    return found if worse is None or found.value <= at.value + worse * abs(at.value) else at
