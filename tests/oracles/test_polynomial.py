"""PolynomialPrecondition against dense formulas, and what it does to gradient descent."""

import json
import math

import pytest
import torch
from torch import nn

from steepest import Composed, Euclidean
from steepest.linalg import symmetric_preconditioner
from steepest.transforms import Context, PolynomialPrecondition, Transform, chain


def context(x, step):
    m = Euclidean(x.ndim)
    return Context(m, m.frame(x), 0.1, step)


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_statistics_on_both_sides(dtype):
    transform = PolynomialPrecondition(2, beta=0.8, eps=0.01)
    run, x = chain(transform), randn(5, 4, dtype=dtype)
    states = run.init((x,), context(x, 1))
    left, right = torch.zeros(5, 5, dtype=dtype), torch.zeros(4, 4, dtype=dtype)
    for step in range(1, 5):
        h = randn(5, 4, seed=step, dtype=dtype)
        left, right = 0.8 * left + 0.2 * h @ h.mH, 0.8 * right + 0.2 * h.mH @ h
        sides = []
        for s in (left, right):
            shifted = s + 0.01 * s.trace() / len(s) * torch.eye(len(s), dtype=dtype)
            w, v = torch.linalg.eigh(shifted)
            total = [w.sum() - w[i] for i in range(len(w))]  # e_2 of the others: ((sum)^2 - sum of squares) / 2
            e = torch.stack([(t**2 - (w.square().sum() - w[i] ** 2)) / 2 for i, t in enumerate(total)])
            sides.append((v * (e * w.sum() / (w @ e))) @ v.mH)
        (out,) = run.update((h,), states, context(x, step))
        torch.testing.assert_close(out, sides[0] @ h @ sides[1], rtol=0, atol=1e-9)


def test_degree_zero_is_the_identity():
    h = randn(4, 3)
    run = chain(PolynomialPrecondition(0))
    (out,) = run.update((h,), run.init((h,), context(h, 1)), context(h, 1))
    torch.testing.assert_close(out, h, rtol=1e-14, atol=0)


def test_mean_square_is_kept():
    """tr(L P(L)) = tr(L): <h, P(L) h> is |h|^2 on average, at every degree."""
    h = randn(5, 200) * torch.tensor([10.0, 3.0, 1.0, 0.5, 0.1], dtype=torch.float64).unsqueeze(-1)
    gram = h @ h.T
    for degree in range(5):
        known = PolynomialPrecondition(degree, eps=0.0, matrix=gram)
        (out,) = chain(known).update((h,), ({},), context(h, 1))
        assert (h * out).sum().item() == pytest.approx(h.square().sum().item(), rel=1e-9)


SPECTRUM = [90.0, 60.0, 40.0, 1.0, 0.9, 0.8, 0.7, 0.6, 0.5]


def iterations(degree, matrix, side="right"):
    """Steps of gradient descent at the best constant rate to bring tr W B W^T / 2 down by 1e-6."""
    w = nn.Parameter(torch.ones(2, len(SPECTRUM), dtype=torch.float64))
    transform = PolynomialPrecondition(degree, eps=0.0, matrix=matrix, side=side)
    spectrum = torch.linalg.eigvals(symmetric_preconditioner(matrix, degree) @ matrix).real
    optimizer = Composed([w], transform, lr=float(2 / (spectrum.max() + spectrum.min())))
    first = None
    for step in range(200_000):
        loss = ((w @ matrix) * w).sum() / 2
        first = first or loss.item()
        if loss.item() < 1e-6 * first:
            return step, (spectrum.max() / spectrum.min()).item()
        w.grad = (w @ matrix).detach()
        optimizer.step()
    raise AssertionError("no convergence")


def test_gradient_descent_takes_as_many_steps_as_the_condition_number_says():
    q = torch.linalg.qr(randn(len(SPECTRUM), len(SPECTRUM))).Q
    matrix = (q * torch.tensor(SPECTRUM, dtype=torch.float64)) @ q.T
    found = [iterations(degree, matrix) for degree in range(4)]
    steps, conditions = zip(*found, strict=True)
    assert [round(c) for c in conditions] == [180, 97, 42, 8]
    for count, condition in found:
        # the error falls by (k - 1) / (k + 1) a step, the loss by its square: exp(-4 / k) to leading order
        assert count == pytest.approx(condition / 4 * math.log(1e6), rel=0.06), (steps, conditions)


def test_a_rate_below_two_over_the_trace_is_stable_at_every_degree():
    matrix = torch.diag(torch.tensor(SPECTRUM, dtype=torch.float64))
    for degree in range(8):
        top = torch.linalg.eigvals(symmetric_preconditioner(matrix, degree) @ matrix).real.max()
        assert top <= matrix.trace()


def test_the_matrix_travels_as_json():
    known = PolynomialPrecondition(1, eps=0.0, matrix=torch.diag(torch.tensor([2.0, 1.0])), side="right")
    again = Transform.from_spec(json.loads(json.dumps(known.to_spec())))
    h = randn(3, 2, dtype=torch.float32)
    (a,), (b,) = (chain(t).update((h,), ({},), context(h, 1)) for t in (known, again))
    torch.testing.assert_close(a, b)
    torch.testing.assert_close(a, h * torch.tensor([0.75, 1.5]))  # (1, 2) times 3 / (2 + 2)
    left = PolynomialPrecondition(1, eps=0.0, matrix=[[2.0, 0.0], [0.0, 1.0]])
    torch.testing.assert_close(chain(left).update((h.T,), ({},), context(h, 1))[0], a.T)


def test_a_matrix_of_another_size_is_refused():
    known = PolynomialPrecondition(matrix=torch.eye(3))
    with pytest.raises(ValueError, match=r"matrix: is 3 x 3, and the left side of a block of shape \(2, 4\)"):
        chain(known).update((torch.ones(2, 4),), ({},), context(torch.ones(2, 4), 1))
    with pytest.raises(ValueError, match="matrix: expected a symmetric one"):
        PolynomialPrecondition(matrix=torch.tensor([[1.0, 2.0], [0.0, 1.0]]))
    with pytest.raises(ValueError, match="side: unknown 'top'"):
        PolynomialPrecondition(side="top")


def test_statistics_speed_up_a_badly_scaled_regression():
    """With the statistics of gradients whose columns differ 30-fold in scale, which degree 0 feels."""
    x = randn(200, 4) * torch.tensor([30.0, 1.0, 1.0, 1.0], dtype=torch.float64)
    y = x @ randn(4, 3, seed=1)

    def loss_after(degree, lr):
        w = nn.Parameter(torch.zeros(4, 3, dtype=torch.float64))
        optimizer = Composed([w], PolynomialPrecondition(degree), lr=lr)
        for _ in range(60):
            w.grad = (x.T @ (x @ w - y) / 200).detach()
            optimizer.step()
        return ((x @ w - y) ** 2).mean().item()

    best = {d: min(loss_after(d, 10.0**-k) for k in (0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5)) for d in (0, 1)}
    assert best[1] < best[0] / 2, best
