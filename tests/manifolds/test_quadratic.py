"""Symplectic and indefinite Stiefel manifolds: dense formulas, known minima, derivatives, drift, refusals."""

import pytest
import scipy.linalg
import torch
from torch.autograd import gradcheck, gradgradcheck

from steepest import SGD, Adam, IndefiniteStiefel, Manifold, SymplecticStiefel
from steepest.manifolds.quadratic import _divided

D = torch.float64


def randn(*shape, seed=0, dtype=D):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def point(m, shape, seed=0, dtype=D):
    return m.random_point(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def spd(n, seed=0):
    a = randn(n, n, seed=seed)
    return a @ a.mT / n + 0.5 * torch.eye(n, dtype=D)


A = torch.diag(torch.tensor([2.0, 1.0, 0.7, -0.8, -1.5], dtype=D)) + 0.1 * (randn(5, 5) + randn(5, 5).mT)
INDEFINITE = IndefiniteStiefel(A, (1, -1, 1))
DEFINITE = IndefiniteStiefel(spd(5), (1, 1, 1))
SYMPLECTIC = SymplecticStiefel()
CASES = [(SYMPLECTIC, (6, 4)), (SYMPLECTIC, (4, 4)), (INDEFINITE, (5, 3)), (DEFINITE, (5, 3))]
EXPONENTIAL = [(SymplecticStiefel("exponential"), (6, 2)), (IndefiniteStiefel(A, (1, -1), "exponential"), (5, 2))]
cases = pytest.mark.parametrize(("m", "shape"), CASES)


def forms(m, shape, dtype=D):
    """A and J as matrices."""
    if isinstance(m, IndefiniteStiefel):
        return A_of(m).to(dtype), torch.diag(torch.tensor(m.j, dtype=dtype))
    return tuple(
        torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=dtype).kron(torch.eye(k // 2, dtype=dtype)) for k in shape
    )


def A_of(m):
    return m.a.detach()


# Formulas. ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [D, torch.complex128])
@cases
def test_a_point_satisfies_its_equation(m, shape, dtype):
    x = point(m, (2, *shape), dtype=dtype)
    a, j = forms(m, shape, dtype)
    torch.testing.assert_close(x.mH @ a @ x, j.expand(2, *j.shape), rtol=0, atol=1e-14)  # rounding
    assert torch.linalg.cond(x).max() < 20  # a random point is one to compute with


@cases
def test_push_is_the_projection_onto_the_kernel_of_the_differential(m, shape):
    x, h = point(m, shape), randn(*shape, seed=1)
    a, _ = forms(m, shape)
    differential = torch.func.jacrev(lambda z: z.mT @ a @ x + x.mT @ a @ z)(h).reshape(-1, h.numel())
    normal = torch.linalg.pinv(differential, rtol=1e-10) @ (differential @ h.reshape(-1))
    torch.testing.assert_close(m.push(x, h), h - normal.reshape(shape), rtol=0, atol=1e-13)


@pytest.mark.parametrize("dtype", [D, torch.complex128])
@pytest.mark.parametrize(("m", "shape"), CASES + EXPONENTIAL)
def test_retractions_are_the_dense_ones(m, shape, dtype):
    x = point(m, shape, dtype=dtype)
    z = 0.5 * m.push(x, randn(*shape, seed=1, dtype=dtype))
    a, j = forms(m, shape, dtype)
    plus = torch.linalg.inv(j) @ x.mH @ a
    u = z - x @ plus @ z / 2
    w = u @ plus - x @ torch.linalg.inv(j) @ u.mH @ a
    eye = torch.eye(shape[0], dtype=dtype)
    torch.testing.assert_close(w @ x, z, rtol=0, atol=1e-14)
    torch.testing.assert_close(w.mH @ a + a @ w, 0 * a, rtol=0, atol=1e-14)
    dense = torch.linalg.solve(eye - w / 2, (eye + w / 2) @ x) if m.retraction == "cayley" else torch.matrix_exp(w) @ x
    torch.testing.assert_close(m.retract(x, z), dense, rtol=1e-13, atol=1e-13)


@cases
def test_project_is_the_polar_factor_of_the_form(m, shape):
    x = point(m, shape) + 0.05 * randn(*shape, seed=3)
    a, j = forms(m, shape)
    root = scipy.linalg.sqrtm((torch.linalg.inv(j) @ x.mT @ a @ x).numpy())
    torch.testing.assert_close(m.project(x), x @ torch.linalg.inv(torch.as_tensor(root)), rtol=1e-12, atol=1e-12)


def test_a_hyperbola():
    """x^2 - y^2 = 1: every unit vector of that form is (cosh t, sinh t), and steps stay on its branch."""
    m = IndefiniteStiefel([[1.0, 0.0], [0.0, -1.0]], (1,), "exponential")
    x = torch.tensor([[1.0], [0.0]], dtype=D)
    y = m.retract(x, torch.tensor([[0.0], [2.0]], dtype=D))
    expected = torch.tensor([[2.0], [2.0]], dtype=D)
    torch.testing.assert_close(y, torch.cat([expected[:1].cosh(), expected[1:].sinh()]))
    # W has the eigenvalue 2 here, and the Cayley transform a pole
    assert not IndefiniteStiefel(m.a, (1,)).retract(x, torch.tensor([[0.0], [2.0]], dtype=D)).isfinite().all()


def test_large_inner_systems_are_solved_without_batched_lu():
    b, m = randn(2, 140, 130), randn(2, 130, 130, seed=1) + 30 * torch.eye(130, dtype=D)
    torch.testing.assert_close(_divided(b, m) @ m, b, rtol=0, atol=1e-12)


# What they are for. ---------------------------------------------------------------------------------------------------


def minimise(m, shape, matrix, make, steps):
    """The least tr(X^T M X) that an optimiser finds, with the learning rate lowered to nothing."""
    x = torch.nn.Parameter(point(m, shape))
    optimizer = make([{"params": [x], "geometry": m, "role": "point"}])
    rate = optimizer.param_groups[0]["lr"]
    for step in range(steps):
        optimizer.zero_grad()
        (x.mT @ matrix @ x).trace().backward()
        optimizer.param_groups[0]["lr"] = rate * (1 - step / steps)
        optimizer.step()
    return (x.mT @ matrix @ x).trace().item(), x.detach()


OPTIMIZERS = {
    "gradient descent": lambda groups: SGD(groups, lr=0.2),
    "momentum": lambda groups: SGD(groups, lr=0.05, momentum=0.9),
    "adam": lambda groups: Adam(groups, lr=0.05),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_symplectic_eigenvalues(name):
    """The least tr(X^T M X) is twice the sum of the p smallest symplectic eigenvalues (Son, Absil, Gao and Stykel 2021,
    2101.02618), which are the moduli of the eigenvalues of J M (Williamson)."""
    matrix = spd(6)
    j, _ = forms(SYMPLECTIC, (6, 2))
    eigenvalues = torch.linalg.eigvals(j @ matrix).imag.sort().values[-3:]
    value, x = minimise(SYMPLECTIC, (6, 2), matrix, OPTIMIZERS[name], 400)
    assert value == pytest.approx(2 * eigenvalues[0].item(), rel=1e-5)
    assert SYMPLECTIC.residual(x) < 1e-13


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_generalised_eigenvalues_of_an_indefinite_pencil(name):
    """The least tr(X^T M X) with X^T A X = diag(1, -1) is the least positive eigenvalue of M x = t A x less the largest
    negative one (Kovac-Striko and Veselic 1995)."""
    matrix, m = spd(5, seed=4), IndefiniteStiefel(A, (1, -1))
    t = torch.as_tensor(scipy.linalg.eigvals(matrix.numpy(), A.numpy()).real)
    value, x = minimise(m, (5, 2), matrix, OPTIMIZERS[name], 400)
    assert value == pytest.approx((t[t > 0].min() - t[t < 0].max()).item(), rel=1e-5)
    assert m.residual(x) < 1e-13


@pytest.mark.parametrize(("m", "shape"), [CASES[0], EXPONENTIAL[1]])
def test_long_runs_do_not_drift(m, shape):
    """1000 float32 steps of length 0.1 about a point; without the Newton step rounding adds up to more than 1e-6."""
    x = point(m, shape, dtype=torch.float32)
    start = x.clone()
    for step in range(1000):
        pull = m.push(x, x - start + randn(*shape, seed=step % 50, dtype=torch.float32))
        x = m.retract(x, -0.1 * pull / pull.norm())
    assert m.residual(x) < 5e-7  # four eps


# Derivatives. ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [D, pytest.param(torch.complex128, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("m", "shape"), [(SYMPLECTIC, (4, 2)), (IndefiniteStiefel(A[:3, :3] - 1, (1, -1)), (3, 2)), *EXPONENTIAL]
)
def test_derivatives(m, shape, dtype):
    x0, v = point(m, shape, dtype=dtype), randn(*shape, seed=1, dtype=dtype)
    h, zero = 0.3 * randn(*shape, seed=2, dtype=dtype), torch.zeros(shape, dtype=dtype)
    at = lambda h: m.retract(x0, m.push(x0, h))  # noqa: E731
    step = lambda h, v: m.retract(at(h), m.push(at(h), v))  # noqa: E731
    curved = lambda h, g, gv, v: m.hessian(at(h), g, gv, m.push(at(h), v))  # noqa: E731
    for function, arguments in ((step, (h, v)), (step, (zero, zero)), (curved, (h, v, v.flip(0), v.flip(1)))):
        inputs = tuple(t.clone().requires_grad_() for t in arguments)
        assert gradcheck(function, inputs, fast_mode=dtype.is_complex or m.retraction == "exponential")
        assert gradgradcheck(function, inputs, fast_mode=True)


def test_derivatives_of_geodesics():
    m = IndefiniteStiefel([[1.0, 0.0], [0.0, -1.0]], (1,))
    x0 = point(m, (2, 1))
    at = lambda h: m.retract(x0, m.push(x0, h))  # noqa: E731
    end = lambda h, v: m.exp(at(h), m.push(at(h), v))  # noqa: E731
    inputs = (0.2 * randn(2, 1, seed=2)).requires_grad_(), torch.zeros(2, 1, dtype=D).requires_grad_()
    assert gradcheck(end, inputs, fast_mode=True)
    assert gradgradcheck(end, inputs, fast_mode=True)


@cases
def test_functional_transforms(m, shape):
    x, h = point(m, (3, *shape)), 0.3 * randn(3, *shape, seed=1)
    step = lambda x, h: m.retract(x, m.push(x, h))  # noqa: E731
    torch.testing.assert_close(torch.vmap(step)(x, h), step(x, h))
    torch.testing.assert_close(torch.vmap(m.push, (None, 0))(x[0], h), m.push(x[0].expand_as(x), h))
    one, tangent = torch.func.jvp(lambda h: step(x, h), (0 * h,), (h,))
    torch.testing.assert_close(one, x)
    torch.testing.assert_close(tangent, m.push(x, h))


# Fields and refusals. -------------------------------------------------------------------------------------------------


def test_fields():
    m = IndefiniteStiefel([[2.0, 0.0], [0.0, -1.0]], (1.0, -1.0))
    assert m.j == (1, -1)
    assert m.a.dtype == D
    assert m == Manifold.from_spec(m.to_spec())
    assert m != IndefiniteStiefel([[2.0, 0.0], [0.0, -2.0]], (1, -1))


def test_the_form_may_be_learned():
    a = A.clone().requires_grad_()
    m = IndefiniteStiefel(a, (1, -1))
    x = point(m, (5, 2))
    m.push(x, randn(5, 2)).square().sum().backward()
    assert a.grad.isfinite().all()


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: SymplecticStiefel("qr"), "retraction: unknown 'qr'"),
        (lambda: IndefiniteStiefel(A, (1, -1), "qr"), "retraction: unknown 'qr'"),
        (lambda: IndefiniteStiefel(torch.ones(2, 3), (1,)), "a: expected a real symmetric"),
        (lambda: IndefiniteStiefel(torch.eye(2, dtype=torch.complex64), (1,)), "a: expected a real symmetric"),
        (lambda: IndefiniteStiefel([[1.0, 0.5], [0.0, 1.0]], (1,)), "a: expected a symmetric"),
        (lambda: IndefiniteStiefel([[1.0, 1.0], [1.0, 1.0]], (1,)), "a: expected a nonsingular"),
        (lambda: IndefiniteStiefel(A, (1, 0)), "j: expected a tuple"),
        (lambda: IndefiniteStiefel(A, ()), "j: expected a tuple"),
        (lambda: IndefiniteStiefel(A, (-1, -1, -1)), "a has 3 positive and 2 negative"),
    ],
)
def test_bad_fields_are_refused(build, words):
    with pytest.raises(ValueError, match=words):
        build()


@pytest.mark.parametrize("shape", [(4, 3), (5, 2), (2, 4), (4,), (4, 0)])
def test_shapes_without_pairs_are_refused(shape):
    with pytest.raises(ValueError, match=r"w: .*come in pairs"):
        SYMPLECTIC.check_point(torch.zeros(shape), "w")


def test_shapes_that_do_not_fit_the_form_are_refused():
    with pytest.raises(ValueError, match=r"w: .*\(..., 5, 3\)"):
        INDEFINITE.check_point(torch.zeros(5, 2), "w")
