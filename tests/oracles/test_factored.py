"""Adafactor against torch.optim, SM3 against its algorithm and against pytorch_optimizer."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import steepest
from steepest import Euclidean, Stiefel
from steepest.transforms import ClipRMS, Context, FactoredScale, ParameterScale, SM3Scale, chain

SHAPES = ((6, 4), (4, 6), (6, 4), (1, 5), (5, 1), (7,), (1,))
"""Two of them are one batch; of a matrix with a side of one we keep the full average, which is the same."""


def gradients(shapes: Any, steps: int, scale: float = 1.0) -> list[list[Tensor]]:
    """Of sizes that change from step to step, so that some steps are clipped and others are not."""
    seed = torch.Generator().manual_seed(1)
    return [
        [scale * (1 + t % 3) * torch.randn(s, generator=seed, dtype=torch.float64) for s in shapes]
        for t in range(steps)
    ]


def run(kind: Any, dtype: torch.dtype, shapes: Any = SHAPES, scale: float = 1.0, **options: Any) -> list[Tensor]:
    seed = torch.Generator().manual_seed(0)
    params = [nn.Parameter(torch.randn(s, generator=seed, dtype=torch.float64).to(dtype)) for s in shapes]
    optimizer = kind(params, **options)
    for step in gradients(shapes, 20, scale):
        for p, g in zip(params, step, strict=True):
            p.grad = g.to(dtype) + scale * 0.1 * p.detach()
        optimizer.step()
    return [p.detach() for p in params]


ADAFACTOR: dict[str, dict[str, Any]] = {
    "defaults": {},
    "lr that the steps' number caps": {"lr": 0.4},
    "decay": {"weight_decay": 0.1},
    "maximize": {"maximize": True, "weight_decay": 0.1},
    "all": {"lr": 0.1, "beta2_decay": -0.5, "eps": (1e-3, 2.0), "d": 1.5, "weight_decay": 0.01},
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", ADAFACTOR)
def test_adafactor_equals_torch(name: str, dtype: torch.dtype) -> None:
    """20 steps, which are the same operations in another order."""
    options = ADAFACTOR[name]
    ours, theirs = (run(kind, dtype, **options) for kind in (steepest.Adafactor, torch.optim.Adafactor))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=100 * torch.finfo(dtype).eps)


def test_adafactor_equals_torch_where_eps_counts() -> None:
    """Gradients so small that the mean of their squares is below float32's eps, and then so small that they are. (Of a
    matrix with a side of one our full average is not bounded by that.)"""
    shapes = [s for s in SHAPES if 1 not in s]
    for scale in (1e-4, 1e-7):
        ours, theirs = (run(k, torch.float32, shapes, scale) for k in (steepest.Adafactor, torch.optim.Adafactor))
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=100 * torch.finfo(torch.float32).eps)


def test_a_second_moment_of_rank_one_is_found() -> None:
    """Where the squares are a product of rows and columns, V is their average itself, and its size does not matter."""
    seed = torch.Generator().manual_seed(0)
    a, b = (torch.rand(s, generator=seed, dtype=torch.float64) + 0.1 for s in ((5, 1), (1, 3)))
    context = Context(Euclidean(), a @ b, 0.1, 1)
    for scale in (1.0, 1e-80, 1e80):
        h = scale * a @ b * torch.tensor([1.0, -1.0, 1.0], dtype=torch.float64)
        one = chain(FactoredScale(eps=1e-200))
        out = one.update((h,), one.init((h,), context), context)[0]
        torch.testing.assert_close(out, h.sign(), rtol=1e-12, atol=0)


def test_more_axes_are_a_matrix() -> None:
    seed = torch.Generator().manual_seed(0)
    start, g = (torch.randn(4, 3, 2, 2, generator=seed) for _ in range(2))
    ends = []
    for shape in ((4, 3, 2, 2), (4, 12)):
        p = nn.Parameter(start.reshape(shape).clone())
        optimizer = steepest.Adafactor([p], lr=0.1)
        p.grad = g.reshape(shape)
        optimizer.step()
        ends.append(p.detach().reshape(4, 12))
        assert {k: tuple(v.shape) for k, v in optimizer.state[p].items()} == {
            "factored_scale.rows": (4,), "factored_scale.columns": (12,), "step": ()
        }  # fmt: skip
    assert torch.equal(*ends)


def test_phases_do_not_matter() -> None:
    seed = torch.Generator().manual_seed(0)
    h = torch.randn(4, 3, generator=seed, dtype=torch.complex128)
    phase = torch.randn(4, 3, generator=seed, dtype=torch.complex128).sgn()
    for scale in (FactoredScale(), SM3Scale()):
        one, context = chain(scale), Context(Euclidean(), h, 0.1, 1)
        outs = [one.update((x,), one.init((x,), context), context)[0] for x in (h, h * phase)]
        torch.testing.assert_close(outs[0] * phase, outs[1], rtol=1e-12, atol=1e-12)


def test_clipped_and_relative_steps() -> None:
    h = torch.tensor([[3.0, 4.0], [0.0, 0.0]])  # root mean square 2.5
    context = Context(Euclidean(), 10 * h, 0.5, 16)
    assert torch.allclose(ClipRMS(1.0).update(h, {}, context), h / 2.5)
    assert torch.equal(ClipRMS(3.0).update(h, {}, context), h)
    assert torch.allclose(ParameterScale().update(h, {}, context), 25 * h)
    assert torch.allclose(ParameterScale(capped=True).update(h, {}, context), 12.5 * h)  # 1/4 is half of lr
    assert torch.allclose(ParameterScale(100.0).update(h, {}, context), 100 * h)
    frozen = Context(Euclidean(), h, 0.0, 16)
    assert torch.allclose(ParameterScale(capped=True).update(h, {}, frozen), 2.5 * h)
    stiefel = Stiefel()
    x = torch.eye(2)
    assert torch.equal(ParameterScale().update(h, {}, Context(stiefel, stiefel.frame(x), 0.1, 1)), h)


# SM3. -----------------------------------------------------------------------------------------------------------------


def sm3(shape: tuple[int, ...], steps: list[Tensor], lr: float, momentum: float, start: Tensor) -> Tensor:
    """SM3-II as its paper has it: sets of indices S_r, one for each slice along each axis."""
    indices = list(itertools.product(*map(range, shape)))
    mu = {(axis, i): 0.0 for axis, n in enumerate(shape) for i in range(n)}
    w, average = start.clone(), torch.zeros(shape, dtype=torch.float64)

    def sets(index: tuple[int, ...]) -> Iterator[tuple[int, int]]:
        return iter(enumerate(index))

    for g in steps:
        nu = {j: min(mu[r] for r in sets(j)) + g[j].item() ** 2 for j in indices}
        mu = {r: max(nu[j] for j in indices if j[r[0]] == r[1]) for r in mu}
        for j in indices:
            scaled = g[j] / nu[j] ** 0.5 if nu[j] else 0.0
            average[j] = momentum * average[j] + (1 - momentum) * scaled
        w = w - lr * average
    return w


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("shape", [(3, 2), (4,), (2, 3, 2)], ids=str)
def test_sm3_equals_its_paper(shape: tuple[int, ...], momentum: float) -> None:
    start = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    steps = [g[0] for g in gradients([shape], 6)]
    for g in steps:
        g.view(-1)[0] = 0  # 0 / 0
    p = nn.Parameter(start.clone())
    optimizer = steepest.SM3([p], lr=0.1, momentum=momentum)
    for g in steps:
        p.grad = g.clone()
        optimizer.step()
    torch.testing.assert_close(p.detach(), sm3(shape, steps, 0.1, momentum, start), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sm3_equals_pytorch_optimizer(momentum: float) -> None:
    theirs = pytest.importorskip("pytorch_optimizer").SM3
    shapes = (*SHAPES, (), (2, 3, 4), (2, 3, 2, 2))
    runs = [run(k, torch.float64, shapes, lr=0.1, momentum=momentum) for k in (steepest.SM3, theirs)]
    for a, b in zip(*runs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_sm3_of_a_vector_is_adagrad() -> None:
    ours = run(steepest.SM3, torch.float64, ((7,),), lr=0.1, momentum=0.0)
    theirs = run(torch.optim.Adagrad, torch.float64, ((7,),), lr=0.1, eps=0.0)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
