"""The Lyapunov solver against scipy, and its derivatives where eigenvalues repeat."""

import pytest
import scipy.linalg
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, hessian, jacfwd, jacrev, vmap

from steepest.linalg import lyapunov


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def spd(*shape):
    a = randn(*shape, shape[-1])
    return a @ a.mT + torch.eye(shape[-1], dtype=torch.float64)


def test_agrees_with_scipy_and_batches():
    a, c = spd(2, 3, 5), randn(2, 3, 5, 5, seed=1)
    x = lyapunov(a, c)
    expected = scipy.linalg.solve_continuous_lyapunov(a[1, 2].numpy(), c[1, 2].numpy())
    torch.testing.assert_close(x[1, 2], torch.as_tensor(expected), rtol=1e-10, atol=1e-12)  # condition below 50
    torch.testing.assert_close(a @ x + x @ a, c, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(lyapunov(a[1, 2], c), lyapunov(a[1, 2].expand_as(c), c))


def test_complex_agrees_with_scipy():
    a = torch.complex(randn(2, 4, 6), randn(2, 4, 6, seed=1))
    a, c = a @ a.mH, torch.complex(randn(2, 4, 4), randn(2, 4, 4, seed=1))
    x = lyapunov(a, c)
    expected = scipy.linalg.solve_continuous_lyapunov(a[1].numpy(), c[1].numpy())
    torch.testing.assert_close(x[1], torch.as_tensor(expected), rtol=1e-9, atol=1e-11)  # condition below 1e3
    torch.testing.assert_close(a @ x + x @ a, c, rtol=1e-9, atol=1e-11)
    assert lyapunov(a.to(torch.complex64), c.to(torch.complex64)).dtype == torch.complex64


@pytest.mark.parametrize("a", [torch.eye(2), torch.diag(torch.tensor([1.0, 1.0, 2.0])), torch.ones(2, 2)])
def test_complex_derivatives(a):
    n = a.shape[-1]
    turn = torch.linalg.matrix_exp(1j * torch.complex(randn(n, n), 0 * randn(n, n)) + 0j)
    a = (turn @ (a + torch.eye(n)).to(turn) @ turn.mH).requires_grad_()
    c = torch.complex(randn(n, n), randn(n, n, seed=1)).requires_grad_()
    assert gradcheck(lyapunov, (a, c), check_forward_ad=True)
    assert gradgradcheck(lyapunov, (a, c), check_fwd_over_rev=True, fast_mode=True)


@pytest.mark.parametrize("a", [spd(3), torch.eye(3).double(), torch.diag(torch.tensor([1.0, 1.0, 2.0])).double()])
def test_derivatives_of_every_order(a):
    a, c = a.clone().requires_grad_(), randn(3, 3, seed=1).requires_grad_()
    assert gradcheck(lyapunov, (a, c), check_forward_ad=True)
    assert gradgradcheck(lyapunov, (a, c), check_fwd_over_rev=True)
    grad_a = lambda a, c: grad(lambda a, c: lyapunov(a, c).square().sum())(a, c)  # noqa: E731
    assert gradgradcheck(grad_a, (a, c))


def test_derivative_where_a_is_shared_by_the_batch():
    a, c = spd(3).requires_grad_(), randn(4, 3, 3, seed=1).requires_grad_()
    assert gradcheck(lyapunov, (a, c))


def test_functional_transforms():
    a, c = spd(4, 3), randn(4, 3, 3, seed=1)
    loss = lambda a, c: lyapunov(a, c).square().sum()  # noqa: E731
    torch.testing.assert_close(vmap(hessian(loss))(a, c)[2], hessian(loss)(a[2], c[2]))
    torch.testing.assert_close(vmap(lyapunov, (None, 0))(a[0], c), lyapunov(a[0], c))
    # torch loses what forward mode owes to an outer forward mode unless a rule takes care.
    a, cube = a[0], lambda a: lyapunov(a, a @ a @ c[0])
    expected = jacrev(jacrev(cube))(a)
    for second in (jacfwd(jacfwd(cube)), jacrev(jacfwd(cube)), jacfwd(jacrev(cube))):
        torch.testing.assert_close(second(a), expected)
    torch.testing.assert_close(vmap(jacfwd(jacfwd(cube)))(a[None])[0], expected)
    torch.testing.assert_close(jacfwd(jacfwd(vmap(cube)))(a[None])[0, :, :, 0, :, :, 0], expected)


def test_singular_components_are_zero():
    a, c = torch.diag(torch.tensor([2.0, 0.0, 0.0])).double(), torch.ones(3, 3).double()
    expected = torch.tensor([[0.25, 0.5, 0.5], [0.5, 0.0, 0.0], [0.5, 0.0, 0.0]]).double()
    torch.testing.assert_close(lyapunov(a, c), expected)
    assert not lyapunov(0 * a, c).any()
    # Scale does not decide what counts as zero.
    torch.testing.assert_close(1e-200 * lyapunov(1e-200 * a, c), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_low_precision_runs_in_float32(dtype):
    a, c = spd(6).to(dtype), randn(6, 6, seed=1).to(dtype)
    x = lyapunov(a, c)
    assert x.dtype == dtype
    tolerance = max(1e-4, torch.finfo(dtype).eps)  # float32: eps times a condition number below 50
    torch.testing.assert_close(x.double(), lyapunov(a.double(), c.double()), rtol=tolerance, atol=tolerance)


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match="a: expected a square"):
        lyapunov(torch.zeros(2, 3), torch.zeros(3, 3))
    with pytest.raises(ValueError, match="c: expected a square"):
        lyapunov(torch.zeros(3, 3), torch.zeros(3))
    with pytest.raises(ValueError, match="c: expected matrices of the size of a"):
        lyapunov(torch.zeros(3, 3), torch.zeros(2, 2))
