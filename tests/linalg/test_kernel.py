"""The kernel operator against closed forms, finite differences and the derivatives of matrix functions."""

import pytest
import torch
from torch.autograd import gradcheck
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap

from steepest.linalg import sym, sym_exp_derivative, sym_kernel, sym_log, sym_power_derivative


def with_eigenvalues(*w, dtype=torch.float64):
    q = torch.linalg.qr(torch.randn(len(w), len(w), generator=torch.Generator().manual_seed(0), dtype=dtype)).Q
    return (q * torch.tensor(w, dtype=torch.float64)) @ q.mH


def directions(k, n=4, dtype=torch.float64):
    g = torch.Generator().manual_seed(1)
    return [sym(torch.randn(n, n, generator=g, dtype=dtype)) for _ in range(k)]


def product(x, y):
    return x * y


def harmonic(x, y):
    return 2 * x * y / (x + y)


def power_mean(x, y):
    """((x^p + y^p) / 2)^(1/p)."""
    return ((x**0.4 + y**0.4) / 2) ** 2.5


def log_mean(x, y):
    """(x - y) / (log x - log y) = (x + y) / 2 z / artanh z, z = (x - y) / (x + y); a series where z is small."""
    z = (x - y) / (x + y)
    small = z.abs() < 0.1
    safe = torch.where(small, 0.5, z)
    series = sum(z ** (2 * i) / (2 * i + 1) for i in range(9))
    return 0.5 * (x + y) / torch.where(small, series, torch.atanh(safe) / safe)


def sqrt_slope(x, y):
    """The divided difference of the square root: the kernel of the derivative of A^(1/2)."""
    return 1 / (x.sqrt() + y.sqrt())


EIGENVALUES = {
    "distinct": (0.3, 0.7, 1.1, 2.0),
    "repeated": (1.0, 1.0, 1.0, 2.0),
    "identity": (1.0, 1.0, 1.0, 1.0),
    **{f"gap {gap}": (1.0, 1.0 + gap, 1.0 + 2 * gap, 2.0) for gap in (1e-3, 1e-6, 1e-9)},
}
KERNELS = [product, harmonic, power_mean, log_mean, sqrt_slope]
every_point = pytest.mark.parametrize("point", EIGENVALUES)
every_kernel = pytest.mark.parametrize("phi", KERNELS)
every_dtype = pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])

# What a derivative in a errs by at worst: eps^(2/3), 4e-11, times phi's third derivative.
TOLERANCE = {"rtol": 1e-9, "atol": 1e-9}


@every_point
@every_dtype
def test_closed_forms(point, dtype):
    a, (g,) = with_eigenvalues(*EIGENVALUES[point], dtype=dtype), directions(1, dtype=dtype)
    along_exp = lambda x: sym_exp_derivative(sym_log(a), x)  # noqa: E731
    squared = lambda x, y: log_mean(x, y) ** 2  # noqa: E731
    for phi, expected in (
        (product, a @ g @ a),
        (lambda x, y: x + y, a @ g + g @ a),
        (log_mean, along_exp(g)),
        (squared, along_exp(along_exp(g))),
        (sqrt_slope, sym_power_derivative(a, g, 0.5)),
        (lambda x, y: torch.ones_like(x), g),
    ):
        # Rounding: a is known to eps, phi varies by 1 over a change of 1.
        torch.testing.assert_close(sym_kernel(a, g, phi), expected, rtol=1e-12, atol=1e-12)


