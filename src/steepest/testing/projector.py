"""What every projector must satisfy."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from steepest.projectors import Moment, Projector
from steepest.testing.asserts import assert_close

PROJECTOR_CHECKS: list[Callable[[Projector], None]] = []
"""Every check, in order."""

SHAPES = [(6, 4), (3, 7), (5, 5)]
"""Of the matrices that are projected from the right: tall, wide, square."""
BATCHES: list[tuple[int, ...]] = [(), (3,), (2, 1)]
DTYPES = (torch.float64, torch.complex128, torch.float32)
RANK = 2


def check_projector(projector: Projector) -> None:
    """Run every check."""
    for check in PROJECTOR_CHECKS:
        check(projector)


def _check(function: Callable[[Projector], None]) -> Callable[[Projector], None]:
    PROJECTOR_CHECKS.append(function)
    return function


class Run:
    """A projector fed with random matrices, as a transform in a subspace uses it."""

    def __init__(
        self, projector: Projector, shape: tuple[int, ...], dtype: torch.dtype = torch.float64, phase: int | None = None
    ) -> None:
        self.projector, self.shape, self.dtype = projector, shape, dtype
        self.phase = projector.every - 2 if phase is None else phase
        """Due at the third step, unless said otherwise."""
        self.state = projector.init(self.matrix(0), RANK)
        self.momentum = self.matrix(0)[..., :RANK] * 0
        self.moved = {"before": False, "after": False}
        """Whether the last step has moved."""

    def matrix(self, step: int) -> Tensor:
        """The random matrix of one step."""
        generator = torch.Generator().manual_seed(step)
        return torch.randn(self.shape, generator=generator, dtype=self.dtype)

    def moment(self, step: int) -> Moment:
        """What the projector is told."""
        return Moment(step, 0.1, self.phase, self.momentum if self.projector.needs_momentum else None)

    def step(self, number: int, x: Tensor | None = None) -> Tensor:
        """The basis by which the matrix of one step is projected."""
        x, at = self.matrix(number) if x is None else x, self.moment(number)
        self._move("before", self.projector.before(x, RANK, self.state, at))
        basis = self.projector.basis(x, RANK, self.state, at).clone()
        low = x @ basis
        self.momentum = self.momentum.lerp(low, 0.1)
        self._move("after", self.projector.after(x, low, self.state, at))
        return basis

    def _move(self, when: str, new: dict[str, Tensor] | None) -> None:
        self.moved[when] = new is not None
        for key, value in (new or {}).items():
            self.state[key].copy_(value)


def _runs(projector: Projector) -> Iterator[Run]:
    for batch in BATCHES:
        for shape in SHAPES:
            for dtype in DTYPES:
                yield Run(projector, (*batch, *shape), dtype)


def _paced(projector: Projector, every: int, spread: bool) -> Projector:
    """The projector, and what it is made of, with another schedule."""
    fields = {f.name: getattr(projector, f.name) for f in dataclasses.fields(projector)}
    inner = {name: _paced(value, every, spread) for name, value in fields.items() if isinstance(value, Projector)}
    return dataclasses.replace(projector, every=every, spread=spread, **inner)


@_check
def check_basis(projector: Projector) -> None:
    """The basis is one of r dimensions, `(*b, n, r)` or `(n, r)`, of the matrix's dtype, and orthonormal where the
    projector says so."""
    for run in _runs(projector):
        *batch, _, n = run.shape
        for step in range(1, 6):
            p = run.step(step)
            assert p.shape in ((*batch, n, RANK), (n, RANK)), f"a basis of shape {tuple(p.shape)} for {run.shape}"
            assert (p.dtype, p.device) == (run.dtype, run.momentum.device), f"a basis in {p.dtype} on {p.device}"
            assert p.isfinite().all(), "the basis has NaN or infinite entries"
            gram, eps = p.mH @ p, torch.finfo(run.dtype).eps
            if projector.orthonormal:  # n products to an entry, each of some roundings
                assert_close(gram, torch.eye(RANK, dtype=p.dtype).expand_as(gram), "not orthonormal", 20 * eps)
            assert torch.linalg.eigvalsh(gram).min() > 1e-6, "the basis has fewer than r dimensions"


@_check
def check_leaves_alone(projector: Projector) -> None:
    """What says where to move to changes nothing itself, and names entries of the state, of their shapes."""
    for run in _runs(projector):
        for step in range(1, 6):
            x, at, state = run.matrix(step), run.moment(step), run.state
            low = x @ projector.basis(x, RANK, state, at)
            given = [x, low, *state.values(), *([] if at.momentum is None else [at.momentum])]
            copies = [t.clone() for t in given]
            for new in (projector.before(x, RANK, state, at), projector.after(x, low, state, at)):
                for key, value in (new or {}).items():
                    assert key in state, f"a move adds the state {key}"
                    said, kept = ((t.shape, t.dtype, t.device) for t in (value, state[key]))
                    assert said == kept, f"a move replaces the state {key}, {kept}, by {said}"
            assert all(torch.equal(a, b) for a, b in zip(given, copies, strict=True)), "a move changes what it is given"
            run.step(step)


@_check
def check_state(projector: Projector) -> None:
    """State is plain tensors that begin with the batch dimensions, in memory of their own."""
    for run in _runs(projector):
        batch = run.shape[:-2]
        for key, value in run.state.items():
            assert type(value) is Tensor, f"state {key} is no plain tensor"
            assert value.shape[: len(batch)] == batch, f"state {key} does not begin with the batch"
            held = value.untyped_storage().nbytes()
            assert held == value.numel() * value.element_size(), f"state {key} keeps {held} bytes alive"


@_check
def check_batch(projector: Projector) -> None:
    """A batch gives what its elements give one by one, step after step."""
    for shape in SHAPES:
        for dtype in (torch.float64, torch.complex128):
            batched, singles = Run(projector, (3, *shape), dtype), [Run(projector, shape, dtype) for _ in range(3)]
            for step in range(1, 6):
                whole = batched.step(step)
                for i, one in enumerate(singles):
                    part = whole[i] if whole.ndim > 2 else whole
                    alone = one.step(step, batched.matrix(step)[i])
                    assert_close(part, alone, f"step {step} in a batch", 1e-9)  # rounding of some steps


@_check
def check_resume(projector: Projector) -> None:
    """Copied state continues to the last bit."""
    for run in _runs(projector):
        other = Run(projector, run.shape, run.dtype)
        for step in (1, 2):
            run.step(step)
        for key, value in run.state.items():
            other.state[key].copy_(value)
        other.momentum = run.momentum.clone()
        for step in (3, 4, 5):
            assert torch.equal(run.step(step), other.step(step)), "state does not hold all that the projector remembers"


@_check
def check_zero(projector: Projector) -> None:
    """Zero matrices give no NaN, now or later, and orthonormal bases where others do; nor does a lack of momentum."""
    for run in _runs(projector):
        for step in range(1, 7):
            p = run.step(step, run.matrix(step) * (step > 4))
            assert p.isfinite().all(), f"zero matrices lead to NaN at step {step}"
            gram, eps = p.mH @ p, torch.finfo(run.dtype).eps
            if projector.orthonormal:
                assert_close(gram, torch.eye(RANK, dtype=p.dtype).expand_as(gram), "not orthonormal", 20 * eps)
        for step in range(1, 6):
            run.momentum = run.momentum * 0
            assert run.step(step).isfinite().all(), f"zero momentum leads to NaN at step {step}"
        at = dataclasses.replace(run.moment(1 + projector.every), momentum=None)
        new = projector.before(run.matrix(6), RANK, run.state, at) or {}
        assert all(value.isfinite().all() for value in new.values()), "without momentum there are NaN"


@_check
def check_schedule(projector: Projector) -> None:
    """It moves at the first step and then in the same way in every period, each of which begins, where moves are
    spread, as many steps sooner as the phase says."""
    every, last = 3, 12
    plain = _moves(_paced(projector, every, False), 0, last + every + 2)
    assert plain[3:9] == plain[6:12], "moves have another period"
    assert any(before or after for before, after in plain[3:6]), "nothing moves after the first step"
    for spread, phase in ((False, 1), (True, 0), (True, 1), (True, every + 2)):
        moves, shift = _moves(_paced(projector, every, spread), phase, last), phase if spread else 0
        assert moves[1:] == plain[shift + 1 : shift + last], f"phase {phase} turns the moves {plain} into {moves}"


def _moves(projector: Projector, phase: int, count: int) -> list[tuple[bool, bool]]:
    """Whether it has moved before and after the projection of each step."""
    run, moves, age = Run(projector, SHAPES[0], phase=phase), [], 0
    for step in range(1, count + 1):
        due = (step - 1 + (phase if projector.spread else 0)) % projector.every == 0
        assert projector.due(run.moment(step)) == due, f"due at step {step} is {not due}"
        age = 0 if run.moved["after"] else age
        run.step(step)
        assert step == 1 or due or not run.moved["before"], f"moves before step {step}, where it is not due"
        age = 1 if run.moved["before"] else age + 1
        said = projector.age(run.moment(step))
        assert said == age, f"the age at step {step} is {age} steps, and not {said}"
        moves.append((run.moved["before"], run.moved["after"]))
    return moves


@_check
def check_names(projector: Projector) -> None:
    """Frozen, the same after JSON, and short in print."""
    assert type(projector).__dataclass_params__.frozen, "a projector is frozen"  # type: ignore[attr-defined]
    spec = json.loads(json.dumps(projector.to_spec()))
    assert Projector.from_spec(spec) == projector, "to_spec does not survive JSON"
    assert len(repr(projector)) <= 120, "its repr takes more than a line"
