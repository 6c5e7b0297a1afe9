"""Several objectives: aggregators are their formulas and programs, and descent ends where nothing more can go down."""

import itertools
import json
import math

import pytest
import torch
from scipy.optimize import minimize as scipy_minimize
from scipy.optimize import nnls

from steepest import SPD, Euclidean, Grassmann, Product, Sphere
from steepest.manifolds.tensors import as_tuple
from steepest.solvers import (
    IMTLG,
    MGDA,
    Aggregator,
    AlignedMTL,
    DualProj,
    Mean,
    NashMTL,
    PCGrad,
    Sum,
    UPGrad,
    Wolfe,
    minimize_several,
)
from steepest.solvers.several.cone import least_norm, nonnegative

EXAMPLES = [example for _, family in sorted(Aggregator.known.items()) for example in family.examples()]


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def conflicting(seed, m=3, n=5):
    """Gradients that mostly point against each other, and of lengths a hundred apart."""
    j = randn(m, n, seed=seed)
    return (j - 0.9 * j.mean(0) * (seed % 3)) * 10.0 ** torch.linspace(-1, 1, m).unsqueeze(-1)


def projected(u, j):
    """The projection of the vector u onto {d: J d >= 0}, by scipy: u - J^T z' ... = u + J^T z, z >= 0 of least norm."""
    z, _ = nnls(j.mT.numpy(), -u.numpy())
    return u + j.mT @ torch.tensor(z)


def shortest(j):
    """The shortest vector of the convex hull, by scipy's general method."""
    g = (j @ j.mT).numpy() / float(j.square().sum())
    m = len(g)
    found = scipy_minimize(
        lambda w: w @ g @ w,
        [1 / m] * m,
        jac=lambda w: 2 * g @ w,
        bounds=[(0, 1)] * m,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1, "jac": lambda w: [1.0] * m},
        method="SLSQP",
        options={"ftol": 1e-15, "maxiter": 500},
    )
    return torch.tensor(found.x) @ j


SHAPES = [(2, 4), (3, 5), (5, 3), (8, 20), (12, 4)]


