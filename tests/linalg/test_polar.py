"""Polar factors: the exact one against float64 SVD, the iterated one against SVD and torch's Muon."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, hessian, jacfwd, jacrev, vmap
from torch.optim._muon import _zeropower_via_newtonschulz

from steepest.linalg import SCHEDULES, orthogonalize, polar
from steepest.linalg.polar import _by_gram, _by_svd

# Wide and tall, square, batched, one row, and each side of every border of the dispatch.
SHAPES = [
    (7, 3),
    (3, 7),
    (4, 4),
    (1, 5),
    (5, 1),
    (2, 3, 6, 4),
    (2, 4, 6),
    (130, 130),
    (150, 140),
    (260, 130),
    (140, 230),
]
KELLER_JORDAN = (3.4445, -4.7750, 2.0315)


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def with_singular_values(s, m, n, seed=0):
    s = torch.as_tensor(s, dtype=torch.float64)
    u, v = (torch.linalg.qr(randn(k, len(s), seed=seed + k)).Q for k in (m, n))
    return (u * s) @ v.mT


def complex_with_singular_values(s, m, n):
    s = torch.as_tensor(s, dtype=torch.float64)
    u, v = (torch.linalg.qr(torch.complex(randn(k, len(s)), randn(k, len(s), seed=1))).Q for k in (m, n))
    return (u * s) @ v.mH


def oracle(a, rank=None):
    """U V^H of the leading singular vectors, by float64 SVD."""
    u, _, vt = torch.linalg.svd(a.to(torch.complex128 if a.is_complex() else torch.float64), full_matrices=False)
    return u[..., :rank] @ vt[..., :rank, :]


def gains(a, u):
    """What became of each singular value of a."""
    left, s, right = torch.linalg.svd(a.double(), full_matrices=False)
    return s, (left * (u.double() @ right.mT)).sum(-2)


# Exactly. -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.float64, 1e-11)])
def test_polar_is_that_of_the_svd(shape, dtype, tolerance):
    # Error eps * condition; a square Gaussian matrix of this size has condition number up to some hundreds.
    a = with_singular_values(torch.linspace(1, 100, min(shape[-2:])), *shape[-2:]).expand(shape).to(dtype)
    torch.testing.assert_close(polar(a).double(), oracle(a), atol=tolerance, rtol=0)


@pytest.mark.parametrize("condition", [1e2, 1e4, 1e5])
@pytest.mark.parametrize(("shape", "dtype", "unit"), [
    ((300, 64), torch.float32, 1e-11),  # Gram matrix in float64: its eps times the condition number squared
    ((150, 140), torch.float32, 1e-7),  # SVD in float32
    ((300, 64), torch.float64, 1e-15),
    ((64, 64), torch.float64, 1e-15),
])  # fmt: skip
def test_accuracy_of_polar(shape, dtype, unit, condition):
    a = with_singular_values(torch.logspace(0, -torch.tensor(condition).log10().item(), min(shape)), *shape).to(dtype)
    error = (polar(a).double() - oracle(a)).abs().max().item()
    assert error < unit * condition + torch.finfo(dtype).eps
    u = polar(a).double()
    identity = torch.eye(u.shape[-1], dtype=torch.float64)
    # Orthonormal whatever the condition number: 1e-16 * 1e10 by the Gram matrix, roundings by the SVD.
    assert torch.linalg.matrix_norm(u.mT @ u - identity, 2) < 100 * torch.finfo(dtype).eps


@pytest.mark.parametrize("scale", [1.0, 1e30, 1e-30, 1e38, 1e-36])
@pytest.mark.parametrize("shape", [(12, 5), (5, 12), (6, 6), (150, 140)])
def test_partial_isometry_at_every_scale(shape, scale):
    a = (with_singular_values([1.0, 0.5, 0.1], *shape) * scale).float()
    expected = oracle(with_singular_values([1.0, 0.5, 0.1], *shape), rank=3)
    torch.testing.assert_close(polar(a).double(), expected, atol=1e-5, rtol=0)  # eps * condition 10 * LAPACK's constant


@pytest.mark.parametrize("scale", [1.0, 1e300, 1e-300])
def test_rank_deficient_in_float64(scale):
    a = with_singular_values([1.0, 0.5, 0.1], 30, 20)
    torch.testing.assert_close(polar(a * scale), oracle(a, rank=3), atol=1e-12, rtol=0)


def test_zero_stays_zero_beside_others():
    a = torch.stack([torch.zeros(6, 4), torch.eye(6, 4), 1e-30 * torch.eye(6, 4)])
    for f in (polar, orthogonalize, lambda x: orthogonalize(x, dtype=torch.bfloat16)):
        u = f(a)
        assert not u[0].any()
        torch.testing.assert_close(u[1], u[2])
    x = torch.zeros(6, 4, requires_grad=True)
    (g,) = torch.autograd.grad(polar(x).sum(), x)
    assert not g.any()
    assert polar(torch.zeros(0, 3)).shape == orthogonalize(torch.zeros(0, 3)).shape == (0, 3)


@settings(max_examples=30, deadline=None)
@given(m=st.integers(1, 8), n=st.integers(1, 8), rank=st.integers(0, 8), seed=st.integers(0, 10**6))
def test_polar_is_a_partial_isometry(m, n, rank, seed):
    rank = min(rank, m, n)
    a = randn(m, rank, seed=seed) @ randn(rank, n, seed=seed + 1)
    s = torch.linalg.svdvals(a)
    if rank and s[rank - 1] < 1e-6 * s[0]:
        return
    u, eps = polar(a), 1e-8  # eps * condition
    torch.testing.assert_close(u @ u.mT @ u, u, atol=eps, rtol=0)
    assert abs(u.square().sum().item() - rank) < eps
    h = u.mT @ a
    torch.testing.assert_close(h, h.mT, atol=eps, rtol=eps)
    torch.testing.assert_close(u @ h, a, atol=eps, rtol=eps)


@pytest.mark.parametrize("shape", [*SHAPES[:8], (150, 140)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.complex64, 2e-5), (torch.complex128, 1e-11)])
def test_complex_polar_is_that_of_the_svd(shape, dtype, tolerance):
    a = complex_with_singular_values(torch.linspace(1, 100, min(shape[-2:])), *shape[-2:]).expand(shape).to(dtype)
    got = polar(a)
    assert got.dtype == dtype
    torch.testing.assert_close(got.to(torch.complex128), oracle(a), atol=tolerance, rtol=0)


@pytest.mark.parametrize("scale", [1.0, 1e30, 1e-30])
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_complex_partial_isometry_at_every_scale(scale, dtype):
    a = complex_with_singular_values([1.0, 0.5, 0.1], 12, 5)
    got = polar((a * scale).to(dtype)).to(torch.complex128)
    tolerance = 100 * torch.finfo(dtype).eps  # condition 10 times LAPACK's constant
    torch.testing.assert_close(got, oracle(a, rank=3), atol=tolerance, rtol=0)


DIFFERENTIABLE = {
    "tall": randn(5, 3),
    "wide": randn(2, 4),
    "square": randn(3, 3),
    "batch": randn(2, 3, 2),
    "orthonormal": with_singular_values([1.0, 1.0, 1.0], 5, 3),
    "identity": torch.eye(3).double(),
    "repeated": with_singular_values([2.0, 2.0, 1.0], 3, 3),
    "complex": torch.complex(randn(4, 2), randn(4, 2, seed=1)),
    "complex square": torch.complex(randn(3, 3), randn(3, 3, seed=1)),
    "complex wide": torch.complex(randn(2, 3), randn(2, 3, seed=1)),
    "complex orthonormal": complex_with_singular_values([1.0, 1.0], 3, 2),
}


@pytest.mark.parametrize("a", DIFFERENTIABLE.values(), ids=DIFFERENTIABLE.keys())
def test_derivatives_of_polar(a):
    a = a.clone().requires_grad_()
    assert gradcheck(polar, a, check_forward_ad=True)
    assert gradgradcheck(polar, a, check_fwd_over_rev=True)


@pytest.mark.parametrize("name", ["wide", "orthonormal", "complex square"])
def test_third_derivative_of_polar(name):
    a = DIFFERENTIABLE[name].clone().requires_grad_()
    gradient = lambda a: torch.autograd.grad(polar(a).real.pow(3).sum(), a, create_graph=True)[0]  # noqa: E731
    assert gradgradcheck(gradient, a, fast_mode=True)


def test_second_derivative_in_few_digits():
    # Through the Gram matrix, whose eigenvalues and eigenvectors stay in use.
    a, e = randn(9, 4), randn(9, 4, seed=1)
    second = lambda a, e: torch.autograd.functional.hvp(lambda a: polar(a).pow(3).sum(), a, e)[1]  # noqa: E731
    torch.testing.assert_close(second(a.float(), e.float()).double(), second(a, e), atol=2e-5, rtol=1e-4)  # eps * 1e2


@pytest.mark.parametrize("branch", [_by_gram, _by_svd])
@pytest.mark.parametrize("a", [randn(9, 4), torch.complex(randn(9, 4), randn(9, 4, seed=1))], ids=["real", "complex"])
def test_both_branches_agree_on_what_the_derivative_needs(branch, a):
    u, s, v = branch(a)
    torch.testing.assert_close(u @ (v * s.unsqueeze(-2)) @ v.mH, a)
    torch.testing.assert_close(s.sort().values, torch.linalg.svdvals(a).sort().values)


def test_derivative_along_matrices_of_one_rank():
    b, c = randn(6, 2), randn(2, 4, seed=1)
    factors = (b.requires_grad_(), c.requires_grad_())
    assert gradcheck(lambda b, c: polar(b @ c), factors, check_forward_ad=True)


def test_functional_transforms_of_polar():
    a, weight = randn(3, 5, 4), randn(5, 4, seed=1)
    loss = lambda x: (polar(x) * weight).sum()  # noqa: E731
    batched = torch.autograd.grad((polar(a.requires_grad_()) * weight).sum(), a)[0]
    a = a.detach()
    torch.testing.assert_close(vmap(grad(loss))(a), batched)
    torch.testing.assert_close(vmap(jacfwd(polar))(a), vmap(jacrev(polar))(a))


def test_every_order_of_forward_and_backward_agrees():
    a, weight = randn(3, 2), randn(3, 2, seed=1)
    loss = lambda x: (polar(x) * weight).sum().exp()  # noqa: E731
    expected = torch.autograd.functional.hessian(loss, a)
    for second in (hessian, lambda f: jacfwd(jacfwd(f)), lambda f: jacrev(jacfwd(f)), lambda f: jacrev(jacrev(f))):
        torch.testing.assert_close(second(loss)(a), expected)
        torch.testing.assert_close(vmap(second(loss))(torch.stack([a, weight]))[0], expected)
    third = jacrev(jacrev(jacrev(loss)))(a)
    torch.testing.assert_close(jacfwd(jacfwd(jacfwd(loss)))(a), third)
    torch.testing.assert_close(jacfwd(hessian(loss))(a), third)


# By polynomials. ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 3), (5, 17), (100, 30), (64, 64), (257, 129), (1, 9), (768, 8), (96, 200)])
@pytest.mark.parametrize("scale", [1.0, 1e-3, 17.0])
def test_the_very_bits_of_torch_muon(shape, scale):
    a = randn(*shape, dtype=torch.float32) * scale
    expected = _zeropower_via_newtonschulz(a, KELLER_JORDAN, 5, 1e-7)
    assert torch.equal(orthogonalize(a, "keller_jordan", dtype=torch.bfloat16), expected.float())
    half = a.bfloat16()
    expected = _zeropower_via_newtonschulz(half.clone(), KELLER_JORDAN, 5, 1e-7)  # divides bfloat16 in place
    assert torch.equal(orthogonalize(half, [KELLER_JORDAN], dtype=torch.bfloat16), expected)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_scales_of_a_power_of_two_change_no_bit(schedule):
    a = randn(20, 60, dtype=torch.float32)
    for exponent in (100, -90):
        for dtype in (None, torch.float32, torch.bfloat16):
            scaled = orthogonalize(a * 2.0**exponent, schedule, dtype=dtype)
            assert torch.equal(scaled, orthogonalize(a, schedule, dtype=dtype))


def composed(schedule, steps, s):
    triples = SCHEDULES[schedule]
    for k in range(steps):
        a, b, c = triples[min(k, len(triples) - 1)]
        s = a * s + b * s**3 + c * s**5
    return s


@pytest.mark.parametrize(("schedule", "steps", "smallest", "low", "high"), [
    # The ranges that the schedules' authors give, or `orthogonalize` states, and arithmetic confirms.
    ("polar_express", 4, 4e-3, 0.84, 1.16),
    ("polar_express", 5, 4e-3, 0.994, 1.006),
    ("polar_express", 8, 1e-3, 0.999, 1.001),
    ("polar_express", 12, 1e-4, 0.999, 1.001),
    ("keller_jordan", 5, 1e-2, 0.67, 1.14),
    ("quintic", 5, 1e-2, 0.97, 1.04),
])  # fmt: skip
def test_ranges_of_the_schedules(schedule, steps, smallest, low, high):
    p = composed(schedule, steps, torch.logspace(torch.tensor(smallest).log10().item(), 0, 20001, dtype=torch.float64))
    assert low <= p.min()
    assert p.max() <= high


def best_quintic(low, high):
    """The odd quintic nearest to 1 on [low, high], by Remez: its error alternates at low, q, r and high."""
    q, r = (3 * low + high) / 4, (low + 3 * high) / 4
    for _ in range(100):
        x = torch.tensor([low, q, r, high], dtype=torch.float64)
        system = torch.stack([x, x**3, x**5, torch.tensor([1, -1, 1, -1]).double()], 1)
        a, b, c, _error = torch.linalg.solve(system, torch.ones(4).double()).tolist()
        root = (9 * b * b - 20 * a * c) ** 0.5
        q, r = (((-3 * b + sign * root) / (10 * c)) ** 0.5 for sign in (-1, 1))
    return a, b, c


def test_polar_express_is_minimax():
    low, high, safety = 4e-3, 1.0, 1.01
    for a, b, c in SCHEDULES["polar_express"][:5]:
        # The authors keep the first polynomials from being too steep: the interval starts at 0.024 of its end.
        best = torch.tensor(best_quintic(max(low, 0.02407327424182761 * high), high)).double()
        ends = [best @ torch.tensor([x, x**3, x**5]).double() for x in (low, high)]
        best = best * 2 / sum(ends)
        published = torch.tensor([a * safety, b * safety**3, c * safety**5]).double()
        torch.testing.assert_close(published, best, rtol=1e-5, atol=0)
        low = (best @ torch.tensor([low, low**3, low**5]).double()).item()
        high = 2 - low


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [None, torch.float32, torch.float64])
def test_eight_steps_are_the_polar_factor(shape, dtype):
    a = with_singular_values(torch.linspace(1, 20, min(shape[-2:])), *shape[-2:]).expand(shape).float()
    torch.testing.assert_close(orthogonalize(a, steps=8, dtype=dtype).double(), oracle(a), atol=2e-3, rtol=0)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("shape", [(200, 50), (50, 200), (3, 90, 40), (400, 140)])
def test_gram_space_is_the_same_polynomial(schedule, shape):
    for steps in (1, 3, 5):
        a = randn(*shape, dtype=torch.float32)
        got, full = orthogonalize(a, schedule, steps), orthogonalize(a, schedule, steps, dtype=torch.float32)
        # The damping, 2 eps / s, amplified by the slope of the polynomials.
        torch.testing.assert_close(got, full, atol=1e-3, rtol=0)
        s, gain = gains(a, got)
        order = 4 if schedule == "polar_express" else 2
        expected = composed(schedule, steps, s / torch.linalg.vector_norm(s, order, dim=-1, keepdim=True))
        torch.testing.assert_close(gain, expected, atol=2e-3, rtol=0)


@pytest.mark.parametrize("condition", [1e2, 1e4, 1e6])
def test_gram_space_holds_at_every_condition(condition):
    a = with_singular_values(torch.logspace(0, -torch.tensor(condition).log10().item(), 200), 600, 200).float()
    s, gain = gains(a, orthogonalize(a))
    assert gain.max() < 1.15
    assert gain.min() > -1e-3
    assert gain[s > 5e-3 * s.pow(4).sum().pow(0.25)].min() > 0.85


@pytest.mark.parametrize("shape", [(300, 150), (300, 60), (80, 80), (60, 300)])
@pytest.mark.parametrize("rank", [1, 4])
@pytest.mark.parametrize("options", [{}, {"steps": 8}, {"schedule": "keller_jordan"}, {"dtype": torch.float32}])
def test_null_directions_are_not_filled(shape, rank, options):
    # The product is of rank `rank` up to rounding, 1e-7, which the polynomials amplify: by up to 1e3 in five steps
    # and 1e4 in eight.
    a = randn(shape[0], rank, dtype=torch.float32) @ randn(rank, shape[1], dtype=torch.float32)
    s = torch.linalg.svdvals(orthogonalize(a, **options).double())
    assert s[rank:].max() < 2e-3
    assert s[:rank].min() > 0.6


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(20, 6), (6, 20), (2, 7, 7), (300, 100)])
def test_complex_orthogonalize(dtype, shape):
    a = complex_with_singular_values(torch.linspace(1, 20, min(shape[-2:])), *shape[-2:]).expand(shape)
    for x in (a, a.to(torch.complex64)):
        got = orthogonalize(x, steps=8, dtype=dtype)
        assert got.dtype == x.dtype
        torch.testing.assert_close(got.to(a.dtype), oracle(a), atol=2e-3, rtol=0)  # that of eight steps
    real = torch.complex(a.real, torch.zeros_like(a.real))
    torch.testing.assert_close(orthogonalize(real).real, orthogonalize(a.real.clone()), atol=1e-10, rtol=0)


@pytest.mark.parametrize("scale", [1e300, 1e-300])
def test_extreme_scales_in_float64(scale):
    a = randn(20, 6)
    torch.testing.assert_close(orthogonalize(a * scale), orthogonalize(a))
    torch.testing.assert_close(orthogonalize(a * scale * 1j), orthogonalize(a) * 1j)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_in_and_out(dtype):
    a = randn(40, 12).to(dtype)
    for f in (polar, orthogonalize, lambda x: orthogonalize(x, dtype=torch.bfloat16)):
        assert f(a).dtype == dtype
    torch.testing.assert_close(polar(a).double(), oracle(a), atol=torch.finfo(dtype).eps, rtol=0)  # one rounding
    assert torch.equal(orthogonalize(a), orthogonalize(a.float()).to(dtype))


def test_fewer_bits_than_float32_keep_out_of_gram_space():
    a = randn(300, 100, dtype=torch.float32)
    torch.set_float32_matmul_precision("high")
    try:
        assert torch.equal(orthogonalize(a), orthogonalize(a, dtype=torch.float32))
    finally:
        torch.set_float32_matmul_precision("highest")
    assert not torch.equal(orthogonalize(a), orthogonalize(a, dtype=torch.float32))


@pytest.mark.parametrize("shape", [(2, 3, 20, 8), (4, 6, 6), (3, 8, 20)])
@pytest.mark.parametrize("f", [polar, orthogonalize, lambda x: orthogonalize(x, dtype=torch.float32)])
def test_a_batch_is_its_matrices(f, shape):
    a = randn(*shape, dtype=torch.float32)
    one_by_one = torch.stack([f(x) for x in a.flatten(0, -3)]).view(shape)
    # Batched products round in another order; polynomials amplify by up to 1e3.
    torch.testing.assert_close(f(a), one_by_one, atol=2e-4, rtol=0)
    torch.testing.assert_close(vmap(f)(a), one_by_one, atol=2e-4, rtol=0)


@pytest.mark.parametrize("shape", [(5, 3), (3, 8), (4, 4)])
def test_orthogonalize_is_differentiable(shape):
    assert gradcheck(orthogonalize, randn(*shape).requires_grad_(), check_forward_ad=True)


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match="a: expected a matrix"):
        polar(torch.zeros(3))
    with pytest.raises(ValueError, match="schedule: unknown name 'muon', expected one of polar_express"):
        orthogonalize(torch.eye(3), "muon")
    with pytest.raises(ValueError, match="steps >= 1"):
        orthogonalize(torch.eye(3), steps=0)


@pytest.mark.parametrize("f", [polar, orthogonalize, lambda x: orthogonalize(x, dtype=torch.bfloat16)])
def test_compiles_in_one_graph(f):
    a = randn(2, 20, 6, dtype=torch.float32)
    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(a), f(a), atol=1e-4, rtol=0)


def test_the_derivative_compiles_in_one_graph():
    a = randn(2, 20, 6, dtype=torch.float32).requires_grad_()
    compiled = torch.compile(polar, fullgraph=True, backend="aot_eager")
    slopes = [torch.autograd.grad(g(a).pow(3).sum(), a)[0] for g in (compiled, polar)]
    torch.testing.assert_close(*slopes, atol=1e-4, rtol=0)


@pytest.mark.slow
def test_compiles_with_inductor():
    a = randn(2, 20, 6, dtype=torch.float32)
    torch.testing.assert_close(torch.compile(orthogonalize, fullgraph=True)(a), orthogonalize(a), atol=1e-4, rtol=0)
