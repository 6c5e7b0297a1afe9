"""Orthogonal, special orthogonal and unitary matrices: components, the cut locus, groups of size one, derivatives."""

import math

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from steepest import Orthogonal, SpecialOrthogonal, Stiefel, Unitary
from steepest.manifolds.geodesic import ConvergenceWarning
from steepest.manifolds.orthogonal import RETRACTIONS, determinant

GROUPS = [(Orthogonal(), torch.float64), (SpecialOrthogonal(), torch.float64), (Unitary(), torch.complex128)]
CLOSE = {"rtol": 1e-11, "atol": 1e-12}


def turn(*angles):
    """Rotations in orthogonal planes."""
    return torch.block_diag(
        *(torch.tensor([[math.cos(t), -math.sin(t)], [math.sin(t), math.cos(t)]], dtype=torch.float64) for t in angles)
    )


@pytest.mark.parametrize("n", [1, 2, 3, 4, 7, 8])
def test_determinant(n):
    q = Orthogonal().random_point((200, n, n), dtype=torch.float64)
    oracle = torch.stack([torch.linalg.det(m) for m in q])
    torch.testing.assert_close(determinant(q), oracle, rtol=1e-12, atol=0)
    special = torch.stack(
        [torch.eye(n).double(), -torch.eye(n).double(), torch.diag(torch.tensor([-1.0] + [1.0] * (n - 1))).double()]
    )
    assert determinant(special).tolist() == [1, (-1) ** n, -1]


@pytest.mark.parametrize("retraction", RETRACTIONS)
@pytest.mark.parametrize("group", [Orthogonal, SpecialOrthogonal, Unitary])
def test_retractions_stay_orthonormal_and_in_their_component(group, retraction):
    m, start = group(retraction), group()
    x = start.random_point((30, 5, 5))
    for _ in range(30):
        v = m.random_tangent(x)
        x = m.retract(x, 2 * v / torch.linalg.matrix_norm(v, 2, keepdim=True))
    # eps (1 + |V|^2) a few times, for one Cholesky factorisation: the rounding of earlier steps is repaired
    assert m.residual(x).max() < 2e-6
    if not x.is_complex():
        y = start.random_point((30, 5, 5))
        assert torch.equal(determinant(m.retract(y, 5 * m.random_tangent(y))), determinant(y))


@pytest.mark.parametrize(("m", "dtype"), GROUPS)
def test_second_order_retractions(m, dtype):
    x = m.random_point((5, 5), dtype=dtype)
    v = m.random_tangent(x)
    for retraction, order in (("qr", 2), ("polar", 3), ("cayley", 3)):
        gap = lambda t: (type(m)(retraction).retract(x, t * v) - m.exp(x, t * v)).norm().item()  # noqa: B023, E731
        assert math.log(gap(4e-2) / gap(1e-2), 4) > order - 0.1


def test_cayley_is_the_cayley_transform():
    x = Unitary().random_point((2, 6, 6), dtype=torch.complex128)
    a = Unitary().coords(x, 3 * Unitary().random_tangent(x))
    i = torch.eye(6, dtype=torch.complex128)
    oracle = x @ torch.linalg.solve(i - a / 2, i + a / 2)
    torch.testing.assert_close(Unitary("cayley").retract(x, x @ a), oracle, **CLOSE)


def test_components_have_no_geodesic_between_them():
    m = Orthogonal()
    x = torch.eye(3, dtype=torch.float64)
    y = torch.stack([turn(0.3, 0)[:3, :3], torch.diag(torch.tensor([1.0, 1.0, -1.0]).double())])
    assert m.dist(x, y).tolist() == pytest.approx([0.3 * math.sqrt(2), math.inf])
    with pytest.warns(ConvergenceWarning, match="of 2 pairs of points, 1 differ"):
        v = m.log(x.expand(2, 3, 3), y)
    assert v[0].isfinite().all()
    assert v[1].isnan().all()


def test_half_turn_has_a_distance_but_no_logarithm():
    x, y = torch.eye(4, dtype=torch.float64).requires_grad_(), turn(math.pi, 0.5)
    for m in (Orthogonal(), SpecialOrthogonal()):
        d = m.dist(x, y)
        torch.testing.assert_close(d.item(), math.sqrt(2) * math.hypot(math.pi, 0.5))
        assert torch.autograd.grad(d, x)[0].isfinite().all()
        with pytest.warns(ConvergenceWarning):
            assert m.log(x, y).isnan().all()


@pytest.mark.parametrize("angle", [1e-8, 1e-3, 3.0, math.pi - 1e-6])
def test_dist_is_accurate_at_both_ends(angle):
    x, y = torch.eye(2, dtype=torch.float64), turn(angle)
    torch.testing.assert_close(SpecialOrthogonal().dist(x, y).item(), math.sqrt(2) * angle, rtol=1e-9, atol=1e-15)


