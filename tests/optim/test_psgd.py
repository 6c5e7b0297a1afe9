"""What PSGD's preconditioners do for a run: conditioning, scale, sparsity, manifolds."""

from __future__ import annotations

import functools

import pytest
import torch

from steepest import PSGD, Adam, testing
from steepest.testing.optimizer import check_descends

FORMS = ("kron", "low_rank", "cross")


def definite(n: int, cond: float, generator: torch.Generator) -> torch.Tensor:
    q = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))[0]
    return (q * cond ** -torch.linspace(0, 1, n, dtype=torch.float64)) @ q.mT


def test_after_a_warm_up_at_random_points_conditioning_does_not_matter() -> None:
    """f(x) = tr(A x B x^T) / 2. Gradients at standard normal x are H x: what whitens them is H^-1, and the method
    Newton's. After 1500 of them, with Q then held, f falls as (1 - lr)^2 per step whether H has condition 1, 1e3 or
    1e6; plain gradient steps would need a million on the last. Ten per cent of f after a fall to 1/70 is half a per
    cent per step, what is left of the fit's noise."""
    generator = torch.Generator().manual_seed(1)
    hessians = [[definite(8, cond**0.5, generator) for _ in range(2)] for cond in (1.0, 1e3, 1e6)]
    points = [torch.nn.Parameter(torch.zeros(8, 8, dtype=torch.float64)) for _ in hessians]
    optimizer = PSGD(points, lr=0.0, momentum=0.0, clip=(1e9, 1e9))

    def step() -> torch.Tensor:
        """Of all three; f before it."""
        for x, (A, B) in zip(points, hessians, strict=True):
            x.grad = A @ x.detach() @ B
        f = torch.stack([(x.detach() * x.grad).sum() / 2 for x in points])
        optimizer.step()
        return f

    def start() -> None:
        for x in points:
            x.data = torch.randn(8, 8, generator=generator, dtype=torch.float64)

    (group,) = optimizer.param_groups
    for number in range(1500):
        group["lr_preconditioner"] = 0.1 * 0.005 ** (number / 1500)
        start()
        step()
    group["lr"], group["lr_preconditioner"] = 0.1, 0.0
    start()
    curves = torch.stack([step() for _ in range(21)])
    newton = 0.81 ** torch.arange(21, dtype=torch.float64)
    torch.testing.assert_close(curves / curves[0], newton[:, None].expand(21, 3), rtol=0.1, atol=0)


@pytest.mark.parametrize("form", FORMS)
def test_steps_do_not_depend_on_the_scale_of_the_gradient(form: str) -> None:
    """In float64 from 1e-6 to 1e12, as Q's first scale is the gradient's; but for the damping, 1e-9 in the gradient's
    unit."""
    runs = []
    for scale in (1e-6, 1.0, 1e12):
        x = torch.nn.Parameter(torch.zeros(4, 3, dtype=torch.float64))
        optimizer, generator = PSGD([x], lr=0.01, form=form), torch.Generator().manual_seed(0)
        for _ in range(20):
            x.grad = scale * torch.randn(4, 3, generator=generator, dtype=torch.float64)
            optimizer.step()
        runs.append(x.detach().clone())
    for run in (runs[0], runs[2]):
        torch.testing.assert_close(run, runs[1], rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("form", [*FORMS, "EQ", "QUAD"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_gradient_that_is_finite_leads_to_nan(form: str, dtype: torch.dtype) -> None:
    """Jumps over all of the range, zeros, single entries, and one direction only."""
    options = {"dQ": form} if form in ("EQ", "QUAD") else {"form": form}
    top = 1e6 if dtype == torch.float32 else 1e12
    x = torch.nn.Parameter(torch.zeros(5, 4, dtype=dtype))
    optimizer, generator = PSGD([x], lr=0.01, **options), torch.Generator().manual_seed(0)
    spike, flat = torch.zeros(5, 4, dtype=dtype), torch.ones(5, 4, dtype=dtype)
    spike[2, 1] = 1
    scales = [0.0, 0.0, 1 / top, top, 0.0, 1.0, *[top] * 5, *[1 / top] * 30, *[top] * 30, torch.finfo(dtype).tiny, 1.0]
    for pattern in (spike, flat, None):
        for scale in scales:
            shape = torch.randn(5, 4, generator=generator, dtype=dtype).clamp(-9, 9) if pattern is None else pattern
            x.grad = scale * shape
            optimizer.step()
            values = [x.detach(), *optimizer.state[x].values()]
            assert all(v.isfinite().all() for v in values), f"after a gradient of scale {scale}"


@pytest.mark.parametrize("form", FORMS)
def test_a_zero_gradient_leaves_the_preconditioner(form: str) -> None:
    x = torch.nn.Parameter(torch.zeros(4, 3, dtype=torch.float64))
    optimizer = PSGD([x], form=form, momentum=0.0)
    for number in range(4):
        x.grad = torch.randn(4, 3, generator=torch.Generator().manual_seed(number), dtype=torch.float64)
        optimizer.step()
    moved = x.detach().clone()
    keys = {"left", "right", "d", "diagonal", "cross"}
    before = {k: v.clone() for k, v in optimizer.state[x].items() if k.rpartition(".")[2] in keys}
    assert before
    for _ in range(3):
        x.grad = torch.zeros_like(x)
        optimizer.step()
    assert torch.equal(x, moved)
    assert all(torch.equal(v, optimizer.state[x][k]) for k, v in before.items())


@pytest.mark.parametrize("form", ["low_rank", "cross"])
def test_other_forms_descend_on_manifolds(form: str) -> None:
    """As the common suite has it for the first form; on every third kind of manifold."""
    check_descends(functools.partial(PSGD, form=form), testing.places()[::3])


@pytest.mark.slow
def test_correlated_gradients_are_where_it_beats_a_diagonal() -> None:
    """At a Hessian of condition 1e4 in turned axes, with noise in the gradients: in 300 steps the loss falls to a tenth
    of what Adam leaves, each with the best of three learning rates."""
    best = {}
    for family in (PSGD, Adam):
        for lr in (0.1, 0.03, 0.01):
            generator = torch.Generator().manual_seed(0)
            A, B = (definite(8, 100.0, generator) for _ in range(2))
            x = torch.nn.Parameter(torch.randn(8, 8, generator=generator, dtype=torch.float64))
            optimizer = family([x], lr=lr)
            for step in range(300):
                optimizer.param_groups[0]["lr"] = lr * (1 - step / 300)
                noise = 0.01 * torch.randn(8, 8, generator=generator, dtype=torch.float64)
                x.grad = A @ (x.detach() + noise) @ B
                optimizer.step()
            loss = (x.detach() * (A @ x.detach() @ B)).sum().item()
            best[family] = min(best.get(family, loss), loss)
    assert best[PSGD] < 0.1 * best[Adam], best