@every_point
@every_dtype
def test_derivatives_of_closed_forms(point, dtype):
    a, (g, e, h) = with_eigenvalues(*EIGENVALUES[point], dtype=dtype), directions(3, dtype=dtype)

    def along_exp_twice(a, g):
        s = sym_log(a)
        return sym_exp_derivative(s, sym_exp_derivative(s, g))

    for phi, exact in (
        (product, lambda a, g: sym(a) @ sym(g) @ sym(a)),
        (lambda x, y: log_mean(x, y) ** 2, along_exp_twice),
        (sqrt_slope, lambda a, g: sym_power_derivative(a, g, 0.5)),
    ):
        ours = lambda a, g, phi=phi: sym_kernel(a, g, phi)  # noqa: E731
        torch.testing.assert_close(jvp(ours, (a, g), (e, h))[1], jvp(exact, (a, g), (e, h))[1], **TOLERANCE)
        loss = lambda f: lambda a, g: (f(a, g) * h.conj()).real.sum()  # noqa: E731
        for i in (0, 1):
            torch.testing.assert_close(grad(loss(ours), i)(a, g), grad(loss(exact), i)(a, g), **TOLERANCE)


@every_kernel
@every_point
def test_derivatives_against_differences(phi, point):
    a, (g,) = with_eigenvalues(*EIGENVALUES[point]).requires_grad_(), directions(1)
    f = lambda a, g: sym_kernel(a, g, phi)  # noqa: E731
    assert gradcheck(f, (a, g.requires_grad_()), check_forward_ad=True)


@pytest.mark.parametrize("phi", [product, power_mean])
def test_complex_derivatives_against_differences(phi):
    dtype = torch.complex128
    a, (g,) = with_eigenvalues(1.0, 1.0, 2.0, dtype=dtype).requires_grad_(), directions(1, n=3, dtype=dtype)
    assert gradcheck(lambda a, g: sym_kernel(a, g, phi), (a, g.requires_grad_()), check_forward_ad=True)


@pytest.mark.parametrize("gap", [1e-2, 1e-4, 1e-5, 6e-6, 1e-7, 1e-10, 0.0])
def test_the_derivative_has_the_digits_that_it_promises(gap):
    # log_mean goes over to its series far from here. At 6e-6, eps^(1/3), the two formulas meet.
    a, (g, e) = with_eigenvalues(1.0, 1.0 + gap, 3.0, 3.0 + gap), directions(2)
    got = jvp(lambda x: sym_kernel(x, g, log_mean), (a,), (e,))[1]
    expected = jvp(lambda x: sym_exp_derivative(sym_log(x), g), (a,), (e,))[1]  # errs by eps^(5/6), 1e-13
    torch.testing.assert_close(got, expected, rtol=2e-10, atol=2e-10)  # eps^(2/3), 4e-11, and a constant
    if gap == 0:
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def test_mixed_derivatives_in_every_mode():
    a, (g,) = with_eigenvalues(*EIGENVALUES["gap 1e-06"]), directions(1)
    exact, ours = (
        lambda a, g: (sym(a) @ sym(g) @ sym(a)).square().sum(),
        lambda a, g: sym_kernel(a, g, product).square().sum(),
    )
    modes = {
        "reverse, reverse": lambda f: jacrev(grad(f, 0), 1),
        "reverse, reverse, other order": lambda f: jacrev(grad(f, 1), 0),
        "forward, reverse": lambda f: jacfwd(grad(f, 0), 1),
        "forward, reverse, other order": lambda f: jacfwd(grad(f, 1), 0),
        "forward, forward": lambda f: jacfwd(jacfwd(f, 0), 1),
        "forward, forward, other order": lambda f: jacfwd(jacfwd(f, 1), 0),
        "twice in g": lambda f: hessian(f, 1),
        "twice in g, then in a": lambda f: jacfwd(jacfwd(jacfwd(f, 1), 1), 0),
    }
    for name, mode in modes.items():
        expected = mode(exact)(a, g)
        torch.testing.assert_close(mode(ours)(a, g), expected, **TOLERANCE, msg=lambda m, name=name: f"{name}: {m}")
        torch.testing.assert_close(vmap(mode(ours))(torch.stack([a, a]), torch.stack([g, g]))[1], expected, **TOLERANCE)


