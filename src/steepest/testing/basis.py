"""What every basis must satisfy."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from steepest.bases import Basis
from steepest.testing.asserts import assert_close

BASIS_CHECKS: list[Callable[[Basis], None]] = []
"""Every check, in order."""

SHAPES = [(4, 6), (5, 5), (7, 3)]
"""Of the matrices, of which the first axis has a basis."""
BATCHES: list[tuple[int, ...]] = [(), (3,), (2, 1)]
DTYPES = (torch.float64, torch.complex128, torch.float32)
STEPS = 25


def check_basis(basis: Basis) -> None:
    """Run every check."""
    for check in BASIS_CHECKS:
        check(basis)


def _check(function: Callable[[Basis], None]) -> Callable[[Basis], None]:
    BASIS_CHECKS.append(function)
    return function


class Run:
    """A basis that follows random matrices, as `Rotate` lets it."""

    def __init__(self, basis: Basis, shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> None:
        self.basis, self.shape, self.dtype = basis, shape, dtype
        self.state = basis.init(self.matrix(0))

    def matrix(self, step: int) -> Tensor:
        """The random matrix of one step."""
        generator = torch.Generator().manual_seed(step)
        return torch.randn(self.shape, generator=generator, dtype=self.dtype)

    def step(self, number: int, y: Tensor | None = None) -> Tensor:
        """The basis behind a step, from 0."""
        y = self.matrix(number) if y is None else y
        if (new := self.basis.follow(y, self.state, number)) is not None:
            self.state["basis"].copy_(new)
        return self.basis.matrix(y, self.state)


def _runs(basis: Basis) -> Iterator[Run]:
    for batch in BATCHES:
        for shape in SHAPES:
            for dtype in DTYPES:
                yield Run(basis, (*batch, *shape), dtype)


def _orthonormal(q: Tensor) -> None:
    eye = torch.eye(q.shape[-1], dtype=q.dtype).expand_as(q)
    assert_close(q.mH @ q, eye, "not orthonormal", 30 * torch.finfo(q.dtype).eps)  # sums of up to seven products


@_check
def check_orthonormal(basis: Basis) -> None:
    """Square, orthonormal, of the matrix's dtype, whatever passes through: zeros, and what overflows when squared."""
    for run in _runs(basis):
        *batch, n, _ = run.shape
        for step in range(STEPS):
            y = run.matrix(step) * {3: 0.0, 4: 1e30, 5: 1e-30}.get(step % 7, 1.0)
            q = run.step(step, y)
            assert q.shape in ((*batch, n, n), (n, n)), f"a basis of shape {tuple(q.shape)} for {run.shape}"
            assert q.dtype == run.dtype, f"a basis in {q.dtype}"
            assert q.isfinite().all(), "the basis has NaN or infinite entries"
            _orthonormal(q)
    zero = Run(basis, (4, 3))
    for step in range(STEPS):
        _orthonormal(zero.step(step, torch.zeros(4, 3, dtype=torch.float64)))


@_check
def check_state(basis: Basis) -> None:
    """State is plain tensors that begin with the batch dimensions; to be asked where it goes leaves the basis alone."""
    for run in _runs(basis):
        batch = run.shape[:-2]
        for key, value in run.state.items():
            assert type(value) is Tensor, f"state {key} is no plain tensor"
            assert value.shape[: len(batch)] == batch, f"state {key} does not begin with the batch"
        for step in range(3):
            y, before = run.matrix(step), run.basis.matrix(run.matrix(step), run.state).clone()
            kept, copy = dict(run.state), y.clone()
            run.basis.follow(y, run.state, step)
            assert all(run.state[k] is v for k, v in kept.items()), "following replaces a state tensor"
            assert torch.equal(y, copy), "following changes its input"
            assert torch.equal(run.basis.matrix(y, run.state), before), "following moves the basis by itself"


@_check
def check_batch(basis: Basis) -> None:
    """A batch gives what its elements give one by one."""
    for shape in SHAPES:
        for dtype in (torch.float64, torch.complex128):
            batched, singles = Run(basis, (3, *shape), dtype), [Run(basis, shape, dtype) for _ in range(3)]
            for step in range(STEPS):
                whole = batched.step(step)
                for i, one in enumerate(singles):
                    part = whole[i] if whole.ndim > 2 else whole
                    alone = one.step(step, batched.matrix(step)[i])
                    # where y has a kernel what decides is as small as 1e-5, and rounding 1e-11 of it
                    assert_close(part, alone, f"step {step} in a batch", 1e-8)


@_check
def check_resume(basis: Basis) -> None:
    """Copied state continues to the last bit."""
    for run in _runs(basis):
        other = Run(basis, run.shape, run.dtype)
        for step in range(12):
            run.step(step)
        for key, value in run.state.items():
            other.state[key].copy_(value)
        for step in range(12, STEPS):
            assert torch.equal(run.step(step), other.step(step)), "state does not hold all that the basis remembers"


@_check
def check_names(basis: Basis) -> None:
    """Frozen, the same after JSON, and short in print."""
    assert type(basis).__dataclass_params__.frozen, "a basis is frozen"  # type: ignore[attr-defined]
    assert Basis.from_spec(json.loads(json.dumps(basis.to_spec()))) == basis, "to_spec does not survive JSON"
    assert len(repr(basis)) <= 120, "its repr takes more than a line"
