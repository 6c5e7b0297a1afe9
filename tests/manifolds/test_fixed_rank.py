"""Special facts about matrices of fixed rank: FixedRank, the pairs, and FixedRankEmbedded, the triples."""

import math

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from steepest import SGD, Adam, FixedRank, FixedRankEmbedded, Muon, Shampoo
from steepest.norms import Spectral
from steepest.testing.geodesics import horizontal
from steepest.testing.manifold import Case

EMBEDDED = FixedRankEmbedded()
SHAPE = ((6, 2), (2, 2), (5, 2))
PAIR = ((6, 2), (2, 5))
DTYPES = [torch.float64, torch.complex128]


def gap(a, b):
    return max((s - t).abs().max().item() for s, t in zip(a, b, strict=True))


def orthogonal(r, seed, dtype=torch.float64):
    return torch.linalg.qr(torch.randn(r, r, generator=torch.Generator().manual_seed(seed), dtype=dtype))[0]


def mixed(case, x, t):
    """A bent line of tangent vectors."""
    return tuple(t * a + t**2 * b for a, b in zip(case.tangent(x), case.tangent(x, 7), strict=True))


def total(*tensors):
    """A sum of all entries with weights."""
    return sum((t.flatten() * torch.linspace(1, 2, t.numel(), dtype=t.dtype)).sum() for t in tensors)


def another_triple(x, seed=3):
    """The same matrix by other bases."""
    u, s, v = x
    q, p = (orthogonal(s.shape[-1], seed + i, s.dtype) for i in range(2))
    return u @ q, q.mH @ s @ p, v @ p


# FixedRankEmbedded. ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_norm_is_that_of_the_matrix(dtype):
    case = Case(EMBEDDED, SHAPE, dtype=dtype)
    x, v = case.point(), case.tangent(case.point())
    _, dw = torch.func.jvp(EMBEDDED.represent, (x,), (v,))
    assert abs(EMBEDDED.norm(x, v) - torch.linalg.matrix_norm(dw)) < 1e-12


@pytest.mark.parametrize("dtype", DTYPES)
def test_turning_the_bases_is_no_tangent(dtype):
    """U A with A skew turns the basis of U; S turns back, W stays, and coordinates are zero."""
    case = Case(EMBEDDED, SHAPE, dtype=dtype)
    u, s, v = x = case.point()
    a, b = (orthogonal(2, i, dtype) - orthogonal(2, i, dtype).mH for i in range(2))
    assert gap(EMBEDDED.coords(x, (u @ a, s @ b - a @ s, v @ b)), (0 * u, 0 * s, 0 * v)) < 1e-14