def test_the_first_derivative_can_be_differentiated_in_g_by_plain_autograd():
    a, (g, c, e) = with_eigenvalues(*EIGENVALUES["repeated"]).requires_grad_(), directions(3)
    g.requires_grad_()
    found = []
    for value in (sym_kernel(a, g, product), sym(a) @ sym(g) @ sym(a)):
        (along,) = torch.autograd.grad((value * c).sum(), a, create_graph=True)
        found.append(torch.autograd.grad((along * e).sum(), g)[0])
    torch.testing.assert_close(*found, **TOLERANCE)


def test_second_derivative_in_a_raises_instead_of_being_wrong():
    a, (g,) = with_eigenvalues(*EIGENVALUES["distinct"]), directions(1)
    loss = lambda x: sym_kernel(x, g, product).square().sum()  # noqa: E731
    for second in (hessian(loss), jacrev(jacrev(loss)), jacfwd(jacfwd(loss))):
        with pytest.raises(NotImplementedError, match="second derivatives in a"):
            second(a)
    (first,) = torch.autograd.grad(loss(a.requires_grad_()), a, create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivatives in a"):
        first.sum().backward()


def test_linear_self_adjoint_and_multiplicative():
    a, (g, h) = with_eigenvalues(*EIGENVALUES["distinct"]), directions(2)
    one, other = sym_kernel(a, g, power_mean), sym_kernel(a, h, power_mean)
    torch.testing.assert_close(sym_kernel(a, 2 * g - h, power_mean), 2 * one - other)
    torch.testing.assert_close((one * h).sum(), (g * other).sum())
    inverse = lambda x, y: 1 / power_mean(x, y)  # noqa: E731
    torch.testing.assert_close(sym_kernel(a, one, inverse), g)
    assert (one * g).sum() > 0


@every_kernel
def test_batches_and_transforms(phi):
    a = torch.stack([with_eigenvalues(*w) for w in EIGENVALUES.values()])
    g = torch.stack(directions(len(a)))
    each = torch.stack([sym_kernel(x, y, phi) for x, y in zip(a, g, strict=True)])
    f = lambda a, g: sym_kernel(a, g, phi)  # noqa: E731
    torch.testing.assert_close(f(a, g), each)
    torch.testing.assert_close(vmap(f)(a, g), each)
    torch.testing.assert_close(f(a[0], g), torch.stack([f(a[0], y) for y in g]))
    batched = torch.autograd.grad(f(a.requires_grad_(), g).square().sum(), a)[0]
    a = a.detach()
    torch.testing.assert_close(vmap(grad(lambda a, g: f(a, g).square().sum()))(a, g), batched)
    assert batched.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.complex64])
def test_lower_precision(dtype):
    wide = torch.complex128 if dtype.is_complex else torch.float64
    a, (g,) = with_eigenvalues(0.5, 1.0, 1.0, 2.0, dtype=wide).to(dtype), directions(1, dtype=wide)
    got, expected = sym_kernel(a, g.to(dtype), product), a.to(wide) @ g.to(dtype).to(wide) @ a.to(wide)
    assert got.dtype == dtype
    # bfloat16: the rounding of a, which is no longer symmetric, and of the result; else LAPACK's single precision.
    tolerance = 0.05 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(got.to(wide), expected, rtol=tolerance, atol=tolerance)


def test_errors():
    with pytest.raises(ValueError, match=r"a: expected a square matrix"):
        sym_kernel(torch.zeros(2, 3), torch.eye(2), product)
    with pytest.raises(ValueError, match=r"g: expected matrices of the size of a, \(3, 3\), got shape \(2, 2\)"):
        sym_kernel(torch.eye(3), torch.eye(2), product)


def test_compiles_in_one_graph():
    torch._dynamo.reset()
    a, (g,) = with_eigenvalues(0.3, 1.0, 1.0, 2.0).requires_grad_(), directions(1)
    loss = lambda a: sym_kernel(a, g, harmonic).square().sum()  # noqa: E731
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(torch.autograd.grad(compiled(a), a)[0], torch.autograd.grad(loss(a), a)[0])