@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_projections_onto_the_dual_cone(m, n):
    """UPGrad and DualProj against scipy's projections, with more gradients than dimensions among them."""
    for seed in range(8):
        j = conflicting(seed, m, n)
        scale = float(j.norm())
        oracle = torch.stack([projected(g, j) for g in j]).mean(0)
        torch.testing.assert_close(UPGrad()(j), oracle, rtol=0, atol=1e-10 * scale)  # both in float64
        torch.testing.assert_close(DualProj()(j), projected(j.mean(0), j), rtol=0, atol=1e-10 * scale)
        assert (j @ UPGrad()(j) >= -1e-10 * scale**2).all(), "it conflicts with a gradient"
        p = torch.rand(m, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        oracle = torch.stack([q * projected(g, j) for q, g in zip(p, j, strict=True)]).sum(0)
        torch.testing.assert_close(UPGrad(tuple(p.tolist()))(j), oracle, rtol=0, atol=1e-10 * scale)


@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_the_shortest_combination(m, n):
    for seed in range(10):
        j = conflicting(seed, m, n)
        d = MGDA()(j)
        assert (j @ d >= (1 - 1e-9) * (d @ d) - 1e-12 * j.square().sum()).all(), "the condition of its optimality"
        gap = shortest(j).norm() - d.norm()
        assert gap > -1e-6 * j.norm(), "a shorter one exists"
    two = randn(2, 6, seed=3)
    a, b = two
    t = ((b - a) @ b / (a - b).square().sum()).clamp(0, 1)  # Desideri's formula for two
    torch.testing.assert_close(MGDA()(two), t * a + (1 - t) * b)


def test_programs_with_repeated_and_missing_gradients():
    j = randn(3, 4)
    for broken in (torch.cat([j, j, -j]), torch.cat([j, 0 * j]), torch.zeros(3, 4).double(), 1e-150 * j, 1e150 * j):
        g = broken @ broken.mT
        w = least_norm(g)
        assert (w >= 0).all()
        assert math.isclose(float(w.sum()), 1, rel_tol=1e-12)
        v = UPGrad()(broken)
        assert v.isfinite().all()
        assert (broken @ v >= -1e-9 * broken.square().sum()).all()
    assert MGDA()(torch.cat([j, -j])).norm() < 1e-12
    assert UPGrad()(torch.cat([j, -j])).norm() < 1e-10, "no direction lowers a function and its negative"


def test_nonnegative_program_satisfies_its_conditions():
    """z >= 0, G z + q >= 0, and one of the two zero: fifty programs at once, some singular."""
    a = randn(50, 7, 9)
    a[::3, 4] = a[::3, 2] - a[::3, 1]
    g = a @ a.mT
    q = (a @ randn(50, 9, 1, seed=1)).squeeze(-1)
    z = nonnegative(g, q)
    slope = (g @ z.unsqueeze(-1)).squeeze(-1) + q
    assert (z >= 0).all()
    assert slope.min() > -1e-10
    assert (z * slope).abs().max() < 1e-10
    alone = torch.stack([nonnegative(*each) for each in zip(g, q, strict=True)])
    torch.testing.assert_close(z[1::3], alone[1::3], rtol=1e-12, atol=1e-12)


def test_closed_forms():
    j = conflicting(1)
    g = j @ j.mT
    torch.testing.assert_close(Mean()(j), j.mean(0))
    torch.testing.assert_close(Sum()(j), j.sum(0))
    torch.testing.assert_close(Mean((0.2, 0.5, 0.3))(j), torch.tensor([0.2, 0.5, 0.3]).double() @ j)
    d = IMTLG()(j)
    projections = j @ d / j.norm(dim=1)
    torch.testing.assert_close(projections, projections[:1].expand(3))
    assert math.isclose(float(IMTLG().weights(g).sum()), 1, rel_tol=1e-12)
    u, s, v = torch.linalg.svd(j, full_matrices=False)
    torch.testing.assert_close(AlignedMTL()(j), s[-1] * (u @ v).mean(0))  # the nearest orthogonal rows, of one length
    w = NashMTL().weights(g)
    torch.testing.assert_close(g @ w, 1 / w, rtol=1e-9, atol=0)
    assert math.isclose(float(NashMTL()(j).norm()), 3**0.5, rel_tol=1e-9)


def test_gradient_surgery():
    """PCGrad by hand, on vectors: for two gradients the order does not matter, for three it is one of the orders."""
    a, b = torch.tensor([[2.0, 0.0], [-1.0, 1.0]]).double()
    pair = (a - (a @ b) / (b @ b) * b) + (b - (a @ b) / (a @ a) * a)
    torch.testing.assert_close(PCGrad()(torch.stack([a, b])), pair)
    j = conflicting(1, 3, 3)

    def surgery(i, order):
        g = j[i]
        for k in order:
            g = g - (g @ j[k]).clamp_max(0) / (j[k] @ j[k]) * j[k]
        return g

    others = [[k for k in range(3) if k != i] for i in range(3)]
    orders = list(itertools.product(*[list(itertools.permutations(o)) for o in others]))
    sums = torch.stack([sum(surgery(i, o) for i, o in enumerate(order)) for order in orders])
    seen = set()
    for seed in range(30):
        found = (sums - PCGrad()(j, seed=seed)).norm(dim=1)
        assert found.min() < 1e-10
        seen.add(int(found.argmin()))
    assert len(seen) > 2, "the order is drawn anew"
    assert torch.equal(PCGrad()(j, seed=4), PCGrad()(j, seed=4))


@pytest.mark.parametrize("aggregator", EXAMPLES, ids=str)
def test_every_aggregator(aggregator):
    """Batches, precisions, what is not finite, JSON."""
    j = torch.stack([conflicting(s) for s in range(6)]).reshape(2, 3, 3, 5)
    alone = torch.stack([torch.stack([aggregator(k) for k in row]) for row in j])
    torch.testing.assert_close(aggregator(j), alone, rtol=1e-10, atol=1e-10)
    single = aggregator(j.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), aggregator(j.float().double()), rtol=1e-4, atol=1e-4)
    j[0, 1, 2, 3] = torch.nan
    found = aggregator(j)
    assert found[0, 1].isnan().all()
    assert found[1].isfinite().all()
    assert found[0, 0].isfinite().all()
    assert aggregator(torch.zeros(3, 4)).equal(torch.zeros(4))
    assert Aggregator.from_spec(json.loads(json.dumps(aggregator.to_spec()))) == aggregator
    with pytest.raises(ValueError, match="jacobian: got"):
        aggregator(torch.zeros(3))


def test_a_preference_needs_a_number_for_each():
    with pytest.raises(ValueError, match="preference: got 2 numbers, expected one for each of 3"):
        UPGrad((0.5, 0.5))(randn(3, 4))
    with pytest.raises(ValueError, match="at least zero"):
        Mean((0.5, -0.5))


# Descent. -------------------------------------------------------------------------------------------------------------


class Distances:
    """Half the squared distances to m points of a manifold."""

    def __init__(self, manifold, shape, m=3):
        draw = {"dtype": torch.float64, "generator": torch.Generator().manual_seed(0)}
        self.manifold = manifold
        self.x0, *self.goals = [manifold.random_point(shape, **draw) for _ in range(m + 1)]

    def __call__(self, x):
        pairs = [
            zip(as_tuple(self.manifold.represent(x)), as_tuple(self.manifold.represent(g)), strict=True)
            for g in self.goals
        ]
        return torch.stack([sum((a - b).square().sum() for a, b in parts) / 2 for parts in pairs])


PLACES = [
    (Euclidean(1), (4,)),
    (Sphere(), (5,)),
    (Grassmann(), (5, 2)),
    (SPD(), (2, 2)),
    (Product((Sphere(), Euclidean(1))), ((4,), (2,))),
]