@pytest.mark.parametrize("retraction", ["splitting", "projection"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_retractions_are_of_second_order(retraction, dtype):
    """The t^2 in W + t X + O(t^2) is normal (Absil and Malick 2012), and so the geodesic is left with t^3."""
    m = FixedRankEmbedded(retraction)
    case = Case(m, SHAPE, dtype=dtype)
    x, v = case.point(), case.tangent(case.point())

    def error(t):
        step = tuple(t * a for a in v)
        return torch.linalg.matrix_norm(m.represent(m.retract(x, step)) - m.represent(m.exp(x, step))).item()

    assert math.log2(error(0.2) / error(0.1)) > 2.8


@pytest.mark.parametrize("retraction", ["splitting", "projection"])
def test_retraction_does_not_see_the_bases(retraction):
    m = FixedRankEmbedded(retraction)
    case = Case(m, SHAPE)
    x = case.point()
    y = another_triple(x)
    c = torch.randn(6, 5, dtype=torch.float64)
    ends = []
    for z in (x, y):
        g = torch.func.grad(lambda z: (m.represent(z) * c).sum())(z)
        ends.append(m.represent(m.retract(z, m.grad(z, g))))
    assert gap(ends[:1], ends[1:]) < 1e-12


def test_projection_is_the_truncated_svd():
    m = FixedRankEmbedded("projection")
    case = Case(m, SHAPE)
    x, v = case.point(), case.tangent(case.point())
    target = m.represent(x) + torch.func.jvp(m.represent, (x,), (v,))[1]
    best = m.represent(m.from_matrix(target, 2))
    assert (m.represent(m.retract(x, v)) - best).abs().max() < 1e-13


@pytest.mark.parametrize("retraction", ["splitting", "projection"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [0.0, 0.5])
def test_retraction_has_two_derivatives(retraction, dtype, size):
    """At a zero step and elsewhere; the projection's through its equation, not through the SVD."""
    m = FixedRankEmbedded(retraction)
    case = Case(m, ((3, 2), (2, 2), (3, 2)), dtype=dtype)
    x = case.point()
    t = torch.tensor(size, dtype=torch.float64, requires_grad=True)
    move = lambda t: torch.view_as_real(m.represent(m.retract(x, mixed(case, x, t))) + 0j)  # noqa: E731
    assert gradcheck(move, t)
    assert gradgradcheck(move, t)


@pytest.mark.parametrize("size", [0.0, 0.3])
def test_exp_has_two_derivatives(size):
    case = Case(EMBEDDED, ((3, 1), (1, 1), (2, 1)))
    x = case.point()
    t = torch.tensor(size, dtype=torch.float64, requires_grad=True)
    end = lambda t: total(EMBEDDED.represent(EMBEDDED.exp(x, mixed(case, x, t))))  # noqa: E731
    assert gradcheck(end, t)
    assert gradgradcheck(end, t)


def test_exp_of_full_rank_is_a_straight_line():
    """Full-rank matrices are an open set of the flat space."""
    case = Case(EMBEDDED, ((2, 2), (2, 2), (4, 2)))
    x, v = case.point(), case.tangent(case.point())
    _, dw = torch.func.jvp(EMBEDDED.represent, (x,), (v,))
    assert (EMBEDDED.represent(EMBEDDED.exp(x, v)) - EMBEDDED.represent(x) - dw).abs().max() < 1e-11


def test_carry_is_the_projection_of_the_matrix():
    case = Case(EMBEDDED, SHAPE, dtype=torch.complex128)
    x, y = case.point(), case.another()
    h = case.coordinates(x)  # with parts that stand for nothing, as Adam's momentum has
    _, xi = torch.func.jvp(EMBEDDED.represent, (x,), (EMBEDDED.push(x, h),))
    u, _, v = y
    uu, vv = u @ u.mH, v @ v.mH
    expected = uu @ xi + xi @ vv - uu @ xi @ vv
    _, found = torch.func.jvp(EMBEDDED.represent, (y,), (EMBEDDED.push(y, EMBEDDED.carry(x, y, h)),))
    assert (found - expected).abs().max() < 1e-12


@pytest.mark.parametrize("dtype", DTYPES)
def test_conversions(dtype):
    b, a = FixedRank().random_point(PAIR, dtype=dtype, generator=torch.Generator().manual_seed(0))
    x = EMBEDDED.from_factors((b, a))
    EMBEDDED.check_point(x)
    assert (EMBEDDED.represent(x) - b @ a).abs().max() < 1e-14
    back = EMBEDDED.to_factors(x)
    assert (back[0] @ back[1] - b @ a).abs().max() < 1e-13
    assert (back[0].mH @ back[0] - back[1] @ back[1].mH).abs().max() < 1e-13
    assert (EMBEDDED.represent(EMBEDDED.from_matrix(b @ a, 2)) - b @ a).abs().max() < 1e-13
    with pytest.raises(ValueError, match="rank"):
        EMBEDDED.from_matrix(b @ a, 6)
    zero = EMBEDDED.from_factors((0 * b, a))  # LoRA's start
    EMBEDDED.check_point(zero)
    assert all(t.abs().max() == 0 for t in EMBEDDED.to_factors(zero))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64])
@pytest.mark.parametrize("small", [0.0, 1e-9, 1e-20])
def test_lost_rank(dtype, small):
    """Coordinates stay bounded by the gradient of W, and a step is taken; from S = 0 as well."""
    g = torch.Generator().manual_seed(0)
    for values in ([1.0, small], [small, 1.0], [0.0, 0.0]):
        u, _, v = EMBEDDED.random_point(SHAPE, generator=g, dtype=dtype)
        q, p = (orthogonal(2, i, dtype) for i in range(2))
        s = q @ torch.diag(torch.tensor(values)).to(dtype) @ p
        x, c = (u, s, v), torch.randn(6, 5, generator=g, dtype=dtype)
        grad = (c @ v @ s.mH, u.mH @ c @ v, c.mH @ u @ s)
        h = EMBEDDED.pull(x, grad)
        assert all(b.isfinite().all() for b in h)
        assert all(torch.linalg.matrix_norm(b) < 3 * torch.linalg.matrix_norm(c) for b in h)
        y = EMBEDDED.retract(x, EMBEDDED.push(x, tuple(-0.1 * b for b in h)))
        EMBEDDED.check_point(y)
        moved = torch.func.vmap(lambda *y: EMBEDDED.represent(y))(*(t[None] for t in y))[0]
        assert ((c.conj() * (moved - EMBEDDED.represent(x))).real.sum() < 0).item()
    nothing = EMBEDDED.pull(x, tuple(0 * t for t in x))
    assert all(b.abs().max() == 0 for b in nothing)


def test_the_retraction_crosses_a_lost_rank():
    """A step to a matrix of rank one, and on to rank two."""
    x = EMBEDDED.random_point(SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    u, s, v = x
    left, values, right = torch.linalg.svd(s)
    flat = left @ torch.diag(torch.tensor([-values[0], 0.0], dtype=torch.float64)) @ right
    y = EMBEDDED.retract(x, (0 * u, flat, 0 * v))
    EMBEDDED.check_point(y)
    assert torch.linalg.matrix_rank(EMBEDDED.represent(y), rtol=1e-12) == 1
    z = EMBEDDED.retract(y, EMBEDDED.push(y, Case(EMBEDDED, SHAPE).coordinates(y)))
    assert torch.linalg.matrix_rank(EMBEDDED.represent(z), rtol=1e-6) == 2


# Optimisers. ----------------------------------------------------------------------------------------------------------

EXACT = Spectral("exact")
MAKERS = {
    "sgd": (lambda p, lr: SGD(p, lr), 1.0),
    "momentum": (lambda p, lr: SGD(p, lr, momentum=0.9), 0.3),
    "muon": (lambda p, lr: Muon(p, lr, norm=EXACT), 1.0),
    "adam": (lambda p, lr: Adam(p, lr), 1.0),
    "shampoo": (lambda p, lr: Shampoo(p, lr), 3.0),
}


def completion(manifold, x, make, lr, steps=250):
    """Losses of completing a 30 x 20 matrix of rank 2 from 60% of its entries, and the matrix found."""
    g = torch.Generator().manual_seed(0)
    b, a = FixedRank().random_point(((30, 2), (2, 20)), generator=g, dtype=torch.float64)
    observed = (torch.rand(30, 20, generator=g) < 0.6).double()
    params = [torch.nn.Parameter(t.clone()) for t in x]
    optimizer = make([{"params": params, "geometry": manifold, "role": "point"}], lr)
    losses = []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * 0.5 * (1 + math.cos(math.pi * step / steps))
        optimizer.zero_grad()
        loss = ((manifold.represent(tuple(params)) - b @ a) * observed).square().sum() / 2
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
    return torch.tensor(losses), manifold.represent(tuple(params)).detach(), b @ a


def start():
    """A small matrix: from one of the target's size, on which the steps of Muon and Adam do not depend, these pass
    through W = 0 and may end in a local minimum."""
    g = torch.Generator().manual_seed(3)
    b, a = FixedRank().random_point(((30, 2), (2, 20)), generator=g, dtype=torch.float64)
    return 0.1 * b, a


@pytest.mark.parametrize("name", ["sgd", "momentum", "muon"])
def test_the_path_does_not_see_the_bases(name):
    make, lr = MAKERS[name]
    x = EMBEDDED.from_factors(start())
    one, _, _ = completion(EMBEDDED, x, make, lr, 60)
    two, _, _ = completion(EMBEDDED, another_triple(x), make, lr, 60)
    assert ((one - two).abs() / one).max() < 1e-8  # rounding of 1e-16, grown in 60 steps


@pytest.mark.slow  # tests/optim/test_sensing.py has them in short
@pytest.mark.parametrize("name", MAKERS)
def test_completion_agrees_with_the_pairs(name):
    make, lr = MAKERS[name]
    losses, found, target = completion(EMBEDDED, EMBEDDED.from_factors(start()), make, lr)
    assert losses[-1] < 1e-6 * losses[0]  # how far the schedule takes the slowest; gradient descent gets to 1e-16
    if name != "shampoo":
        _, pairs, _ = completion(FixedRank(), start(), make, lr)
        assert max((found - target).abs().max(), (found - pairs).abs().max()) < 5e-3


# FixedRank. -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_horizontal_is_the_shortest_with_the_same_change(dtype):
    m = FixedRank()
    case = Case(m, PAIR, dtype=dtype)
    x, v = case.point(), case.tangent(case.point())
    assert gap(m.horizontal(x, v), horizontal(m, x, v)) < 1e-12
    b, a = x
    n = torch.randn(2, 2, dtype=dtype)
    assert gap(m.horizontal(x, (b @ n, -n @ a)), (0 * b, 0 * a)) < 1e-13


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_of_the_matrix_are_horizontal(dtype):
    m = FixedRank()
    case = Case(m, PAIR, dtype=dtype)
    b, a = x = case.point()
    c = torch.randn(6, 5, dtype=dtype)
    grad = m.grad(x, (c @ a.mH, b.mH @ c))
    assert gap(m.horizontal(x, grad), grad) < 1e-12


def test_exp_of_horizontal_vectors_stays_horizontal():
    """And so it is a geodesic of matrices, the same for every pair of factors."""
    m = FixedRank()
    case = Case(m, PAIR)
    x = case.point()
    v = tuple(0.5 * t for t in m.horizontal(x, case.tangent(x)))
    y, velocity = torch.func.jvp(
        lambda t: m.exp(x, tuple(t * a for a in v)), (torch.tensor(1.0),), (torch.tensor(1.0),)
    )
    assert gap(m.horizontal(y, velocity), velocity) < 1e-9
    change = torch.tensor([[3.0, 1.0], [0.0, 0.2]], dtype=torch.float64)
    inverse = torch.linalg.inv(change)
    there = m.exp((x[0] @ change, inverse @ x[1]), (v[0] @ change, inverse @ v[1]))
    assert (m.represent(there) - m.represent(y)).abs().max() < 1e-10


def test_exp_of_pairs_has_two_derivatives():
    m = FixedRank()
    case = Case(m, ((3, 1), (1, 2)))
    x = case.point()
    for size in (0.0, 0.3):
        t = torch.tensor(size, dtype=torch.float64, requires_grad=True)
        end = lambda t: total(*m.exp(x, mixed(case, x, t)))  # noqa: E731
        assert gradcheck(end, t)
        assert gradgradcheck(end, t)


def test_complex_gradient_step_does_not_see_the_factorisation():
    m = FixedRank()
    case = Case(m, PAIR, dtype=torch.complex128)
    b, a = case.point()
    c = torch.randn(6, 5, dtype=torch.complex128)
    change = torch.randn(2, 2, dtype=torch.complex128)
    ends = []
    for f, g in ((b, a), (b @ change, torch.linalg.solve(change, a))):
        v = m.grad((f, g), (c @ g.mH, f.mH @ c))
        ends.append(m.represent(m.retract((f, g), tuple(-0.1 * t for t in v))))
    assert (ends[0] - ends[1]).abs().max() < 1e-12
