"""Whitening and gains against the inputs and the Hessian that they are made for."""

from __future__ import annotations

import math

import torch
from torch import nn

from steepest.curvature import InputGain, InputWhitening

DOUBLE = torch.float64


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def losses(transform, steps=6):
    """Descent with whitening on inputs that a matrix was applied to."""
    x, y = randn(20, 3) @ transform.T, randn(20, 2, seed=1)
    torch.manual_seed(0)
    layer = nn.Linear(3, 2).double()
    with torch.no_grad():
        layer.weight.copy_(layer.weight @ torch.linalg.inv(transform))
    InputWhitening(layer, damping=1e-14).attach(optimizer := torch.optim.SGD(layer.parameters(), lr=0.3))
    seen = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (torch.tanh(layer(x)) - y).square().sum(-1).mean()
        loss.backward()
        optimizer.step()
        seen.append(loss.detach())
    return torch.stack(seen)


def test_whitening_does_not_see_a_change_of_inputs():
    plain = losses(torch.eye(3, dtype=DOUBLE))
    assert plain[-1] < 0.9 * plain[0]
    mixed = torch.tensor([[1.0, 2, 0], [0, 0.1, 3], [1, 0, 30]], dtype=DOUBLE)
    torch.testing.assert_close(losses(mixed), plain, rtol=1e-6, atol=0)  # damping, and rounding of a condition of 1e5


def test_whitening_is_a_gradient_of_white_inputs():
    x, y = randn(20, 3) @ randn(3, 3, seed=2), randn(20, 2, seed=1)
    layer = nn.Linear(3, 2, bias=False).double()
    whitening = InputWhitening(layer, damping=0.0)
    (layer(x) - y).square().sum(-1).mean().backward()
    whitening.precondition()
    root = torch.linalg.inv(torch.linalg.cholesky(x.T @ x / 20))  # white = x root^T
    white = nn.Linear(3, 2, bias=False).double()
    with torch.no_grad():
        white.weight.copy_(layer.weight @ torch.linalg.inv(root))
    (white(x @ root.T) - y).square().sum(-1).mean().backward()
    torch.testing.assert_close(layer.weight.grad, white.weight.grad @ root, rtol=1e-9, atol=1e-12)


def test_gains_are_newtons_step():
    """On weighted least squares, where the loss along the gains is a parabola, its minimum by autograd's Hessian."""
    x, y, root = randn(30, 4), randn(30, 3, seed=1), randn(3, 3, seed=2)
    layer = nn.Linear(4, 3, bias=False).double()

    def loss(weight):
        r = (x @ weight.T - y) @ root
        return r.square().sum(-1).mean() / 2

    gains = InputGain(layer, damping=1e-14, fisher="sampled")
    for column in root.T:
        with gains.sampling():
            ((layer(x) @ column).mean() / math.sqrt(3)).backward()
    layer.zero_grad()
    loss(layer.weight).backward()
    g, w = layer.weight.grad.clone(), layer.weight.detach()
    gains.precondition()

    def along(r):
        return loss(w - g * r)

    r = torch.zeros(4, dtype=DOUBLE, requires_grad=True)
    slope, bend = torch.func.grad(along)(r), torch.func.hessian(along)(r)
    newton = -torch.linalg.solve(bend, slope)
    assert (root @ root.T).shape == (3, 3)
    torch.testing.assert_close(layer.weight.grad, g * newton.detach(), rtol=1e-8, atol=1e-10)
    assert along(newton) < loss(w - 0.1 * g)