ENDS = [(UPGrad(), *place) for place in PLACES] + [(a, *PLACES[2]) for a in (MGDA(), NashMTL(), PCGrad(), Mean())]


@pytest.mark.parametrize(("aggregator", "manifold", "shape"), ENDS, ids=str)
def test_ends_at_pareto_points(aggregator, manifold, shape):
    target = Distances(manifold, shape)
    result = minimize_several(target, target.x0, manifold, aggregator, tolerance=1e-5)
    assert result.success, str(result)
    for a, b in itertools.pairwise(result.history):
        slack = 1e-12  # rounding of values about one
        assert all(b.note[f"f{i}"] <= a.note[f"f{i}"] + slack for i in range(3)), "an objective has gone up"
    leaf = tuple(t.clone().requires_grad_() for t in as_tuple(result.x))
    values = target(leaf if isinstance(result.x, tuple) else leaf[0])
    assert values.tolist() == pytest.approx(result.values, rel=1e-12)
    g = torch.autograd.grad(values @ torch.tensor(result.weights, dtype=torch.float64), leaf)
    h = as_tuple(manifold.pull(result.x, g if isinstance(result.x, tuple) else g[0]))
    assert sum(float(b.square().sum()) for b in h) ** 0.5 <= 1.001e-5, "the weights prove it"


def test_in_flat_space_the_pareto_set_is_the_hull():
    """Distances to three points: a point is Pareto optimal where it lies in their triangle, with the weights for its
    barycentric coordinates."""
    target = Distances(Euclidean(1), (4,))
    result = minimize_several(target, 5 * target.x0, aggregator="UPGrad")
    hull = torch.stack(target.goals)
    torch.testing.assert_close(torch.tensor(result.weights, dtype=torch.float64) @ hull, result.x, rtol=0, atol=1e-5)
    assert min(result.weights) >= 0


def test_objectives_in_agreement_have_one_minimum():
    a = torch.diag(torch.arange(1.0, 6.0)).double()
    x0 = torch.full((5,), 5**-0.5).double()
    result = minimize_several([lambda x: x @ a @ x, lambda x: x @ a @ a @ x], x0, Sphere(), tolerance=1e-8)
    assert result.success
    assert result.values == pytest.approx([1.0, 1.0], abs=1e-12)


@pytest.mark.parametrize("aggregator", [UPGrad(), PCGrad(seed=3)], ids=str)
def test_resumes_bit_for_bit(aggregator, tmp_path):
    target = Distances(Grassmann(), (5, 2))
    run = {"aggregator": aggregator, "tolerance": 0.0, "seed": 1}
    whole = minimize_several(target, target.x0, target.manifold, **run, max_iterations=9)
    minimize_several(target, target.x0, target.manifold, **run, max_iterations=4, checkpoint=tmp_path / "run.pt")
    resumed = minimize_several(
        target, target.x0, target.manifold, **run, max_iterations=9, checkpoint=tmp_path / "run.pt"
    )
    assert torch.equal(whole.x, resumed.x)
    assert [r[:3] for r in whole.history] == [r[:3] for r in resumed.history]
    assert whole.evaluations == resumed.evaluations


def test_what_is_not_finite_is_not_accepted():
    target = Distances(Sphere(), (5,))
    start = target(target.x0)

    def partial(x):
        values = target(x)
        return torch.where(values < 0.9 * start, torch.nan, values)

    result = minimize_several(partial, target.x0, Sphere(), max_iterations=20)
    assert all(math.isfinite(v) for v in result.values)
    assert result.value < float(start.mean())


def test_limits_precision_and_refusals(capsys):
    target = Distances(Sphere(), (5,))
    short = minimize_several(target, target.x0, Sphere(), max_iterations=2, tolerance=0.0, verbose=1)
    assert (short.iterations, short.success) == (2, False)
    assert "max_iterations = 2" in capsys.readouterr().out
    ended = minimize_several(target, target.x0, Sphere(), callback=lambda r, x: r.iteration == 1)
    assert ended.iterations == 1
    target.goals = [g.float() for g in target.goals]
    single = minimize_several(target, target.x0.float(), Sphere(), tolerance=1e-3)
    assert single.success
    assert single.x.dtype == torch.float32
    with pytest.raises(TypeError, match=r"functions: got \(\) torch.float64, expected the real values"):
        minimize_several(lambda x: x.sum(), torch.zeros(2).double())
    with pytest.raises(ValueError, match="expected finite numbers"):
        minimize_several([lambda x: x.log().sum(), lambda x: x.sum()], torch.zeros(2))
    with pytest.raises(TypeError, match=r"line_search: got Wolfe, expected Armijo"):
        minimize_several(target, target.x0, Sphere(), line_search=Wolfe())
    with pytest.raises(ValueError, match="UPGrad"):
        minimize_several(target, target.x0, Sphere(), "CAGrad")