def test_refuses_reflections_and_real_phases():
    m, x = SpecialOrthogonal(), torch.diag(torch.tensor([1.0, -1.0, 1.0]))
    with pytest.raises(ValueError, match="w is not a point of SpecialOrthogonal"):
        m.check_point(x, "w")
    m.check_point(m.project(x))
    with pytest.raises(ValueError, match="dtype: unitary matrices are complex"):
        Unitary().random_point((2, 2), dtype=torch.float32)
    with pytest.raises(ValueError, match="w: entries are real"):
        Unitary().check_point(torch.eye(2), "w")
    with pytest.raises(ValueError, match="retraction: unknown 'svd'"):
        Orthogonal("svd")
    with pytest.raises(ValueError, match="use Stiefel"):
        m.check_point(torch.eye(3)[:, :2])


def test_project_is_the_nearest_rotation():
    """Against the best of many rotations near it and far from it, and against the orthogonal Procrustes value."""
    m = SpecialOrthogonal()
    a = torch.randn(20, 3, 3, dtype=torch.float64)
    r = m.project(a)
    m.check_point(r)
    u, s, vh = torch.linalg.svd(a)
    s[:, -1] *= torch.linalg.det(u @ vh)
    torch.testing.assert_close((r * a).sum((-2, -1)), s.sum(-1), **CLOSE)
    rotations = m.random_point((4000, 1, 3, 3), dtype=torch.float64)
    assert ((rotations - a).square().sum((-2, -1)) > (r - a).square().sum((-2, -1))).all()


def test_random_points_are_uniform():
    q = SpecialOrthogonal().random_point((20000, 3, 3), dtype=torch.float64)
    assert (determinant(q) == 1).all()
    # entries have mean 0 and mean square 1/3; trace^2 has the mean 1 for an irreducible representation: 4 sigma
    assert q.mean(0).abs().max() < 4 / math.sqrt(3 * 20000)
    assert (q.square().mean(0) - 1 / 3).abs().max() < 4 * 0.3 / math.sqrt(20000)
    trace = q.diagonal(dim1=-2, dim2=-1).sum(-1)
    assert abs(trace.square().mean() - 1) < 4 * trace.square().std() / math.sqrt(20000)
    both = determinant(Orthogonal().random_point((2000, 3, 3)))
    assert abs(both.mean()) < 4 / math.sqrt(2000)
    assert Unitary().random_point((2, 2)).dtype == torch.complex64


def test_groups_of_size_one():
    assert Orthogonal().dim((1, 1)) == SpecialOrthogonal().dim((1, 1)) == 0
    assert Orthogonal().random_tangent(torch.ones(1, 1)).item() == 0
    assert Orthogonal().dist(torch.ones(1, 1), -torch.ones(1, 1)).item() == math.inf
    assert SpecialOrthogonal().random_point((5, 1, 1)).flatten().tolist() == [1] * 5
    t = torch.tensor([[[0.4]], [[-2.0]], [[3.1]]], dtype=torch.float64)
    one, phase = torch.ones(3, 1, 1, dtype=torch.complex128), torch.polar(torch.ones_like(t), t)
    torch.testing.assert_close(Unitary().log(one, phase), 1j * t, **CLOSE)
    torch.testing.assert_close(Unitary().exp(one, 1j * t), phase, **CLOSE)
    assert Unitary().dim((1, 1), "complex") == 1
    assert SpecialOrthogonal().dim((2, 2)) == 1


def test_agrees_with_square_stiefel():
    """The Euclidean metric of square orthonormal matrices is the same one."""
    m, s = Orthogonal(), Stiefel()
    x = m.random_point((3, 4, 4), dtype=torch.float64)
    v, g = m.random_tangent(x), torch.randn_like(x)
    torch.testing.assert_close(m.grad(x, g), s.grad(x, g), **CLOSE)
    torch.testing.assert_close(m.norm(x, v), s.norm(x, v), **CLOSE)
    torch.testing.assert_close(m.exp(x, v), s.exp(x, v), **CLOSE)


@pytest.mark.parametrize("angles", [(0.0, 0.0), (0.7, 0.7), (2.8, 0.1)])
@pytest.mark.parametrize(("m", "dtype"), GROUPS[1:])
def test_derivatives(m, dtype, angles):
    x = m.random_point((4, 4), dtype=dtype)
    y = x @ turn(*angles).to(dtype)
    v = m.log(x, y)
    h, k = (torch.zeros_like(x, requires_grad=True) for _ in range(2))
    start, end = (lambda h: m.retract(x, m.push(x, h))), (lambda k: m.retract(y, m.push(y, k)))
    calls = [
        lambda h, k: m.exp(start(h), m.push(start(h), m.coords(x, v) + k)),
        lambda h, k: m.log(start(h), end(k)),
    ]
    if sum(angles):
        calls.append(lambda h, k: m.dist(start(h), end(k)))
    for call in calls:
        assert gradcheck(call, (h, k), fast_mode=dtype.is_complex)
        assert gradgradcheck(call, (h, k), fast_mode=True)  # along one random direction


def test_single_precision():
    m = SpecialOrthogonal()
    x = m.random_point((50, 5, 5), dtype=torch.float64)
    v = m.random_tangent(x)
    v = v / torch.linalg.matrix_norm(v, 2, keepdim=True)
    y = m.exp(x, v)
    assert (m.exp(x.float(), v.float()) - y).abs().max() < 2e-6  # ten products of matrices of norm one
    assert (m.log(x.float(), y.float()) - v).abs().max() < 4e-6
    assert m.residual(m.exp(x.float(), 10 * v.float())).max() < 1e-6
