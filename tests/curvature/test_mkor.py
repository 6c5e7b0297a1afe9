"""MKOR's rank-1 corrections against inverses, and its hybrid's rule."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from steepest.curvature import MKOR, LossTrend, OwnNorm

DOUBLE = torch.float64


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def test_average_is_the_inverse_of_an_average():
    """Of the outer products of the means of what the layer saw, and of the identity that it starts from."""
    layer = nn.Linear(4, 3).double()
    mkor = MKOR(layer, decay=0.8, rule="average", limit=1e9, clip=1e9, every=1)
    factors = {"inputs": torch.eye(5, dtype=DOUBLE), "outputs": torch.eye(3, dtype=DOUBLE)}
    for step in range(8):
        x, weights = randn(6, 4, seed=step), randn(6, 3, seed=100 + step)
        layer.zero_grad()
        (layer(x) * weights).sum(-1).mean().backward()
        mkor.precondition()
        means = {"inputs": torch.cat([x.mean(0), x.new_ones(1)]), "outputs": weights.mean(0)}
        for key, v in means.items():
            factors[key] = 0.8 * factors[key] + 0.2 * torch.outer(v, v)
            expected = torch.linalg.inv(factors[key])
            torch.testing.assert_close(mkor.state_dict()["layers"][""][key], expected, rtol=1e-10, atol=1e-10)


def test_stabiliser():
    """Where v never points the average's inverse grows like decay^-k, up to the limit."""
    layer = nn.Linear(3, 2, bias=False).double()
    mkor = MKOR(layer, decay=0.5, rule="average", limit=4.0, blend=0.5, every=1)
    x = torch.tensor([[1.0, 0, 0]], dtype=DOUBLE)
    for _ in range(3):
        layer.zero_grad()
        layer(x).sum().backward()
        mkor.precondition()
    b = mkor.state_dict()["layers"][""]["inputs"]
    assert b[1, 1] == 4.5  # 8 / 2 + 1 / 2: 2 and 4 before were within the limit


def test_relaxed_never_exceeds_the_identity():
    """So that there is nothing to stabilise."""
    layer = nn.Linear(3, 2, bias=False).double()
    mkor = MKOR(layer, every=1)
    for step in range(30):
        layer.zero_grad()
        layer(10 * randn(4, 3, seed=step)).sum().backward()
        mkor.precondition()
        for b in mkor.state_dict()["layers"][""].values():
            w = torch.linalg.eigvalsh(b)
            assert w.min() > 0
            assert w.max() <= 1 + 1e-12


def test_keeps_the_length_by_default():
    layer = nn.Linear(3, 2).double()
    mkor = MKOR(layer, every=1)
    assert mkor.options["rescale"] == OwnNorm()
    layer(randn(4, 3)).square().sum().backward()
    before = torch.cat([layer.weight.grad.flatten(), layer.bias.grad])
    mkor.precondition()
    after = torch.cat([layer.weight.grad.flatten(), layer.bias.grad])
    assert not torch.allclose(before, after)
    torch.testing.assert_close(before.norm(), after.norm())


def test_hybrid_ends_when_the_loss_no_longer_falls():
    layer = nn.Linear(3, 2).double()
    mkor = MKOR(layer, every=1, hybrid=LossTrend(share=0.1, warmup=5))

    def changed():
        layer.zero_grad()
        layer(randn(4, 3)).square().sum().backward()
        before = layer.weight.grad.clone()
        mkor.precondition()
        return not torch.equal(before, layer.weight.grad)

    for k in range(10):
        mkor.observe(torch.tensor(10.0 - k))
        assert changed()
    mkor.observe(float("nan"))
    assert changed()
    for _ in range(80):
        mkor.observe(torch.tensor(1.0))
    assert not mkor.due
    assert not changed()
    other = MKOR(nn.Linear(3, 2).double(), hybrid=LossTrend(share=0.1, warmup=5))
    other.load_state_dict(mkor.state_dict())
    assert other._is_over()
    mkor.observe(0.0)  # for good
    assert not changed()
    with pytest.raises(ValueError, match="hybrid"):
        MKOR(layer).observe(1.0)
    with pytest.raises(ValueError, match="rule: got 'exact'"):
        MKOR(layer, rule="exact")
