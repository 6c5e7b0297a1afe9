"""K-FAC against dense linear algebra: the Fisher matrix of a layer, built example by example."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from steepest.curvature import KFAC, KLClip, OwnNorm

DOUBLE = torch.float64


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def loss_of(output, y):
    return (output - y).square().sum(-1).mean() / 2


def dense_natural_gradient(layer, a, g, grad, damping):
    """vec(D) divided by the Kronecker product of the damped factors, from every example's input and output gradient."""
    big_a, big_g = (torch.stack([torch.outer(v, v) for v in x]).mean(0) for x in (a, g))
    pi = math.sqrt(big_a.trace() / len(big_a) / (big_g.trace() / len(big_g)))
    big_a = big_a + pi * math.sqrt(damping) * torch.eye(len(big_a), dtype=DOUBLE)
    big_g = big_g + math.sqrt(damping) / pi * torch.eye(len(big_g), dtype=DOUBLE)
    fisher = torch.kron(big_g, big_a)  # of row-major vec(D)
    return torch.linalg.solve(fisher, grad.flatten()).reshape(grad.shape)


@pytest.mark.parametrize("damping", [1e-4, 1e-1])
def test_is_the_dense_natural_gradient(damping):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    x, y = randn(7, 3), randn(7, 2, seed=1)
    kfac = KFAC(model, damping=damping)
    loss_of(model(x), y).backward()
    model.eval()  # what follows is not recorded
    expected = {}
    for i in (0, 2):
        a, g = [], []
        for j in range(len(x)):  # one example at a time
            before = model[:i](x[j : j + 1]) if i else x[j : j + 1]
            out = model[i](before.detach()).detach().requires_grad_()
            (of_out,) = torch.autograd.grad(loss_of(model[i + 1 :](out), y[j : j + 1]), out)
            a.append(torch.cat([before[0], before.new_ones(1)]).detach())
            g.append(of_out[0])
        grad = torch.cat([model[i].weight.grad, model[i].bias.grad[:, None]], 1)
        expected[i] = dense_natural_gradient(model[i], a, g, grad, damping)
    kfac.precondition()
    for i, p in expected.items():
        torch.testing.assert_close(model[i].weight.grad, p[:, :-1], rtol=1e-9, atol=0)  # rounding times condition 1e4
        torch.testing.assert_close(model[i].bias.grad, p[:, -1], rtol=1e-9, atol=0)


def test_newton_in_one_step():
    """On linear least squares with weights M on the outputs the Hessian is M (x) E[a a^T]; with the roots of M as
    output gradients K-FAC has it exactly, and a step of length 1 is at the minimum."""
    x, y, root = randn(30, 5), randn(30, 3, seed=1), randn(3, 3, seed=2)
    weights = root @ root.T
    layer = nn.Linear(5, 3).double()

    def loss():
        r = layer(x) - y
        return ((r @ weights) * r).sum(-1).mean() / 2

    kfac = KFAC(layer, damping=1e-20, fisher="sampled")
    kfac.attach(optimizer := torch.optim.SGD(layer.parameters(), lr=1.0))
    for column in root.T:
        with kfac.sampling():
            # k passes, each divided by k, of gradients sqrt(k) column: on average column column^T, summed to M
            ((layer(x) @ column).mean() / math.sqrt(3)).backward()
    optimizer.zero_grad()
    loss().backward()
    optimizer.step()
    optimizer.zero_grad()
    loss().backward()
    assert torch.cat([p.grad.flatten() for p in layer.parameters()]).abs().max() < 1e-8  # sqrt(damping) and rounding
    best = torch.linalg.lstsq(torch.cat([x, x.new_ones(30, 1)], 1), y).solution
    torch.testing.assert_close(layer.weight, best[:-1].T, rtol=1e-7, atol=1e-8)


def curve(condition, fisher, lr, steps=20, n=8, m=6, rows=256):
    """Losses of K-FAC on the same least-squares problem, seen through inputs and outputs of some condition number."""
    white, teacher, start, noise = randn(rows, n), randn(m, n, seed=1), randn(m, n, seed=2), randn(rows, m, seed=3)
    decades = -math.log10(condition) / 2
    roots = []
    for k in (n, m):
        q = torch.linalg.qr(randn(k, k, seed=4))[0]
        roots.append((q * torch.logspace(0, decades, k, dtype=DOUBLE)) @ q.T)
    layer = nn.Linear(n, m, bias=False).double()
    with torch.no_grad():
        layer.weight.copy_(torch.linalg.inv(roots[1]) @ start @ torch.linalg.inv(roots[0]))
    x, y = white @ roots[0], white @ teacher.T + noise / 10
    kfac = KFAC(layer, damping=1e-18, fisher=fisher)
    kfac.attach(optimizer := torch.optim.SGD(layer.parameters(), lr=lr))
    generator, losses = torch.Generator().manual_seed(5), []
    for _ in range(steps):
        i = torch.randperm(rows, generator=generator)[:64]
        if fisher == "sampled":
            draw = torch.randn(64, m, generator=generator, dtype=DOUBLE)
            with kfac.sampling():
                seen = layer(x[i]) @ roots[1].T
                loss_of(seen, seen.detach() + draw).backward()
            optimizer.zero_grad()
        loss_of(layer(x[i]) @ roots[1].T, y[i]).backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss_of(layer(x) @ roots[1].T, y).item())
    return torch.tensor(losses, dtype=DOUBLE)


