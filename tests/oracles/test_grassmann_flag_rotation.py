"""Subspaces, rotations and flags against pymanopt, geomstats and scipy.

pymanopt's Grassmann.dist takes arccosines, which lose angles below 1e-8: compared on subspaces far apart; scipy's
`subspace_angles` takes sines and cosines. pymanopt's groups keep tangent vectors in the Lie algebra, ours are X A; the
gradient of its UnitaryGroup (2.2.1) takes the transpose where the Hermitian one is meant, and is not tangent: its
`to_tangent_space` stands in.
geomstats keeps subspaces as projectors, and halves the metric of projectors to get that of bases.
"""

import numpy as np
import pytest
import scipy.linalg
import scipy.optimize
import torch

from steepest import Flag, Grassmann, Orthogonal, SpecialOrthogonal, Sphere, Unitary

if not hasattr(np, "trapz"):  # geomstats 2.8.0 asks for a name that numpy 2.4 has dropped
    np.trapz = np.trapezoid
pymanopt = pytest.importorskip("pymanopt")
pytest.importorskip("geomstats")

from geomstats.geometry.grassmannian import Grassmannian  # noqa: E402
from geomstats.geometry.special_orthogonal import SpecialOrthogonal as GeomstatsRotations  # noqa: E402

CLOSE = {"rtol": 1e-9, "atol": 1e-10}  # a few dozen operations in each of the libraries
DTYPES = [torch.float64, torch.complex128]


def tensor(a):
    return torch.from_numpy(np.ascontiguousarray(a))


