"""Conjugate gradients and CGLS against dense solvers, with batch elements that converge at different times."""

import pytest
import torch

from steepest.linalg import conjugate_gradient, least_squares

BATCHES = [(), (3,), (2, 3)]
DTYPES = [torch.float64, torch.complex128]


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def definite(*batch, n, dtype=torch.float64):
    a = randn(*batch, n, 2 * n, dtype=dtype)
    return a @ a.mH / n + torch.eye(n, dtype=dtype)  # condition below 10


def times(a):
    return lambda x: (a @ x.unsqueeze(-1)).squeeze(-1)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_conjugate_gradient_solves(batch, dtype):
    a, b = definite(*batch, n=6, dtype=dtype), randn(*batch, 6, seed=1, dtype=dtype)
    x, residual = conjugate_gradient(times(a), b, 1, tolerance=1e-12)
    torch.testing.assert_close(x, torch.linalg.solve(a, b), atol=1e-10, rtol=0)  # tolerance times condition
    assert residual.shape == batch
    assert residual.max() <= 1e-12


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_tuples_of_tensors_of_several_sizes(batch, dtype):
    n, m = 6, 4  # a real matrix (2, 3) and a vector, both parts of one unknown
    a = definite(*batch, n=n + m, dtype=dtype)
    b = randn(*batch, n + m, seed=1, dtype=dtype)

    def split(x):
        return x[..., :n].unflatten(-1, (2, 3)), x[..., n:]

    def operator(parts):
        return split(times(a)(torch.cat([parts[0].flatten(-2), parts[1]], -1)))

    x, residual = conjugate_gradient(operator, split(b), (2, 1), tolerance=1e-12)
    expected = split(torch.linalg.solve(a, b))
    torch.testing.assert_close(x, expected, atol=1e-10, rtol=0)
    assert residual.shape == batch


def test_operators_that_are_linear_over_the_real_numbers_only():
    # x -> 2 x + conj(x) is definite in the inner product Re<., .>, and not linear over the complex numbers.
    b = randn(3, 4, dtype=torch.complex128)
    x, _ = conjugate_gradient(lambda x: 2 * x + x.conj(), b, 1, tolerance=1e-14)
    torch.testing.assert_close(x, torch.complex(b.real / 3, b.imag))


def test_elements_rest_when_they_have_converged():
    # Condition 1 and b = 0 are done after one step and none; the other needs many more.
    a = torch.stack([torch.eye(30).double(), definite(n=30) + torch.linspace(0, 1e3, 30).diag(), definite(n=30)])
    b = torch.stack([randn(30), randn(30, seed=1), torch.zeros(30).double()])
    x, residual = conjugate_gradient(times(a), b, 1, tolerance=1e-12, iterations=200)
    torch.testing.assert_close(x, torch.linalg.solve(a, b), atol=1e-10, rtol=0)
    assert not x[2].any()
    assert residual[2] == 0
    assert residual.max() <= 1e-12
    assert x[0].equal(conjugate_gradient(times(a[0]), b[0], 1, tolerance=1e-12)[0])


def test_few_iterations_say_what_is_left():
    a, b = definite(n=20), randn(20, seed=1)
    x, residual = conjugate_gradient(times(a), b, 1, tolerance=0.0, iterations=3)
    torch.testing.assert_close(residual, (b - a @ x).norm() / b.norm())
    calls = []
    conjugate_gradient(lambda x: calls.append(1) or a @ x, b, 1, tolerance=0.5)
    assert len(calls) < 5


def test_no_definite_operator_no_step():
    a = torch.stack([torch.eye(3), torch.diag(torch.tensor([1.0, -1.0, 1.0]))])
    b = torch.tensor([[1.0, 2.0, 3.0], [0.0, 1.0, 0.0]])
    x, residual = conjugate_gradient(times(a), b, 1)
    torch.testing.assert_close(x, torch.stack([b[0], torch.zeros(3)]))
    torch.testing.assert_close(residual, torch.tensor([0.0, 1.0]))


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_any_scale_and_nothing_recorded(scale):
    a = definite(n=5).float().requires_grad_()
    b = (randn(2, 5) * scale).float().requires_grad_()
    x, _ = conjugate_gradient(times(a), b, 1, tolerance=1e-6)
    y, _ = least_squares(times(a), times(a.mH), b, 1, 1, tolerance=1e-6)
    for solution in (x, y):
        assert not solution.requires_grad
        expected = torch.linalg.solve(a, b.mT).mT
        torch.testing.assert_close(solution / scale, expected.detach() / scale, atol=1e-4, rtol=0)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(9, 4), (4, 9), (5, 5)])
def test_least_squares(batch, dtype, shape):
    j, b = randn(*batch, *shape, dtype=dtype), randn(*batch, shape[0], seed=1, dtype=dtype)
    x, ratio = least_squares(times(j), times(j.mH), b, 1, 1, tolerance=1e-13)
    torch.testing.assert_close(x, times(torch.linalg.pinv(j))(b), atol=1e-8, rtol=0)  # condition below 100, squared
    assert ratio.shape == batch


@pytest.mark.parametrize("dtype", DTYPES)
def test_least_squares_without_full_rank_is_the_one_of_least_norm(dtype):
    j, b = randn(2, 6, 2, dtype=dtype) @ randn(2, 2, 5, seed=1, dtype=dtype), randn(2, 6, seed=2, dtype=dtype)
    x, _ = least_squares(times(j), times(j.mH), b, 1, 1, tolerance=1e-13)
    torch.testing.assert_close(x, times(torch.linalg.pinv(j, rtol=1e-10))(b), atol=1e-10, rtol=0)


def test_least_squares_between_structures():
    # The unknown is a pair of matrices, the data one matrix: |p X + Y q - b|.
    p, q, b = randn(3, 4, 2), randn(3, 3, 5, seed=1), randn(3, 4, 5, seed=2)
    x, y = least_squares(
        lambda x: p @ x[0] + x[1] @ q, lambda r: (p.mH @ r, r @ q.mH), b, 2, 2, tolerance=1e-12, iterations=200
    )[0]
    left, right = torch.linalg.svd(p).U[..., 2:], torch.linalg.svd(q).Vh[..., 3:, :].mH
    # What no X and Y reach is the part outside the ranges of both p and q^T.
    rest = left @ left.mT @ b @ right @ right.mT
    torch.testing.assert_close(b - p @ x - y @ q, rest, atol=1e-8, rtol=0)


def test_least_squares_stops_at_rounding():
    j, calls = randn(40, 10), []
    operator = lambda x: calls.append(1) or j @ x  # noqa: E731
    b = randn(40, seed=1)
    x, _ = least_squares(operator, lambda r: j.mH @ r, b, 1, 1, tolerance=0.0, iterations=500)
    assert len(calls) < 60
    torch.testing.assert_close(x, torch.linalg.lstsq(j, b[:, None]).solution[:, 0])
    orthogonal = b - j @ x
    x, _ = least_squares(lambda x: j @ x, lambda r: j.mH @ r, orthogonal, 1, 1)
    assert x.norm() < 1e-12  # rounding of b, times 1 / sigma_min
    x, ratio = least_squares(lambda x: j @ x, lambda r: j.mH @ r, 0 * b, 1, 1)
    assert not x.any()
    assert ratio == 0
