"""HRA: thin products against dense reflections, the authors' formulas, and what a forward pass costs."""

import math

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from steepest import Adam, Grassmann, Oblique, param_groups
from steepest.adapters import HRA, HRAConfig, Source, penalty
from steepest.adapters.reflections import paired, reflect


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def product(u):
    """H_1 H_2 ... H_r as dense matrices."""
    eye = torch.eye(len(u), dtype=u.dtype)
    return torch.linalg.multi_dot([eye, *(eye - 2 * torch.outer(v, v) / (v @ v) for v in u.mT), eye])


def gram_schmidt(u):
    """An orthonormal basis by the authors' order of subtractions."""
    found = []
    for v in u.mT:
        for q in found:
            v = v - (q @ v) * q
        found.append(v / v.norm())
    return torch.stack(found, 1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("n", "r"), [(6, 1), (6, 2), (6, 6), (7, 20), (100, 32)])
def test_the_compact_form_is_the_product_of_reflections(n, r, dtype):
    u, x = random(n, r) * 10 ** random(r, seed=1), random(5, n, seed=2)
    dense = product(u)
    tolerance = 40 * math.sqrt(r) * torch.finfo(dtype).eps * x.norm().item()  # some rounding for each reflection
    close = {"rtol": 0, "atol": tolerance}
    there, back = (reflect(u.to(dtype), x.to(dtype), inverse=inverse) for inverse in (False, True))
    torch.testing.assert_close(there.double(), x @ dense, **close)
    torch.testing.assert_close(back.double(), x @ dense.mT, **close)


def test_vectors_that_are_nearly_the_same_do_no_harm():
    """As they are at the start, and soon after; the triangle has 1/2 on its diagonal, whatever the vectors are."""
    for gap in (0.0, 1e-12, 1e-7, 1e-3):
        u = paired(random(9, 3)) + gap * random(9, 6, seed=1)
        x = random(4, 9, seed=2)
        torch.testing.assert_close(reflect(u, x), x @ product(u), rtol=0, atol=1e-13)


def test_leading_batch_dimensions():
    u, x = random(2, 3, 6, 4), random(2, 3, 5, 6, seed=1)
    for i in range(2):
        for j in range(3):
            torch.testing.assert_close(reflect(u, x)[i, j], x[i, j] @ product(u[i, j]))


def test_is_the_formula_forward_and_back():
    u, weight, x = random(12, 6), random(5, 12, seed=1), random(2, 3, 12, seed=2)
    turned = weight @ product(u)
    torch.testing.assert_close(HRA(r=6).merge({"u": u}, weight), turned)
    torch.testing.assert_close(HRA(r=6).turn({"u": u}, x) @ weight.mT, x @ turned.mT)
    torch.testing.assert_close(HRA(r=6).turn_back({"u": u}, HRA(r=6).turn({"u": u}, x)), x)
    torch.testing.assert_close(torch.linalg.svdvals(turned), torch.linalg.svdvals(weight))


def test_numbers_of_the_authors_code():
    """Their `HRAInjectedLinear(6, 3, r=4)` in float64 with weight_ij = sin(6 i + j), hra_u_ij = cos((4 i + j)^2), x =
    (0, 1, ..., 5), plain and with apply_GS; computed by running it once."""
    plain = torch.tensor([[-8.66127331725345, -8.223136337628718, -7.129949031678567]], dtype=torch.float64)
    mirrored = torch.tensor([[-7.148228220247908, -6.556835258053184, -5.443128558240399]], dtype=torch.float64)
    weight, u = torch.arange(18).double().sin().view(3, 6), (torch.arange(24).double() ** 2).cos().view(6, 4)
    x = torch.arange(6).double()[None]
    torch.testing.assert_close(HRA(r=4).turn({"u": u}, x) @ weight.mT, plain, rtol=1e-10, atol=0)
    strict = HRA(r=4, strict=True)
    q = gram_schmidt(u)
    far = torch.eye(6, 4, dtype=torch.float64)  # a frozen start of our own, taken out again
    z = strict.turn({"u": u, "u0": far}, x)
    z = z - 2 * z @ far @ far.mT
    torch.testing.assert_close(z @ weight.mT, mirrored, rtol=1e-10, atol=0)
    torch.testing.assert_close(z, x - 2 * x @ q @ q.mT)


def test_starts_in_pairs_at_the_identity():
    weight = random(5, 12)
    u = HRA(r=6).start(Source(weight, seed=1), {})["u"]
    assert torch.equal(u[:, ::2], u[:, 1::2])
    torch.testing.assert_close(product(u), torch.eye(12, dtype=torch.float64), rtol=0, atol=1e-14)
    torch.testing.assert_close(HRA(r=6).merge({"u": u}, weight), weight, rtol=0, atol=1e-13)
    gram = u[:, ::2].mT @ u[:, ::2]
    assert (gram - torch.eye(3)).abs().max() > 1e-2, "random vectors are not orthogonal to each other"
    assert not torch.equal(u, HRA(r=6).start(Source(weight, seed=2), {})["u"])