# Subspaces. -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(6, 2), (5, 3), (4, 1)])
def test_grassmann_agrees_with_pymanopt(shape, dtype):
    n, p = shape
    family = pymanopt.manifolds.ComplexGrassmann if dtype.is_complex else pymanopt.manifolds.Grassmann
    m, peer = Grassmann(), family(n, p)
    x, y = (m.random_point(shape, dtype=dtype) for _ in range(2))
    u, v = (m.random_tangent(x) for _ in range(2))
    g, gv = torch.randn(shape, dtype=dtype), torch.randn(shape, dtype=dtype)
    a, b, s, t, c, d = (z.numpy() for z in (x, y, u, v, g, gv))
    torch.testing.assert_close(m.represent(m.exp(x, v)), m.represent(tensor(peer.exp(a, t))), **CLOSE)
    torch.testing.assert_close(m.log(x, y), tensor(peer.log(a, b)), **CLOSE)
    torch.testing.assert_close(m.dist(x, y).item(), float(peer.dist(a, b)), **CLOSE)
    torch.testing.assert_close(m.inner(x, u, v).item(), float(np.real(peer.inner_product(a, s, t))), **CLOSE)
    torch.testing.assert_close(
        m.hessian(x, g, gv, v), tensor(peer.euclidean_to_riemannian_hessian(a, c, d, t)), **CLOSE
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_principal_angles_agree_with_scipy(dtype):
    m = Grassmann()
    x = m.random_point((20, 7, 3), dtype=dtype)
    far = m.random_point((20, 7, 3), dtype=dtype)
    for y in (far, m.exp(x, 1e-7 * m.random_tangent(x))):
        angles = [scipy.linalg.subspace_angles(a, b) for a, b in zip(x.numpy(), y.numpy(), strict=True)]
        oracle = tensor(np.linalg.norm(angles, axis=-1))
        torch.testing.assert_close(m.dist(x, y), oracle, rtol=1e-12, atol=1e-14)  # a dozen eps, small angles too


def test_grassmann_agrees_with_geomstats():
    m, metric = Grassmann(), Grassmannian(6, 2).metric
    x = m.random_point((6, 2), dtype=torch.float64)
    u, v = m.random_tangent(x), m.random_tangent(x)
    v = v / v.norm()
    y = m.exp(x, v)
    projector = lambda z: m.represent(z).numpy()  # noqa: E731
    lift = lambda x, w: (w @ x.mT + x @ w.mT).numpy()  # noqa: E731
    end = tensor(metric.exp(lift(x, v), projector(x)))
    torch.testing.assert_close(m.represent(y), end, **CLOSE)
    log = tensor(metric.log(projector(y), projector(x)))
    torch.testing.assert_close(tensor(lift(x, m.log(x, y))), log, **CLOSE)
    moved = tensor(metric.parallel_transport(lift(x, u), projector(x), end_point=projector(y)))
    torch.testing.assert_close(tensor(lift(y, m.transport(x, y, u))), moved, **CLOSE)


# Rotations and unitary matrices. --------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 3, 5])
@pytest.mark.parametrize("m", [SpecialOrthogonal(), Orthogonal(), Unitary()])
def test_log_agrees_with_scipy(m, n):
    dtype = torch.complex128 if isinstance(m, Unitary) else torch.float64
    x = m.random_point((10, n, n), dtype=dtype)
    v = m.random_tangent(x)
    v = 2.5 * v / torch.linalg.matrix_norm(v, 2, keepdim=True)
    y = m.exp(x, v)
    oracle = np.stack([scipy.linalg.logm(q) for q in (x.mH @ y).numpy()])
    oracle = tensor(oracle if dtype.is_complex else oracle.real)
    torch.testing.assert_close(x.mH @ m.log(x, y), oracle, **CLOSE)
    torch.testing.assert_close(m.dist(x, y), torch.linalg.matrix_norm(oracle), **CLOSE)
    ends = np.stack([scipy.linalg.expm(a) for a in (x.mH @ v).numpy()])
    torch.testing.assert_close(x.mH @ y, tensor(ends), **CLOSE)


@pytest.mark.parametrize("n", [2, 3, 4])
@pytest.mark.parametrize("m", [SpecialOrthogonal(), Unitary()])
def test_groups_agree_with_pymanopt(m, n):
    unitary = isinstance(m, Unitary)
    dtype = torch.complex128 if unitary else torch.float64
    peer = (pymanopt.manifolds.UnitaryGroup if unitary else pymanopt.manifolds.SpecialOrthogonalGroup)(n)
    x = m.random_point((n, n), dtype=dtype)
    v, u = m.random_tangent(x), m.random_tangent(x)
    v = 2 * v / torch.linalg.matrix_norm(v, 2)
    y = m.exp(x, v)
    g, gv = torch.randn(n, n, dtype=dtype), torch.randn(n, n, dtype=dtype)
    a, b, c, d = (z.numpy() for z in (x, y, g, gv))
    turn = (x.mH @ v).numpy()
    torch.testing.assert_close(y, tensor(peer.exp(a, turn)), **CLOSE)
    torch.testing.assert_close(x.mH @ m.log(x, y), tensor(peer.log(a, b)), **CLOSE)
    torch.testing.assert_close(m.dist(x, y).item(), float(peer.dist(a, b)), **CLOSE)
    gradient = peer.to_tangent_space(a, a.conj().T @ c) if unitary else peer.euclidean_to_riemannian_gradient(a, c)
    torch.testing.assert_close(x.mH @ m.grad(x, g), tensor(gradient), **CLOSE)
    theirs = float(np.real(peer.inner_product(a, turn, (x.mH @ u).numpy())))
    torch.testing.assert_close(m.inner(x, v, u).item(), theirs, **CLOSE)
    hessian = tensor(peer.euclidean_to_riemannian_hessian(a, c, d, turn))
    torch.testing.assert_close(x.mH @ m.hessian(x, g, gv, v), hessian, **CLOSE)


@pytest.mark.parametrize("n", [2, 3, 4])
def test_rotations_agree_with_geomstats(n):
    m, peer = SpecialOrthogonal(), GeomstatsRotations(n, point_type="matrix", equip=False)
    x = m.random_point((n, n), dtype=torch.float64)
    v = m.random_tangent(x)
    v = 2 * v / torch.linalg.matrix_norm(v, 2)
    y = m.exp(x, v)
    torch.testing.assert_close(y, tensor(peer.exp(v.numpy(), x.numpy())), **CLOSE)
    torch.testing.assert_close(m.log(x, y), tensor(np.real(peer.log(y.numpy(), x.numpy()))), **CLOSE)


# Flags. ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_flag_exp_is_the_exponential_of_the_group(dtype):
    """A geodesic of the quotient is the image of Q expm(t Omega) with Omega zero on all diagonal blocks."""
    m, dims, n = Flag((1, 2)), (1, 2, 2), 5
    q = Unitary().random_point((n, n), dtype=torch.complex128) if dtype.is_complex else None
    q = Orthogonal().random_point((n, n), dtype=torch.float64) if q is None else q
    a = torch.randn(n, n, dtype=dtype)
    a = (a - a.mH) * ~torch.block_diag(*(torch.ones(d, d, dtype=torch.bool) for d in dims))
    end = q @ tensor(scipy.linalg.expm(a.numpy()))
    x, v = q[:, :3], (q @ a)[:, :3]
    torch.testing.assert_close(m.represent(m.exp(x, v)), m.represent(end[:, :3]), **CLOSE)
    torch.testing.assert_close(
        m.norm(x, v) ** 2, (a.abs().square().sum() - a[3:, 3:].abs().square().sum()) / 2, **CLOSE
    )


def test_chordal_mean_agrees_with_a_descent_on_stiefel():
    """The maximum of sum_j tr(Y_j^T P_j Y_j), by scipy's BFGS on a factor of Y."""
    m, torch_eye = Flag((1, 2)), torch.eye(5, dtype=torch.float64)[:, :3]
    x = m.retract(torch_eye.expand(4, 5, 3), 0.3 * m.random_tangent(torch_eye.expand(4, 5, 3)))
    y = m.chordal_mean(x)

    def loss(z):
        t = torch.from_numpy(z).view(5, 3).requires_grad_()
        q = m.project(t)
        value = (m.chordal_dist(x, q.expand_as(x)) ** 2).sum()
        value.backward()
        return value.item(), t.grad.numpy().ravel()

    best = scipy.optimize.minimize(loss, torch_eye.numpy().ravel(), jac=True, method="BFGS", options={"gtol": 1e-10})
    found = m.project(torch.from_numpy(best.x).view(5, 3))
    # a minimiser is known to the root of the precision of its value
    torch.testing.assert_close(m.represent(y), m.represent(found), rtol=0, atol=1e-7)


def test_complex_sphere_agrees_with_pymanopt():
    m, peer = Sphere(), pymanopt.manifolds.ComplexCircle(1)
    t = torch.tensor([0.3, 2.9], dtype=torch.float64)
    x, y = torch.polar(torch.ones_like(t), t).unsqueeze(-1).unbind(0)
    torch.testing.assert_close(m.dist(x, y).item(), float(peer.dist(x.numpy(), y.numpy())), **CLOSE)
    torch.testing.assert_close(m.log(x, y), tensor(peer.log(x.numpy(), y.numpy())), **CLOSE)
