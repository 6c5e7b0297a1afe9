"""Steps in random submanifolds: the formula, what they leave alone, and how they are drawn."""

import itertools

import pytest
import torch

from steepest import SPD, Grassmann, Orthogonal, SpecialOrthogonal, Stiefel, Unitary, minimize
from steepest.linalg import skew
from steepest.solvers import Problem, RandomSubmanifold

KINDS = [RandomSubmanifold(3), RandomSubmanifold(3, "orthogonal")]


def gaussian(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def procrustes(m, n, p, seed=0, dtype=torch.float64):
    """f(x) = -<a, x>, whose minimum on Stiefel is minus the nuclear norm, and a start."""
    a = gaussian(n, p, seed=seed, dtype=dtype)
    x0 = m.random_point((n, p), dtype=dtype, generator=torch.Generator().manual_seed(seed + 1))
    return a, (lambda x: -(a.conj() * x).real.sum()), x0


def one_step(f, x0, m, method, seed=0):
    return minimize(f, x0, m, method, max_iterations=1, tolerance=0.0, seed=seed).x


@pytest.mark.parametrize("retraction", ["qr", "polar", "cayley", "exp"])
def test_permutation_turns_r_rows_by_a_step_along_their_gradient(retraction):
    m = Stiefel()
    a, f, x0 = procrustes(m, 9, 4)
    x = one_step(f, x0, m, RandomSubmanifold(3, step_size=1e-4, retraction=retraction))
    moved = (x != x0).any(-1).nonzero().flatten()
    assert len(moved) == 3
    s = skew(-a[moved] @ x0[moved].mT)
    torch.testing.assert_close(x[moved], (torch.eye(3) - 1e-4 * s) @ x0[moved], atol=1e-7, rtol=0)  # (1e-4 |s|)^2


def test_qr_is_the_authors_update():
    """Q of I - lr S, with a positive diagonal of R, for one order of the rows."""
    m = Stiefel()
    a, f, x0 = procrustes(m, 9, 4)
    x = one_step(f, x0, m, RandomSubmanifold(3, step_size=0.3))
    errors = []
    for order in itertools.permutations((x != x0).any(-1).nonzero().flatten().tolist()):
        moved = list(order)
        q, r = torch.linalg.qr(torch.eye(3, dtype=x.dtype) - 0.3 * skew(-a[moved] @ x0[moved].mT))
        errors.append(float((x[moved] - q * r.diagonal().sign() @ x0[moved]).abs().max()))
    assert min(errors) < 1e-13


def test_orthogonal_sampling_turns_in_r_dimensions():
    m = Orthogonal()
    a, f, x0 = procrustes(m, 9, 9)
    x = one_step(f, x0, m, RandomSubmanifold(3, "orthogonal", step_size=1e-4))
    turn = x @ x0.mT - torch.eye(9)
    u, singular, _ = torch.linalg.svd(turn)
    assert (singular[2:] < 1e-14).all()  # a turn in three dimensions leaves one of them fixed
    assert singular[1] > 1e-6
    p = u[:, :2]  # the plane; the turn there is the gradient's part in it
    torch.testing.assert_close(p.mT @ turn @ p, p.mT @ (1e-4 * skew(a @ x0.mT)) @ p, atol=1e-7, rtol=0)
    assert bool(((x - x0).abs().amax(-1) > 0).all())


@pytest.mark.parametrize("method", KINDS, ids=str)
def test_slope_is_the_derivative(method):
    m = Stiefel()
    _, f, x0 = procrustes(m, 8, 3)
    path, slope = method._submanifold(Problem(f, m).at(x0), torch.Generator().manual_seed(3))
    assert abs((path(1e-5).value - path(-1e-5).value) / 2e-5 - slope) < 1e-8  # rounding / 1e-5


@pytest.mark.parametrize("method", KINDS, ids=str)
def test_gradients_in_submanifolds_have_r_of_n_pairs_of_the_whole_on_average(method):
    """E |S_r|^2 = r (r - 1) / (n (n - 1)) |S|^2 for both samplings (Han et al. 2025, section 4)."""
    m, n, r = Orthogonal(), 7, 3
    _, f, x0 = procrustes(m, n, n)
    at = Problem(f, m).at(x0)
    found = [-method._submanifold(at, at.problem.generator(i))[1] for i in range(1000)]
    found = torch.tensor(found, dtype=torch.float64)
    whole = skew(at.covector @ x0.mT).square().sum()
    error = found.std() / len(found) ** 0.5
    assert abs(found.mean() - r * (r - 1) / (n * (n - 1)) * whole) < 4 * error  # one in 16000 by chance
    assert error < 0.03 * found.mean()


def test_uniform_subspaces():
    """The mean of their projectors is r / n times the identity; entries of one have a variance below r / n^2."""
    from steepest.solvers.random_submanifold import _subspace

    x = torch.zeros(6, 2, dtype=torch.float64)
    total = torch.zeros(6, 6, dtype=torch.float64)
    eye = torch.eye(6, dtype=torch.float64)
    for i in range(1000):
        part = _subspace(x, 2, torch.Generator().manual_seed(i))[0](eye)
        torch.testing.assert_close(part @ part.mT, torch.eye(2, dtype=x.dtype))
        total += part.mT @ part
    assert (total / 1000 - eye / 3).abs().max() < 5 * (2 / 36 / 1000) ** 0.5


@pytest.mark.parametrize("sampling", ["permutation", "orthogonal"])
@pytest.mark.parametrize("m", [Orthogonal(), SpecialOrthogonal(), Stiefel(), Unitary()], ids=str)
def test_procrustes(m, sampling):
    n, p = 6, 3 if isinstance(m, Stiefel) else 6
    dtype = torch.complex128 if isinstance(m, Unitary) else torch.float64
    a, f, x0 = procrustes(m, n, p, dtype=dtype)
    if isinstance(m, Orthogonal | SpecialOrthogonal):
        a = a if torch.linalg.det(a @ x0.mT) > 0 else torch.cat([-a[:1], a[1:]])
        f = lambda x: -(a * x).sum()  # noqa: E731 - of the component in which the start is
    result = minimize(f, x0, m, RandomSubmanifold(4, sampling), max_iterations=3000, tolerance=1e-6)
    assert abs(result.value + torch.linalg.svdvals(a).sum()) < 1e-9, result


def test_subspaces():
    a = gaussian(10, 10)
    a = a @ a.mT
    x0 = Grassmann().project(gaussian(10, 2, seed=1))
    result = minimize(lambda x: -(x * (a @ x)).sum(), x0, Grassmann(), "random submanifold", max_iterations=5000)
    assert abs(result.value + torch.linalg.eigvalsh(a)[-2:].sum()) < 1e-9, result


@pytest.mark.parametrize("method", KINDS, ids=str)
def test_a_thousand_steps_stay_on_the_manifold(method):
    m = Stiefel()
    _, f, x0 = procrustes(m, 12, 5)
    at = Problem(f, m).at(x0)
    for i in range(1000):
        path, _ = method._submanifold(at, at.problem.generator(i))
        at = path((-1) ** i * 0.05)
    assert m.residual(at.x) < 1e-13  # rounding, of which most cancels


def test_inner_steps_are_steps():
    """Four inner steps of one iteration do what four iterations would, but for the draws."""
    m = Stiefel()
    _, f, x0 = procrustes(m, 9, 4)
    x = one_step(f, x0, m, RandomSubmanifold(2, inner=4, step_size=0.1))
    result = minimize(f, x0, m, RandomSubmanifold(2, inner=4, step_size=0.1), max_iterations=1)
    assert result.evaluations.gradients == 5
    assert 2 < int((x != x0).any(-1).sum()) <= 8


def test_refusals():
    for arguments, message in (
        ({"dim": 1}, "dim: got 1"),
        ({"sampling": "uniform"}, "sampling: unknown 'uniform', expected one of permutation, orthogonal"),
        ({"retraction": "cholesky"}, "retraction: unknown"),
        ({"inner": 0}, "inner: got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            RandomSubmanifold(**arguments)
    with pytest.raises(ValueError, match="RandomSubmanifold turns Stiefel, Grassmann"):
        minimize(lambda x: x.sum(), torch.eye(2), SPD(), "RandomSubmanifold")
    with pytest.raises(ValueError, match="dim: got 4, expected at most the number of rows of x, 3"):
        minimize(lambda x: x.sum(), torch.eye(3), Stiefel(), RandomSubmanifold(4))
