"""What every optimiser must satisfy, on every manifold."""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from steepest.manifolds import Euclidean, Manifold, Stiefel
from steepest.manifolds.tensors import as_tuple
from steepest.optim import Optimizer, param_groups
from steepest.testing.asserts import scale
from steepest.testing.discover import manifolds

OPTIMIZER_CHECKS: list[Callable[[Factory, list[Place]], None]] = []
"""Every check, in order; each takes a class, or any function from parameters and `lr` to an optimiser, and places to
run it at."""

Factory = Callable[..., Optimizer]
Place = tuple[Manifold, Any, torch.dtype]
"""A manifold, the shape of its points, their dtype."""


def check_optimizer(factory: Factory, every: bool = False) -> None:
    """Run every check on a class, or on any function of `(params, lr=...)` that returns an optimiser, at one manifold
    of each kind or at `every` one."""
    for check in OPTIMIZER_CHECKS:
        check(factory, places(every))


def _check(function: Callable[[Factory, list[Place]], None]) -> Callable[[Factory, list[Place]], None]:
    OPTIMIZER_CHECKS.append(function)
    return function


class Problem:
    """Find the matrix that a given point stands for: half the squared distance, from a start at distance 0.7."""

    def __init__(self, manifold: Manifold, shape: Any, dtype: torch.dtype = torch.float64, copies: int = 1) -> None:
        generator = torch.Generator().manual_seed(0)
        self.manifold, self.params, self.targets = manifold, [], []
        self.wide = torch.complex128 if dtype.is_complex else torch.float64
        for _ in range(copies):
            x = manifold.random_point(shape, generator=generator, dtype=self.wide)
            noise = tuple(torch.randn(t.shape, generator=generator, dtype=t.dtype) for t in as_tuple(x))
            v = manifold.grad(x, noise if manifold.arity > 1 else noise[0])  # within reach: O(n) falls in two pieces
            y = manifold.retract(x, scale(v, 0.7 / max(manifold.norm(x, v).item(), 1e-300)))
            self.params += [torch.nn.Parameter(t.to(dtype)) for t in as_tuple(x)]
            self.targets.append(as_tuple(manifold.represent(y)))

    def groups(self) -> list[dict[str, Any]]:
        """Parameter groups."""
        plain = isinstance(self.manifold, Euclidean)
        return [
            {
                "params": self.params,
                "param_names": [f"p{i}" for i in range(len(self.params))],
                "geometry": None if plain else self.manifold,
                "role": "matrix" if plain else "point",
            }
        ]

    def loss(self) -> Tensor:
        """Summed over the points."""
        k, parts = self.manifold.arity, []
        for i, target in enumerate(self.targets):
            x = tuple(p.to(self.wide) for p in self.params[i * k : (i + 1) * k])
            w = as_tuple(self.manifold.represent(x if k > 1 else x[0]))
            parts += [((a - b).conj() * (a - b)).real.sum() / 2 for a, b in zip(w, target, strict=True)]
        return torch.stack(parts).sum()

    def backward(self, optimizer: Optimizer, sign: float = 1.0) -> float:
        """Fresh gradients; the loss."""
        optimizer.zero_grad()
        loss = self.loss()
        (sign * loss).backward()
        return loss.item()

    def values(self) -> list[Tensor]:
        """Copies of the parameters."""
        return [p.detach().clone() for p in self.params]


def places(every: bool = False) -> list[Place]:
    """The first example of every manifold, with real and with complex entries where it has such points. Metrics and
    retractions have passed the manifolds' own suite, and an optimiser sees no more of them than coordinates: unless
    `every` one is asked for, one of each kind, by the tensors and blocks of a point and by whether momentum moves, and
    one that is complex."""
    kinds = {"real": torch.float64, "complex": torch.complex128}
    first = {type(m): (m, s) for m, s in reversed(manifolds())}
    found = [(m, s, kinds[kind]) for m, s in first.values() for kind in m.scalars]
    if every:
        return found
    kinds_of = {(m.owners, m.block_ndims, m.identity_carry): (m, s, t) for m, s, t in found if not t.is_complex}
    return [*kinds_of.values(), next(place for place in found if place[2].is_complex)]


def _run(factory: Factory, problem: Problem, steps: int, lr: float = 0.05) -> Optimizer:
    optimizer = factory(problem.groups(), lr=lr)
    for _ in range(steps):
        problem.backward(optimizer)
        optimizer.step()
    return optimizer


