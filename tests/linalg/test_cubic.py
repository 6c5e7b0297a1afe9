"""Cubic models against a search over shifts of high resolution and over random directions."""

import pytest
import torch
from scipy import optimize

from steepest.linalg.cubic import cubic_step


def value(w, g, m, h):
    return (g * h + w * h * h / 2).sum(-1) + m * h.norm(dim=-1) ** 3 / 6


def brute(w, g, m, starts=40):
    """The least value that BFGS reaches from many places."""
    generator = torch.Generator().manual_seed(1)
    radius = max(1.0, float((2 * w.abs().max() / m).max()) + float((2 * g.norm() / m).sqrt()))
    best = 0.0

    def both(x):
        h = torch.tensor(x, dtype=torch.float64, requires_grad=True)
        f = value(w, g, m, h)
        return f.item(), torch.autograd.grad(f, h)[0].numpy()

    for _ in range(starts):
        x = radius * torch.randn(len(w), generator=generator, dtype=torch.float64)
        best = min(best, optimize.minimize(both, x.numpy(), jac=True, method="BFGS").fun)
    return best


CASES = {
    "convex": ([0.5, 1.0, 4.0], [1.0, -2.0, 0.3], 0.7),
    "indefinite": ([-2.0, 0.1, 3.0], [0.5, 1.0, -1.0], 1.0),
    "hard": ([-2.0, 0.1, 3.0], [0.0, 1.0, -1.0], 1.0),
    "hard, twice": ([-2.0, -2.0, 3.0], [0.0, 0.0, -1.0], 1.0),
    "nearly hard": ([-2.0, 0.1, 3.0], [1e-9, 1.0, -1.0], 1.0),
    "hard by the numbers, and not": ([-0.1, 0.1, 3.0], [0.0, 10.0, -1.0], 1.0),
    "at a saddle": ([-1.0, 1.0, 2.0], [0.0, 0.0, 0.0], 0.5),
    "singular": ([0.0, 0.0, 1.0], [0.3, 0.0, 1.0], 2.0),
    "one": ([-1.0], [0.2], 1.0),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_global_minimum(case):
    w, g, m = (torch.tensor(x, dtype=torch.float64) for x in case)
    h = cubic_step(w, g, m)
    found, best = value(w, g, m, h).item(), brute(w, g, m)
    assert found <= best + 1e-12 * abs(best) + 1e-13
    assert found >= best - 1e-6 * max(1, abs(best))  # BFGS stops at a gradient of 1e-5
    t = m * h.norm() / 2  # what makes a point the global minimiser
    torch.testing.assert_close((w + t) * h, -g, rtol=0, atol=1e-12)
    assert (w + t).min() >= -1e-12


def test_minimum_is_zero_without_gradient():
    w = torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert torch.equal(cubic_step(w, torch.zeros(2, dtype=torch.float64), torch.tensor(1.0)), torch.zeros_like(w))


def test_scales_and_batches():
    """h(a w, a^2 g, m) = a h(w, g, m), over two hundred orders of magnitude."""
    w = torch.tensor([[-2.0, 0.1, 3.0], [0.5, 1.0, 4.0]], dtype=torch.float64)
    g = torch.tensor([[0.5, 1.0, -1.0], [1.0, -2.0, 0.3]], dtype=torch.float64)
    m = torch.tensor([1.0, 0.7], dtype=torch.float64)
    h = cubic_step(w, g, m)
    for i in range(2):
        torch.testing.assert_close(h[i], cubic_step(w[i], g[i], m[i]), rtol=0, atol=0)
    for a in (1e-50, 1e50):
        torch.testing.assert_close(cubic_step(a * w, a * a * g, m) / a, h, rtol=1e-13, atol=0)