@pytest.mark.parametrize(("fisher", "lr"), [("empirical", 0.5), ("sampled", 0.3)])
def test_curves_do_not_depend_on_the_condition(fisher, lr):
    """At condition 1, 1e3 and 1e6 of the inputs and of the outputs at once. What is left is damping, which must lie
    below the product of the smallest eigenvalues, here 1e-12: at 1e-18 curves differ by 1e-5 (empirical) and 1e-3
    (sampled), at 1e-14 by 1% and 14%, and at the usual 1e-3 they have little in common."""
    curves = [curve(c, fisher, lr) for c in (1.0, 1e3, 1e6)]
    assert curves[0][-1] < curves[0][0] / 2
    for other in curves[1:]:
        assert ((other - curves[0]).abs() / curves[0]).max() < 0.1


def test_average_forgets_its_start():
    layer = nn.Linear(2, 2, bias=False).double()
    kfac = KFAC(layer, decay=0.9)
    seen = []
    for step in range(12):
        x = randn(5, 2, seed=step)
        layer.weight.grad = None
        layer(x).sum().backward()
        kfac.precondition()
        seen.append(x.T @ x / 5)
    expected = seen[0]
    for k, x in enumerate(seen[1:], 2):
        keep = min(0.9, 1 - 1 / k)
        expected = keep * expected + (1 - keep) * x
    torch.testing.assert_close(kfac.state_dict()["layers"][""]["inputs"], expected, rtol=1e-12, atol=1e-12)


def test_rescalings():
    def grads(**options):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
        groups = [{"params": model[i].parameters(), "lr": lr} for i, lr in ((0, 0.5), (2, 2.0))]
        optimizer = torch.optim.SGD(groups)
        kfac = KFAC(model, **options).attach(optimizer)
        loss_of(model(randn(6, 3)), randn(6, 2, seed=1)).backward()
        before = [layer.weight.grad.clone() for layer in (model[0], model[2])]
        bias = [layer.bias.grad.clone() for layer in (model[0], model[2])]
        kfac.precondition()
        pairs = zip((model[0], model[2]), before, bias, strict=True)
        return [
            (torch.cat([w, b[:, None]], 1), torch.cat([k.weight.grad, k.bias.grad[:, None]], 1)) for k, w, b in pairs
        ]

    plain = grads()
    for (g, p), (_, q) in zip(grads(rescale=OwnNorm()), plain, strict=True):
        torch.testing.assert_close(p.norm(), g.norm())
        torch.testing.assert_close(p / p.norm(), q / q.norm())
    for limit in (1e-3, 1e9):
        total = sum(lr**2 * (g * p).sum() for lr, (g, p) in zip((0.5, 2.0), plain, strict=True))
        factor = min(1, math.sqrt(limit / total))
        for (_, p), (_, q) in zip(grads(rescale=KLClip(limit)), plain, strict=True):
            torch.testing.assert_close(p, factor * q)


def test_what_cannot_be_inverted_keeps_its_inverse():
    """Without damping and memory: equal examples after different ones."""
    layer = nn.Linear(5, 1, bias=False).double()
    kfac = KFAC(layer, damping=0.0, decay=0.0)
    for x in (randn(9, 5), torch.ones(9, 5, dtype=DOUBLE)):
        layer.zero_grad()
        layer(x).sum().backward()
        kfac.precondition()
        assert layer.weight.grad.isfinite().all()
    expected = torch.linalg.inv(randn(9, 5).T @ randn(9, 5) / 9)
    torch.testing.assert_close(kfac.state_dict()["layers"][""]["inputs_inverse"], expected)


def test_errors_teach():
    layer = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="damping: got -1"):
        KFAC(layer, damping=-1)
    with pytest.raises(ValueError, match="loss: got 'max', expected one of 'mean', 'token_mean', 'sum'"):
        KFAC(layer, loss="max")
    with pytest.raises(TypeError, match="unknown option 'momentum'; it takes damping, decay, every"):
        KFAC(layer, momentum=0.9)
    with pytest.raises(ValueError, match="has no layer"):
        KFAC(nn.Linear(2, 2), max_side=1)
    with pytest.raises(ValueError, match="complex"):
        KFAC(nn.Linear(2, 2, dtype=torch.complex64))
    with pytest.raises(ValueError, match="run the model once"):
        KFAC(nn.LazyLinear(2))
    kfac = KFAC(layer, rescale=KLClip())
    with pytest.raises(ValueError, match="none of the weights"):
        kfac.attach(torch.optim.SGD([nn.Parameter(torch.ones(1))]))
    layer(torch.ones(1, 2)).sum().backward()
    with pytest.raises(ValueError, match="needs learning rates"):
        kfac.precondition()
    with pytest.raises(ValueError, match="empirical"), kfac.sampling():
        pass
    optimizer = torch.optim.SGD(layer.parameters())
    kfac.attach(optimizer)
    with pytest.raises(ValueError, match="attached already"):
        kfac.attach(optimizer)
    kfac.detach()
    with pytest.raises(ValueError, match="build a new one"):
        kfac.attach(optimizer)
