"""The logarithm and the angles of rotations against constructions, scipy, and the exponential."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, hessian, jacfwd, jacrev, vmap

from steepest.linalg import polar, skew, unitary_angles, unitary_log

DTYPES = [torch.float64, torch.complex128]


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def unitary(*batch, n, seed=0, dtype=torch.float64):
    return torch.linalg.qr(randn(*batch, n, n, seed=seed, dtype=dtype)).Q


def generator(angles, n, seed=0, dtype=torch.float64):
    """Skew, with pairs of eigenvalues +-i t (complex: single ones i t) of these angles t, in a random basis."""
    angles = torch.as_tensor(angles, dtype=torch.float64)
    if dtype.is_complex:
        core = torch.diag(torch.nn.functional.pad(1j * angles, (0, n - len(angles))))
    else:
        turn = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)
        core = torch.block_diag(*(t * turn for t in angles), torch.zeros(n - 2 * len(angles), n - 2 * len(angles)))
    v = unitary(n=n, seed=seed, dtype=dtype)
    return skew(v @ core.to(dtype) @ v.mH)


ANGLES = [[0.0], [1e-9], [0.5, 2.0], [1.0, 1.0], [2.9, 2.9, 0.3], [3.1]]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("angles", ANGLES, ids=str)
def test_logarithm_of_an_exponential(dtype, angles):
    k = generator(angles, 7, dtype=dtype)
    q = torch.linalg.matrix_exp(k)
    got = unitary_log(q)
    # A few eps of matrix_exp, times t / sin(t), the condition of the logarithm: up to 75.
    torch.testing.assert_close(got, k, atol=2e-13, rtol=0)
    assert got.equal(-got.mH)
    assert got.dtype == dtype


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [1, 2, 3, 8, 40])
def test_against_scipy(dtype, n):
    q = torch.linalg.matrix_exp(skew(randn(n, n, dtype=dtype)))
    t, z = scipy.linalg.schur(q.numpy(), output="complex")
    expected = torch.as_tensor(z @ np.diag(1j * np.angle(np.diag(t))) @ z.conj().T)
    expected = expected if dtype.is_complex else expected.real
    # The random angles come within 0.05 of pi for n = 40, so a condition up to 60.
    torch.testing.assert_close(unitary_log(q), expected, atol=1e-12, rtol=0)
    if n < 10:
        torch.testing.assert_close(unitary_log(q), torch.as_tensor(scipy.linalg.logm(q.numpy())), atol=1e-12, rtol=0)


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64, *DTYPES])
def test_the_exponential_returns_in_batches(batch, dtype):
    q = torch.linalg.matrix_exp(skew(randn(*batch, 5, 5, dtype=dtype)))
    tolerance = 50 * torch.finfo(dtype).eps
    torch.testing.assert_close(torch.linalg.matrix_exp(unitary_log(q)), q, atol=tolerance, rtol=0)
    torch.testing.assert_close(vmap(unitary_log)(q) if batch else unitary_log(q), unitary_log(q))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gap", [1e-1, 1e-3, 1e-5, 1e-7, 1e-8])
def test_angles_near_pi(dtype, gap):
    eps = 2.2e-16
    one, two = (
        generator([math.pi - gap], 3, dtype=dtype),
        generator([math.pi - gap, 1.5 * gap - math.pi], 5, dtype=dtype),
    )
    for k in (one, two):
        q = torch.linalg.matrix_exp(k)
        got = unitary_log(q)
        # The exponential returns to rounding, and to the square of eps / gap.
        torch.testing.assert_close(torch.linalg.matrix_exp(got), q, atol=30 * eps + 30 * (eps / gap) ** 2, rtol=0)
    # One angle near pi costs K nothing either; of two, it is known to the condition of the logarithm only.
    torch.testing.assert_close(unitary_log(torch.linalg.matrix_exp(one)), one, atol=1e-13, rtol=0)
    torch.testing.assert_close(got, two, atol=1e-13 + 10 * eps / gap, rtol=0)


def test_no_logarithm_is_nan_for_that_element_alone():
    reflection = torch.diag(torch.tensor([-1.0, 1.0, 1.0, 1.0])).double()
    flip = unitary(n=4)
    flip[:, 0] *= -torch.linalg.det(flip).sign()  # determinant -1
    half = torch.linalg.matrix_exp(generator([math.pi], 4, dtype=torch.float64))
    good = torch.linalg.matrix_exp(skew(randn(4, 4)))
    q = torch.stack([reflection, -torch.eye(4).double(), flip, good])
    got = unitary_log(q)
    assert got[:3].isnan().all()
    torch.testing.assert_close(got[3], unitary_log(good))
    # Exactly half a turn: NaN, or a logarithm that is right.
    k = unitary_log(half)
    assert k.isnan().all() or (torch.linalg.matrix_exp(k) - half).abs().max() < 1e-7
    phases = torch.exp(1j * torch.tensor([0.3, math.pi, 1.0], dtype=torch.float64)).diag()
    k = unitary_log(phases)
    assert k.isnan().all() or (torch.linalg.matrix_exp(k) - phases).abs().max() < 1e-7


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_few_digits(dtype):
    k = skew(randn(2, 5, 5))
    q = torch.linalg.matrix_exp(k)
    got = unitary_log(q.to(dtype))
    assert got.dtype == unitary_angles(q.to(dtype)).dtype == dtype
    assert (got.double() - unitary_log(q)).abs().max() < 60 * torch.finfo(dtype).eps  # t / sin(t) below 20


def test_drift_does_not_make_it_nan():
    q = torch.linalg.matrix_exp(skew(randn(5, 5))) + 1e-4 * randn(5, 5, seed=1)
    torch.testing.assert_close(unitary_log(q), unitary_log(polar(q)), atol=1e-2, rtol=0)  # the drift times t / sin(t)


POINTS = {
    "identity": torch.eye(3).double(),
    "random": torch.linalg.matrix_exp(skew(randn(3, 3))),
    "repeated": torch.linalg.matrix_exp(generator([1.3, 1.3], 4)),
    "near pi": torch.linalg.matrix_exp(generator([3.0], 3)),
    "complex": torch.linalg.matrix_exp(skew(randn(3, 3, dtype=torch.complex128))),
    "complex identity": torch.eye(2, dtype=torch.complex128),
}


@pytest.mark.parametrize("q", POINTS.values(), ids=POINTS.keys())
def test_derivatives(q):
    q = q.clone().requires_grad_()
    assert gradcheck(unitary_log, q, check_forward_ad=True)
    assert gradgradcheck(unitary_log, q, check_fwd_over_rev=True, fast_mode=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_derivative_at_the_identity_is_the_identity(dtype):
    e = skew(randn(4, 4, dtype=dtype))
    moved = torch.func.jvp(unitary_log, (torch.eye(4, dtype=dtype),), (e,))[1]
    torch.testing.assert_close(moved, e)


def test_functional_transforms():
    q, w = torch.linalg.matrix_exp(skew(randn(4, 3, 3))), randn(3, 3, seed=1)
    loss = lambda q: (unitary_log(q) * w).sum().square()  # noqa: E731
    torch.testing.assert_close(vmap(grad(loss))(q)[1], grad(loss)(q[1]))
    torch.testing.assert_close(jacfwd(jacfwd(loss))(q[0]), hessian(loss)(q[0]))
    torch.testing.assert_close(jacrev(jacrev(loss))(q[0]), hessian(loss)(q[0]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("angles", [*ANGLES, [math.pi], [math.pi - 1e-9, 1e-9]], ids=str)
def test_angles(dtype, angles):
    q = torch.linalg.matrix_exp(generator(angles, 7, dtype=dtype))
    expected = torch.tensor(angles * (1 if dtype.is_complex else 2), dtype=torch.float64)
    expected = torch.cat([expected, torch.zeros(7 - len(expected)).double()]).sort().values
    torch.testing.assert_close(unitary_angles(q), expected, atol=1e-14, rtol=0)  # eps of matrix_exp, at every angle
    torch.testing.assert_close(
        unitary_angles(q), torch.linalg.eigvals(q).angle().abs().sort().values, atol=1e-13, rtol=0
    )


def test_angles_of_reflections_and_batches():
    q = unitary(2, 3, n=6)
    q[0, 0] = -torch.eye(6)
    q[1, 1] = torch.eye(6)
    expected = torch.linalg.eigvals(q).angle().abs().sort().values
    torch.testing.assert_close(unitary_angles(q), expected, atol=1e-13, rtol=0)
    norm = torch.linalg.matrix_norm(unitary_log(torch.linalg.matrix_exp(skew(randn(5, 5)))))
    angles = unitary_angles(torch.linalg.matrix_exp(skew(randn(5, 5))))
    torch.testing.assert_close(angles.norm(), norm)


def test_errors_name_the_argument():
    for f in (unitary_log, unitary_angles):
        with pytest.raises(ValueError, match="q: expected a square"):
            f(torch.zeros(2, 3))