@_check
def check_descends(factory: Factory, places: list[Place]) -> None:
    """The loss falls to a tenth within 60 steps on every manifold for one lr of a small grid, and the points stay where
    they belong. One that is large for most of them, and so hard on these, is tried first."""
    for manifold, shape, dtype in places:
        best = float("inf")
        for lr in (0.5, 0.1, 0.02, 0.004, 5.0):
            if best > 0.1:
                best = min(best, _descend(factory, Problem(manifold, shape, dtype), lr))
        assert best <= 0.1, f"{manifold} in {dtype}: the loss falls to {best:.3g} of its start only"


def _descend(factory: Factory, problem: Problem, lr: float) -> float:
    """The loss after 60 steps, or as soon as it is small, over that at the start; infinite where lr is too large."""
    optimizer, first = factory(problem.groups(), lr=lr), problem.loss().item()
    tiny = 1e-12  # a manifold of isolated points
    for step in range(60):
        for group in optimizer.param_groups:
            group["lr"] = lr * (1 - step / 60)
        try:
            if problem.backward(optimizer) <= 0.1 * first + tiny:
                break
            optimizer.step()
        except ValueError:  # this lr diverges, and the optimiser says so
            return float("inf")
    last, residual = problem.loss().item(), optimizer.residual()
    if not (last <= 100 * first + tiny and math.isfinite(residual)):  # this lr diverges on a space without bounds
        return float("inf")
    assert residual < 1e-9, f"{problem.manifold} in {problem.wide}: residual {residual:.2g} after {step} steps"
    return last / (first + tiny)


@_check
def check_resume(factory: Factory, places: list[Place]) -> None:
    """A state dict saved, loaded with `weights_only=True` and restored continues to the last bit, in or out of a
    batch."""
    for manifold, shape, dtype in places:
        straight, broken = Problem(manifold, shape, dtype, 3), Problem(manifold, shape, dtype, 3)
        _run(factory, straight, 5)
        first = _run(factory, broken, 3)
        file = io.BytesIO()
        torch.save(first.state_dict(), file)
        file.seek(0)
        second = factory(broken.groups(), lr=1.0)
        second.load_state_dict(torch.load(file, weights_only=True))
        assert second.param_groups[0]["lr"] == 0.05, "lr is not restored"
        for _ in range(2):
            broken.backward(second)
            second.step()
        same = [torch.equal(p, q) for p, q in zip(straight.params, broken.params, strict=True)]
        assert all(same), f"{manifold} in {dtype}: a resumed run differs from a straight one"


@_check
def check_batches(factory: Factory, places: list[Place]) -> None:
    """Points that step together move as each would alone; one without a gradient stays, and the others do not mind."""
    for manifold, shape, dtype in places:
        together = Problem(manifold, shape, dtype, 3)
        k = manifold.arity
        apart = Problem(manifold, shape, dtype, 3)
        whole = factory(together.groups(), lr=0.05)
        singles = [factory([{**apart.groups()[0], "params": apart.params[i * k : (i + 1) * k],
                             "param_names": [f"p{j}" for j in range(k)]}], lr=0.05) for i in range(3)]  # fmt: skip
        for step in range(4):
            together.backward(whole)
            for optimizer in singles:
                optimizer.zero_grad()
            apart.loss().backward()
            if step == 2:
                for problem in (together, apart):
                    for p in problem.params[k : 2 * k]:
                        p.grad = None
            before = [p.detach().clone() for p in together.params[k : 2 * k]]
            whole.step()
            for optimizer in singles:
                optimizer.step()
            if step == 2:
                stays = [torch.equal(a, b) for a, b in zip(before, together.params[k : 2 * k], strict=True)]
                assert all(stays), f"{manifold} in {dtype}: a point without a gradient moves"
        gap = max((p - q).abs().max().item() for p, q in zip(together.params, apart.params, strict=True))
        assert gap < 1e-6, f"{manifold} in {dtype}: in a batch the result differs by {gap:.2g}"