def test_regulariser_is_the_norm_of_the_gram_matrix_without_its_diagonal():
    u = random(12, 6) * 10 ** random(6, seed=1)
    unit = u / u.norm(dim=0)
    authors = torch.norm(torch.eye(6, dtype=torch.float64) - unit.mT @ unit)  # a norm, not its square
    torch.testing.assert_close(HRA(r=6, regularizer=1e-4).penalty({"u": u}), 1e-4 * authors)
    orthonormal = torch.linalg.qr(u)[0]
    assert HRA(r=6, regularizer=1.0).penalty({"u": orthonormal}) < 1e-14
    assert HRA(r=6).penalty({"u": u}) is None
    pairs = HRA(r=6).start(Source(random(5, 12)), {})["u"]
    for u in (pairs, torch.eye(12, 6, dtype=torch.float64)):  # at the start, and where the norm has a corner
        u.requires_grad_()
        HRA(r=6, regularizer=1.0).penalty({"u": u}).backward()
        assert u.grad.isfinite().all()


@pytest.mark.slow
def test_the_regulariser_makes_vectors_orthogonal():
    peft = pytest.importorskip("peft")
    for regularizer, low, high in ((0.0, 0.2, 9.0), (1.0, 0.0, 0.1)):
        torch.manual_seed(0)
        config = HRAConfig(r=4, regularizer=regularizer, target_modules=["0"])
        model = peft.get_peft_model(nn.Sequential(nn.Linear(12, 5)), config)
        optimizer = Adam(param_groups(model), lr=0.02)
        x, y = random(30, 12, dtype=torch.float32), random(30, 5, seed=1, dtype=torch.float32)
        for _ in range(150):
            optimizer.zero_grad()
            ((model(x) - y).square().mean() + penalty(model)).backward()
            optimizer.step()
        u = model.base_model.model[0].tensors("default")["u"].detach()
        assert Oblique().residual(u) < 1e-5  # float32
        assert low <= torch.norm(torch.eye(4) - u.mT @ u) <= high


@pytest.mark.parametrize("r", [1, 3, 4])
def test_strict_form(r):
    weight, x, adapter = random(5, 12), random(7, 12, seed=2), HRA(r=r, strict=True)
    bases = adapter.bases(Source(weight, seed=1))
    eye = torch.eye(12, dtype=torch.float64)
    u0, u = bases["u0"], random(12, r, seed=3)
    torch.testing.assert_close(u0.mT @ u0, torch.eye(r, dtype=torch.float64))
    torch.testing.assert_close(adapter.merge(bases | adapter.start(Source(weight, seed=1), bases), weight), weight)
    span = u @ torch.linalg.inv(u.mT @ u) @ u.mT  # the subspace alone
    turned = weight @ (eye - 2 * u0 @ u0.mT) @ (eye - 2 * span)
    for other in (u, u @ random(r, r, seed=4)):
        torch.testing.assert_close(adapter.merge(bases | {"u": other}, weight), turned, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(
            adapter.turn(bases | {"u": other}, x) @ weight.mT, x @ turned.mT, rtol=1e-10, atol=1e-10
        )
    assert adapter.points() == {("u",): Grassmann()}
    q = gram_schmidt(u)
    torch.testing.assert_close(eye - 2 * span, product(q))  # the limit of a large regulariser


def test_wrong_options_are_refused():
    for options in ({"r": 3}, {"r": 0}, {"r": 2.0}, {"r": True}, {"r": True, "strict": True}):
        with pytest.raises(ValueError, match="r: got"):
            HRA(**options)
    with pytest.raises(ValueError, match="regularizer"):
        HRA(regularizer=-1.0)
    with pytest.raises(ValueError, match=r"regularizer: got 1\.0, but with strict"):
        HRA(regularizer=1.0, strict=True)
    with pytest.raises(ValueError, match="strict"):
        HRA(strict=1.5)
    for options in ({"r": 14}, {"r": 13, "strict": True}):
        adapter, source = HRA(**options), Source(random(5, 12))
        with pytest.raises(ValueError, match="12 inputs"):
            adapter.start(source, adapter.bases(source))


class Largest(TorchDispatchMode):
    """The largest tensor that an operation writes."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        self.numel = max([self.numel, *(t.numel() for t in tree_leaves(out) if isinstance(t, torch.Tensor))])
        return out


def costs(config, n, tokens=4):
    """Multiplications of a forward and a backward pass beyond the base layer's, and the largest tensor made."""
    peft = pytest.importorskip("peft")
    base = nn.Linear(n, 8, bias=False)
    x = random(tokens, n, dtype=torch.float32).requires_grad_()
    model = peft.get_peft_model(nn.Sequential(base), config)
    with FlopCounterMode(display=False) as plain, model.disable_adapter():
        model(x).sum().backward()
    with FlopCounterMode(display=False) as counter, Largest() as largest:
        model(x).sum().backward()
    return counter.get_total_flops() - plain.get_total_flops(), largest.numel


@pytest.mark.parametrize("strict", [False, True])
def test_costs_grow_linearly_in_the_inputs(strict):
    (small, _), (large, most) = (costs(HRAConfig(r=4, strict=strict, target_modules=["0"]), n) for n in (256, 1024))
    assert large < 4.2 * small
    assert most <= 1024 * 8, "a tensor larger than the weight, the input and the vectors"


def test_costs_of_the_layer_in_peft_grow_quadratically():
    peft = pytest.importorskip("peft")
    (small, _), (large, most) = (costs(peft.HRAConfig(r=4, target_modules=["0"]), n) for n in (256, 1024))
    assert large > 12 * small
    assert most == 1024**2
