"""The loop around a method for finite sums."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from steepest.manifolds.base import Manifold
from steepest.manifolds.tensors import as_tuple
from steepest.solvers.base import State, Stop
from steepest.solvers.checkpoint import Checkpoint
from steepest.solvers.finite_sum.base import SumMethod
from steepest.solvers.finite_sum.terms import FiniteSum, Term
from steepest.solvers.line_search import rounding
from steepest.solvers.loop import Journal, Limits, check_limits, mended, named, place
from steepest.solvers.problem import Evaluations, Iterate
from steepest.solvers.result import Record, Result

HALVINGS = 30
"""Failed epochs in a row after which a run is given up."""


def minimize_sum(
    term: Term,
    n: int,
    x0: Any,
    manifold: Manifold | None = None,
    method: SumMethod | str = "SVRG",
    *,
    epochs: int = 100,
    batch_size: int = 1,
    chunk_size: int = 4096,
    replacement: bool = False,
    tolerance: float = 1e-6,
    max_seconds: float | None = None,
    verbose: int = 0,
    progress: bool = True,
    callback: Callable[[Record, Any], Any] | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_every: float = 60.0,
    seed: int = 0,
) -> Result:
    """Minimise f(x) = 1/n sum_i f_i(x) on a manifold, a few terms at a time.

    The history has a record an epoch, with value and gradient of the whole sum. Its `evaluations` are gradients of
    single terms, and its note says how many "passes" over all terms they are. Values and gradients that only the
    history needs are not counted: of `Stochastic` all, of the others none but the values, for the gradient is the next
    anchor's.

    An epoch that ends where f is not finite, or above its start with a method whose epochs should not, is taken back,
    and the rate is halved.

    Args:
        term: takes a point and an index tensor `(b,)`, and returns the values `(b,)` of those terms.
        n: how many terms there are; indices are 0 to n - 1.
        x0: where to start, on the manifold. Leading batch dimensions make a product of manifolds.
        manifold: where x lives. None: anywhere, as a plain tensor (or tuple of tensors).
        method: a `SumMethod`, or the name of one.
        epochs: at most.
        batch_size: terms of a mini-batch.
        chunk_size: terms at once in a pass over all of them, which bounds its memory.
        replacement: see `FiniteSum`.
        tolerance: of the Riemannian norm of the gradient of f.
        max_seconds: where to stop at the latest, after the epoch at hand.
        verbose: print every so many-th epoch.
        progress: show a bar on a terminal, where tqdm is installed.
        callback: called as `callback(record, x)` before the first and after each epoch; what is true ends the run.
        checkpoint: a file that the state is written to, every `checkpoint_every` seconds and at the end; a run that
            finds the file goes on from there, to the same numbers as if it had not been broken off.
        seed: of the mini-batches, which depend on it and the number of the epoch alone. torch's own generator is never
            used.

    Returns:
        The best of the points between epochs and how it was found. Half precisions are computed in, and come back as,
        float32.

    Raises:
        ValueError: x0 is not on the manifold, f is not finite there, or the checkpoint is of another run.

    >>> from steepest import Stiefel
    >>> from steepest.solvers import SRG, minimize_sum
    >>> data = torch.randn(100, 5, dtype=torch.float64) * torch.arange(1, 6)
    >>> x0 = Stiefel().random_point((5, 2), dtype=torch.float64)
    >>> def term(x, index): return -(data[index] @ x).square().sum(-1)
    >>> result = minimize_sum(term, 100, x0, Stiefel(), SRG(rate=3e-3), batch_size=10, tolerance=1e-4)
    >>> exact = -torch.linalg.eigvalsh(data.T @ data / 100)[-2:].sum()
    >>> result.success, abs(result.value - float(exact)) < 1e-9
    (True, True)
    """
    started = time.perf_counter()
    method = named(SumMethod, method)
    manifold, x0 = place(manifold, x0)
    check_limits(tolerance, epochs, None, max_seconds, checkpoint_every, verbose, "epochs")
    terms = FiniteSum(term, n, manifold, batch_size, chunk_size, replacement, seed, as_tuple(x0)[0].device)
    keeper = Checkpoint(checkpoint, checkpoint_every, terms, method)
    at, state, history, before = _resumed(terms, keeper, x0) or _first(terms, method, x0)
    limits = Limits(None if method.saddles else tolerance, epochs, seconds=max_seconds, unit="epochs")
    run = _Run(terms, method, history, started - before, verbose, callback)
    run.best = _packed(terms, state.pop("best", None))
    with _bar(epochs, state["iteration"], progress and not verbose) as bar:
        return run.loop(at, state, limits, keeper, bar)


class _Run(Journal):
    def __init__(
        self,
        terms: FiniteSum,
        method: SumMethod,
        history: list[Record],
        started: float,
        verbose: int,
        callback: Callable[[Record, Any], Any] | None,
    ) -> None:
        super().__init__(history, started, verbose)
        self.terms, self.method = terms, method
        self.callback = callback
        self.best: Iterate | None = None

    def loop(self, at: Iterate, state: State, limits: Limits, keeper: Checkpoint, bar: Any) -> Result:
        """Epochs until there is a reason to stop."""
        self._begin()
        end = self._look(at, state, limits)
        while end is None:
            try:
                at, state = self._epoch(at, state)
            except Stop as stop:
                end = stop.reason, stop.converged
            else:
                if bar is not None:
                    bar.set_postfix(value=f"{at.value:.6g}", gradient=f"{at.norm:.1e}", refresh=False)
                    bar.update()
                end = self._look(at, state, limits)
            kept = {**state, "best": list(as_tuple((self.best or at).x))}
            keeper.save(at, kept, self.history, self._seconds(), end is not None)
        self._end(end[0])
        best, counted = self._answer(at, end[1], limits), Evaluations(gradients=self.terms.terms)
        iterations, seconds = state["iteration"], self._seconds()
        return Result(
            best.x, best.value, best.norm, iterations, counted, seconds, *end, history=self.history, method=self.method
        )

    def _epoch(self, at: Iterate, state: State) -> tuple[Iterate, State]:
        """One epoch, or the point before it with half the rate."""
        to, changed = at, State()
        try:
            to, changed = self.method.epoch(at, self.terms, state)
            descends = changed.get("descends", self.method.descends)
            failed = not to.finite or (descends and to.value > at.value + 4 * rounding(at))
        except torch.linalg.LinAlgError:  # a step out of all bounds
            failed = True
        halved = state["halved"] + 1 if failed else 0
        if halved > HALVINGS:
            raise Stop(f"{HALVINGS} epochs in a row went up, each at half the rate of the last: rounding")
        rate = state["rate"] / 2 if failed else state["rate"]
        kept = {**state, "note": {"rate": rate}} if failed else {**state, **changed}
        number = state["iteration"] + 1
        to = at if failed else mended(to)
        return to, {**kept, "rate": rate, "halved": halved, "iteration": number, "terms": self.terms.terms}

    def _answer(self, at: Iterate, success: bool, limits: Limits) -> Iterate:
        """The best point; where that one's gradient is longer than was asked for and the last one's is not, the last:
        values need not fall from each epoch to the next."""
        best, tolerance = self.best or at, limits.tolerance or 0.0
        return at if success and at.norm <= tolerance < best.norm else best

    def _look(self, at: Iterate, state: State, limits: Limits) -> tuple[str, bool] | None:
        """Write the history, and see whether there is a reason to stop."""
        note = {**state.get("note", {}), "passes": state["terms"] / self.terms.n}
        record = Record(state["iteration"], at.value, at.norm, self._seconds(), state["terms"], note)
        self._write(record)
        if self._better(at):
            self.best = at
        if self.callback is not None and self.callback(record, at.x):
            return "the callback ended it", False
        return limits.reason(record)

    def _better(self, at: Iterate) -> bool:
        """Whether it is the best point so far: of values that rounding may have made different, the one with the
        smaller gradient."""
        if self.best is None:
            return True
        noise = rounding(at)
        below = at.value < self.best.value - noise
        return below or (at.value <= self.best.value + noise and at.norm < self.best.norm)


def _first(terms: FiniteSum, method: SumMethod, x0: Any) -> tuple[Iterate, State, list[Record], float]:
    at = terms.at(x0)
    if not at.finite:
        raise ValueError(
            f"term: the mean of its values at x0 is {at.value}, its gradient {at.norm}; expected finite numbers. Start "
            "where all terms and their derivatives are defined."
        )
    return at, {"rate": method.rate, "halved": 0, "iteration": 0, "terms": 0, "sizes": _sizes(terms)}, [], 0.0


def _resumed(terms: FiniteSum, keeper: Checkpoint, x0: Any) -> tuple[Iterate, State, list[Record], float] | None:
    found = keeper.load(x0)
    if found is not None:
        state = found[1]
        if state["sizes"] != _sizes(terms):
            raise ValueError(
                f"checkpoint: {keeper.path} is of another run: its n, batch_size and replacement are {state['sizes']}, "
                f"this run's {_sizes(terms)}. Choose another file, or remove this one."
            )
        terms.terms = state["terms"]
    return found


def _packed(terms: FiniteSum, best: list[Tensor] | None) -> Iterate | None:
    return None if best is None else terms.at(tuple(best) if len(best) > 1 else best[0])


def _sizes(terms: FiniteSum) -> list[int]:
    return [terms.n, terms.batch_size, int(terms.replacement)]


def _bar(total: int, initial: int, wanted: bool) -> Any:
    """A bar on a terminal; None where there is no tqdm to make one."""
    try:
        from tqdm import tqdm
    except ImportError:
        return contextlib.nullcontext()
    return tqdm(total=total, initial=initial, unit="epoch", dynamic_ncols=True, disable=None if wanted else True)