@_check
def check_gradients_untouched(factory: Factory, places: list[Place]) -> None:
    """`.grad` is read, never written; `maximize` ascends as minimising the negative does."""
    for manifold, shape, dtype in places:
        problem, negative = Problem(manifold, shape, dtype), Problem(manifold, shape, dtype)
        up, down = factory(problem.groups(), lr=0.01, maximize=True), factory(negative.groups(), lr=0.01)
        for _ in range(3):
            problem.backward(up)
            grads = [p.grad.clone() for p in problem.params]  # type: ignore[union-attr]
            up.step()
            same = [torch.equal(g, p.grad) for g, p in zip(grads, problem.params, strict=True)]  # type: ignore[arg-type]
            assert all(same), f"{manifold} in {dtype}: step changes .grad"
            negative.backward(down, sign=-1.0)
            down.step()
        gap = max((p - q).abs().max().item() for p, q in zip(problem.params, negative.params, strict=True))
        assert gap < 1e-9, f"{manifold} in {dtype}: maximize differs from minimising the negative by {gap:.2g}"


@_check
def check_nonfinite(factory: Factory, places: list[Place]) -> None:
    """A NaN or infinite gradient is refused by name with nothing changed, or its point alone is left out."""
    for manifold, shape, dtype in places:
        for value in (float("nan"), float("inf")):
            problem = Problem(manifold, shape, dtype, 2)
            optimizer = _run(factory, problem, 2)
            before, state = problem.values(), copy.deepcopy(optimizer.state_dict()["state"])
            problem.backward(optimizer)
            bad = problem.params[0]
            bad.grad[(0,) * bad.ndim] = value  # type: ignore[index]
            try:
                optimizer.step()
            except ValueError as error:
                assert "p0" in str(error), f"the error does not name the parameter: {error}"
            else:
                raise AssertionError(f"{manifold} in {dtype}: a gradient with {value} is not refused")
            assert all(torch.equal(a, b) for a, b in zip(before, problem.params, strict=True)), (
                f"{manifold} in {dtype}: moved"
            )
            after = optimizer.state_dict()["state"]
            same = [torch.equal(v, after[i][k]) for i, s in state.items() for k, v in s.items()]
            assert all(same), f"{manifold} in {dtype}: a refused step changes the state"
            for group in optimizer.param_groups:
                group["nonfinite"] = "skip"
            optimizer.step()
            assert torch.equal(before[0], problem.params[0]), f"{manifold} in {dtype}: skip moves the bad point"
            assert all(p.isfinite().all() for p in problem.params), f"{manifold} in {dtype}: skip lets NaN through"
            k = manifold.arity
            moved = any(not torch.equal(a, b) for a, b in zip(before[k:], problem.params[k:], strict=True))
            moved = moved or problem.loss().item() < 1e-12  # a manifold of isolated points
            assert moved, f"{manifold} in {dtype}: skip stops the good point as well"


@_check
def check_half_precision(factory: Factory, places: list[Place]) -> None:
    """bfloat16 parameters step, with their state in float32, and stay on the manifold to their own precision."""
    for manifold, shape, dtype in places:
        if dtype.is_complex:
            continue
        problem = Problem(manifold, shape, torch.bfloat16)
        first = problem.loss().item()
        optimizer = _run(factory, problem, 10, lr=0.02)
        assert all(p.dtype == torch.bfloat16 for p in problem.params), f"{manifold}: the dtype changes"
        assert optimizer.residual() < 0.1, f"{manifold}: residual {optimizer.residual():.2g} in bfloat16"
        assert problem.loss().item() <= first, f"{manifold}: the loss does not fall in bfloat16"
        for state in optimizer.state.values():
            dtypes = {v.dtype for v in state.values() if v.is_floating_point()}
            assert dtypes <= {torch.float32, torch.float64}, f"{manifold}: state in {dtypes}"


@_check
def check_torch_interface(factory: Factory, places: list[Place]) -> None:
    """Closures see gradients enabled, schedulers move lr, an lr of zero moves nothing, deep copies go on alike."""
    problem = Problem(Stiefel(), (5, 2))
    optimizer = factory(problem.groups(), lr=0.05)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)

    def closure() -> float:
        assert torch.is_grad_enabled(), "a closure runs without gradients"
        return problem.backward(optimizer)

    with torch.no_grad():
        assert optimizer.step(closure) > 0, "step does not return the closure's loss"
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == 0.025, "a scheduler does not move lr"
    twin = copy.deepcopy((problem, optimizer))
    for p, o in ((problem, optimizer), twin):
        p.backward(o)
        o.step()
    same = [torch.equal(a, b) for a, b in zip(problem.params, twin[0].params, strict=True)]
    assert all(same), "a deep copy of optimiser and parameters goes another way"
    before = problem.values()
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    problem.backward(optimizer)
    optimizer.step()
    gap = max((a - b).abs().max().item() for a, b in zip(before, problem.params, strict=True))
    assert gap < 1e-12, f"with lr 0 a point moves by {gap:.2g}"
    assert "params" not in repr(optimizer), "repr prints parameters"


