"""A Rule whose result nobody differentiates is its formula alone; one that somebody does is a Rule, under every kind of
derivative."""

import pytest
import torch
from torch.autograd import forward_ad

from steepest.linalg import sym_exp, sym_log
from steepest.linalg.autograd import plain
from steepest.linalg.symmetric import _Value, exp_root, log_congruence, log_norm
from steepest.manifolds import SPD, Grassmann, Stiefel


def spd(n=4, seed=0):
    return SPD().random_point((n, n), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_when():
    x = spd()
    assert plain(x)
    assert not plain(x.clone().requires_grad_())
    assert not plain(2.0, x.clone().requires_grad_())
    with torch.no_grad():
        assert plain(x.clone().requires_grad_())
    with forward_ad.dual_level():
        assert not plain(x)
    assert plain(x)
    seen = []
    for transform in (torch.func.vmap, torch.func.grad, torch.func.jacfwd, torch.func.functionalize):
        transform(lambda t: (seen.append(plain(t)), t.sum())[1])(x)
    torch.func.jvp(lambda t: (seen.append(plain(x)), t.sum())[1], (x,), (x,))
    assert not any(seen)
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        assert not plain(x)


def test_apply_is_left_out(monkeypatch):
    def refuse(*_):
        raise AssertionError("apply was called")

    monkeypatch.setattr(_Value.eager, "apply", refuse)
    sym_exp(spd())
    with torch.no_grad():
        sym_exp(spd().requires_grad_())
    with pytest.raises(AssertionError, match="apply"):
        sym_exp(spd().requires_grad_())


def test_derivatives_without_a_tape():
    """Forward mode and `torch.func` under no_grad, where backward mode is off."""
    x, e = spd(), spd(seed=1)
    expected = torch.func.jvp(sym_log, (x,), (e,))[1]
    with torch.no_grad():
        torch.testing.assert_close(torch.func.jvp(sym_log, (x,), (e,))[1], expected)
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(x, e)
            torch.testing.assert_close(forward_ad.unpack_dual(sym_log(dual)).tangent, expected)
        g = torch.func.grad(lambda t: sym_log(t).sum())(x)
    y = x.clone().requires_grad_()
    sym_log(y).sum().backward()
    torch.testing.assert_close(g, y.grad)
    rows = torch.func.vmap(sym_log)(torch.stack([x, e]))
    torch.testing.assert_close(rows, torch.stack([sym_log(x), sym_log(e)]))


@pytest.mark.parametrize("n", [3, 10, 40])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_fused_forms_agree_with_the_plain_ones(n, dtype):
    a = torch.randn(3, n, n, dtype=dtype, generator=torch.Generator().manual_seed(0)) / n**0.5
    m, x = torch.linalg.cholesky(a @ a.mH + torch.eye(n)), a @ a.mH + torch.eye(n)
    close = {"rtol": 1e-11, "atol": 1e-11}
    for h in (a + a.mH, 1e-3 * (a + a.mH), 5 * (a + a.mH)):
        root = exp_root(m, h)
        scale = torch.linalg.matrix_norm(sym_exp(h), 2, keepdim=True)
        torch.testing.assert_close(root @ root.mH / scale, m @ sym_exp(h) @ m.mH / scale, **close)
    torch.testing.assert_close(log_congruence(m, x), m @ sym_log(x) @ m.mH, **close)
    torch.testing.assert_close(log_norm(x), torch.linalg.matrix_norm(sym_log(x)), **close)


MANIFOLDS = {
    "SPD": (SPD(), (5, 5)),
    "SPD second order": (SPD(retraction="second_order"), (5, 5)),
    "Grassmann": (Grassmann(), (9, 3)),
    "Grassmann, half": (Grassmann("exp"), (4, 2)),
    "Stiefel": (Stiefel(), (9, 3)),
    "Stiefel canonical": (Stiefel("canonical", "exp"), (9, 3)),
    "SPD 3 x 3": (SPD(), (2400, 3, 3)),
    "SPD 40 x 40": (SPD(), (2, 40, 40)),
    "Stiefel 40": (Stiefel(), (60, 20)),
}


@pytest.mark.parametrize("name", MANIFOLDS)
def test_the_same_with_and_without_derivatives(name):
    """Every operation gives what it gives to somebody who is going to differentiate it."""
    manifold, shape = MANIFOLDS[name]
    generator = torch.Generator().manual_seed(0)
    x, y = (manifold.random_point(shape, dtype=torch.float64, generator=generator) for _ in range(2))
    g = torch.randn(shape, dtype=torch.float64, generator=generator)
    v = 0.3 * manifold.grad(x, g / torch.linalg.matrix_norm(g, keepdim=True))
    y = manifold.exp(x, manifold.grad(x, 0.1 * y))
    calls = {
        "exp": (x, v),
        "log": (x, y),
        "dist": (x, y),
        "grad": (x, g),
        "retract": (x, v),
        "transport": (x, y, v),
    }
    for method, arguments in calls.items():
        bare = getattr(manifold, method)(*arguments)
        taped = getattr(manifold, method)(*(t.clone().requires_grad_() for t in arguments))
        assert taped.requires_grad
        torch.testing.assert_close(bare, taped.detach(), rtol=1e-10, atol=1e-11, msg=lambda m, k=method: f"{k}: {m}")
