"""Balanced factors: the same product, equal Gram matrices; momentum that starts anew."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import steepest
from steepest import refactor_
from steepest.transforms import AdamScale, Momentum, Restart


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([(6, 2, 5), (4, 4, 4), (3, 1, 7)]), st.floats(-6, 6), st.booleans())
def test_the_same_product_in_balanced_factors(seed, shape, exponent, complex_):
    m, r, n = shape
    generator = torch.Generator().manual_seed(seed)
    dtype = torch.complex128 if complex_ else torch.float64
    b = torch.randn(3, m, r, generator=generator, dtype=dtype) * 10**exponent
    a = torch.randn(3, r, n, generator=generator, dtype=dtype)
    w = b @ a
    refactor_(b, a)
    size = w.abs().max()
    # QR and SVD in float64, relative to the product
    assert (b @ a - w).abs().max() < 1e-13 * size
    assert (b.mH @ b - a @ a.mH).abs().max() < 1e-13 * size


def test_a_product_without_full_rank_stays():
    """Else a direction would have no gradient in either factor, for good."""
    b, a = torch.zeros(6, 2), torch.randn(2, 5)
    kept = a.clone()
    refactor_(b, a)
    assert torch.equal(a, kept)
    b[:, 0] = 1.0
    refactor_(b, a)
    assert torch.equal(a, kept)


def test_refuses_factors_that_do_not_fit():
    with pytest.raises(ValueError, match="a: has 3 rows"):
        refactor_(torch.zeros(6, 2), torch.zeros(3, 5))


def test_restart_is_a_fresh_start():
    """Every third step, Adam begins anew: from there on it steps as one that has just been made."""
    generator = torch.Generator().manual_seed(0)
    gradients = torch.randn(7, 4, 3, generator=generator, dtype=torch.float64)
    x = torch.nn.Parameter(torch.zeros(4, 3, dtype=torch.float64))
    y = torch.nn.Parameter(torch.zeros(4, 3, dtype=torch.float64))
    restarted = steepest.Composed([x], Restart(AdamScale(), every=3), lr=0.1)
    for step, g in enumerate(gradients):
        if step % 3 == 0:
            fresh = steepest.Composed([y], AdamScale(), lr=0.1)
        x.grad, y.grad = g.clone(), g.clone()
        restarted.step()
        fresh.step()
        torch.testing.assert_close(x, y, rtol=0, atol=1e-14)


def test_adam_gains_from_both_where_factors_differ_in_size():
    """Two factors 1e3 apart: Adam on them alone stays behind Adam whose factors are balanced and moments reset."""
    losses = {}
    for balanced in (False, True):
        torch.manual_seed(0)
        target = torch.randn(12, 3) @ torch.randn(3, 10)
        b, a = torch.nn.Parameter(30 * torch.randn(12, 3)), torch.nn.Parameter(torch.randn(3, 10) / 30)
        chain = Restart(AdamScale(), every=50) if balanced else AdamScale()
        optimizer = steepest.Composed([b, a], chain, lr=0.03)
        for step in range(200):
            if balanced and step % 50 == 0:
                refactor_(b, a)
            optimizer.zero_grad()
            loss = (b @ a - target).square().mean()
            loss.backward()
            optimizer.step()
        losses[balanced] = loss.item()
    assert losses[True] < 0.5 * losses[False], losses


def test_restart_keeps_momentum_on_manifolds():
    """Carried as without it."""
    torch.manual_seed(0)
    start = steepest.Stiefel().random_point((6, 2), dtype=torch.float64)
    ends = []
    for chain in (Momentum(0.9), Restart(Momentum(0.9), every=100)):
        x = torch.nn.Parameter(start.clone())
        group = {"params": [x], "geometry": steepest.Stiefel(), "role": "point"}
        optimizer = steepest.Composed([group], chain, lr=0.1)
        for step in range(5):
            x.grad = torch.randn(6, 2, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
            optimizer.step()
        ends.append(x.detach())
    torch.testing.assert_close(*ends, rtol=0, atol=0)