class Zoo(torch.nn.Module):
    """Parameters of every kind: a table tied to a head, a convolution, a matrix, vectors, a number, a frozen one."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.table = torch.nn.Embedding(7, 4)
        self.convolution = torch.nn.Conv1d(4, 6, 3, padding=1)
        self.linear = torch.nn.Linear(6, 4)
        self.head = torch.nn.Linear(4, 7)
        self.gain = torch.nn.Parameter(torch.ones(()))
        self.unused = torch.nn.Parameter(torch.ones(3, 3))
        self.frozen = torch.nn.Parameter(torch.ones(4), requires_grad=False)
        for p in self.parameters():
            p.data.copy_(torch.randn(p.shape, generator=generator) / 2)
        self.head.weight = self.table.weight

    def forward(self) -> Tensor:
        """A loss of all of them but the unused one."""
        x = self.table(torch.arange(7).remainder(5)).mT * self.gain * self.frozen[:, None]
        logits = self.head(torch.tanh(self.linear(torch.tanh(self.convolution(x)).mT)))
        return torch.nn.functional.cross_entropy(logits.float(), torch.arange(7).flip(0))


@_check
def check_parameters(factory: Factory, places: list[Place]) -> None:
    """Parameters of every kind step, in float32 and in bfloat16 under both roundings, and the loss falls for one lr of
    a small grid; gradients may be missing, zero, or laid out otherwise; what has or needs none stays."""
    for dtype, rounding in (("float32", "nearest"), ("bfloat16", "nearest"), ("bfloat16", "stochastic")):
        falls = False
        for lr in (1e-2, 1e-3, 1e-4):
            model = Zoo().to(getattr(torch, dtype))
            before = {n: p.detach().clone() for n, p in model.named_parameters()}
            first = model().item()
            _train(model, factory(param_groups(model), lr=lr, rounding=rounding))
            assert all(p.isfinite().all() and p.dtype == before[n].dtype for n, p in model.named_parameters())
            still = {n for n, p in model.named_parameters() if torch.equal(p, before[n])}
            assert {"unused", "frozen"} <= still, "a parameter without a gradient moves"
            assert dtype == "bfloat16" or still == {"unused", "frozen"}, f"{sorted(still)} stay where they were"
            falls = falls or model().item() < first
        assert falls, f"the loss of a model in {dtype}, rounded {rounding}, does not fall"


def _train(model: Zoo, optimizer: Optimizer) -> None:
    torch.manual_seed(0)  # stochastic rounding
    for step in range(6):
        optimizer.zero_grad()
        model().backward()
        for p in model.parameters():
            if step == 2 and p.grad is not None:
                p.grad = torch.zeros_like(p) if p.ndim < 2 else p.grad.mT.contiguous().mT
        optimizer.step()


@_check
def check_refusals(factory: Factory, places: list[Place]) -> None:
    """A point off its manifold, a negative lr and a state of other parameters are refused, each by name."""
    problem = Problem(Stiefel(), (5, 2), copies=2)
    other = Problem(Stiefel(), (5, 2), copies=2)
    for p in other.params:
        p.data.mul_(2.0)
    names = list(reversed(problem.groups()[0]["param_names"]))
    state = _run(factory, problem, 1).state_dict()
    permuted = factory([{**problem.groups()[0], "param_names": names}], lr=0.1)
    attempts: dict[str, tuple[Callable[[], Any], str]] = {
        "points off the manifold": (lambda: factory(other.groups(), lr=0.1), "p0"),
        "a negative lr": (lambda: factory(problem.groups(), lr=-1.0), "lr"),
        "no parameters": (lambda: factory([], lr=0.1), "param"),
        "a permuted state": (lambda: permuted.load_state_dict(state), "param_names"),
    }
    for what, (attempt, word) in attempts.items():
        try:
            attempt()
        except (ValueError, TypeError) as error:
            assert word in str(error), f"the error about {what} does not say {word!r}: {error}"
        else:
            raise AssertionError(f"{what} are accepted")
