"""Finite sums: the estimators are their formulas, the methods find eigenvalues and means, and leave saddles."""

import itertools
import json
import math

import pytest
import torch

from steepest import SPD, Euclidean, FixedRank, Grassmann, Product, Sphere, Stiefel
from steepest.manifolds.tensors import as_tuple, each
from steepest.solvers import LBFGS, SRG, SVRG, FiniteSum, PerturbedSRG, Stochastic, SumMethod, minimize_sum
from steepest.solvers.finite_sum.svrg import corrected

N = 60
EXAMPLES = [example for _, family in sorted(SumMethod.known.items()) for example in family.examples()]


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


class PCA:
    """-|d_i^H X|^2 for N vectors d_i of dimension 6, whose covariance has eigenvalues about 1, 1/4, 1/9, ..."""

    def __init__(self, p=2, dtype=torch.float64):
        data = randn(N, 6, dtype=torch.promote_types(dtype, torch.float64)) / torch.arange(1, 7)
        self.data, self.manifold = data.to(dtype), Stiefel()
        self.optimum = -float(torch.linalg.eigvalsh(data.mH @ data / N)[-p:].sum())
        self.x0 = torch.linalg.qr(randn(6, p, seed=1, dtype=dtype))[0]

    def __call__(self, x, index):
        return -(self.data[index].conj() @ x).abs().square().sum(-1)


class Mean:
    """Half the squared distances to N SPD matrices."""

    def __init__(self, n=20):
        self.manifold, a = SPD(), randn(n, 3, 3)
        self.points = a @ a.mT / 3 + 0.3 * torch.eye(3)
        self.x0 = torch.eye(3, dtype=torch.float64)

    def __call__(self, x, index):
        return self.manifold.dist(x, self.points[index]).square() / 2


class Targets:
    """Squared distances, in the matrices that points stand for, to many targets: for any manifold."""

    def __init__(self, manifold, shape):
        generator = torch.Generator().manual_seed(0)
        self.manifold = manifold
        draw = {"dtype": torch.float64, "generator": generator}
        self.x0 = manifold.random_point(shape, **draw)
        goals = [as_tuple(manifold.represent(manifold.random_point(shape, **draw))) for _ in range(N)]
        self.goals = [torch.stack(parts) for parts in zip(*goals, strict=True)]

    def __call__(self, x, index):
        parts = zip(as_tuple(self.manifold.represent(x)), self.goals, strict=True)
        return sum((a - b[index]).square().flatten(1).sum(1) for a, b in parts) / 2


PLACES = [
    (Sphere(), (5,)),
    (Stiefel("canonical"), (4, 2)),
    (SPD(), (3, 3)),
    (FixedRank(), ((4, 1), (1, 3))),
    (Product((Grassmann(), Euclidean(1))), ((4, 2), (3,))),
]


def sum_of(target, n=N, **options):
    return FiniteSum(target, n, target.manifold, **options)


def run(target, method, n=N, **options):
    options = {"batch_size": 6, "tolerance": 1e-9} | options
    return minimize_sum(target, n, target.x0, target.manifold, method, **options)


def points(problem, seed=0):
    """The start, and a point not far from it."""
    at = problem.at(problem.term.x0)
    z = at.random(torch.Generator().manual_seed(seed))
    return at, at.move(0.3 * z / z.norm())


# Estimators. ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("manifold", "shape"), PLACES, ids=str)
def test_corrected_gradients_have_the_full_one_for_mean(manifold, shape):
    problem = sum_of(Targets(manifold, shape))
    start, at = points(problem)
    found = torch.stack([corrected(problem, i[None], at, start, start.gradient) for i in torch.arange(N)])
    torch.testing.assert_close(found.mean(0), at.gradient, rtol=0, atol=1e-12)  # rounding of sixty sums
    plain = torch.stack([problem.part(at, i[None]) for i in torch.arange(N)])
    same = torch.stack([corrected(problem, i[None], start, start, start.gradient) for i in torch.arange(N)])
    assert found.var(0).sum() < 0.3 * plain.var(0).sum()  # it is a step of 0.3 away
    torch.testing.assert_close(same, start.gradient.expand_as(same), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("manifold", "shape"), PLACES, ids=str)
@pytest.mark.parametrize("family", [SVRG, SRG])
def test_an_epoch_is_the_formula(family, manifold, shape):
    """The same epoch from the manifold's public methods, on points instead of iterates."""
    target, rate, steps = Targets(manifold, shape), 0.05, 5
    problem = sum_of(target, batch_size=4, seed=3)
    found, _ = family(rate, steps).epoch(problem.at(target.x0), problem, {"iteration": 2, "rate": rate})

    def gradient(x, index):
        leaf = each(lambda t: t.clone().requires_grad_(), x)
        g = torch.autograd.grad(target(leaf, index).mean(), as_tuple(leaf))
        return as_tuple(manifold.pull(x, g if isinstance(x, tuple) else g[0]))

    def packed(h):
        return h if len(h) > 1 else h[0]

    def step(x, v):
        return manifold.retract(x, manifold.push(x, packed([-rate * b for b in v])))

    x, anchor = target.x0, target.x0
    v = full = gradient(x, torch.arange(N))
    last, x = x, step(x, v)
    for index in problem.batches(steps - 1, 2):
        before, old = (anchor, full) if family is SVRG else (last, v)
        lacks = [a - b for a, b in zip(gradient(before, index), old, strict=True)]
        moved = as_tuple(manifold.carry(before, x, packed(tuple(lacks))))
        v = [a - b for a, b in zip(gradient(x, index), moved, strict=True)]
        last, x = x, step(x, tuple(v))
    for a, b in zip(as_tuple(found.x), as_tuple(x), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)  # five steps' rounding


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
def test_chunks_change_nothing_but_memory(dtype):
    target = PCA(dtype=dtype)
    whole, parts = sum_of(target).at(target.x0), sum_of(target, chunk_size=7).at(target.x0)
    assert math.isclose(whole.value, parts.value, rel_tol=1e-14)
    torch.testing.assert_close(whole.gradient, parts.gradient, rtol=1e-13, atol=1e-13)
    leaf = target.x0.clone().requires_grad_()
    (g,) = torch.autograd.grad(target(leaf, torch.arange(N)).mean(), leaf)
    oracle = whole.ravel(target.manifold.pull(target.x0, g))
    torch.testing.assert_close(whole.gradient, oracle, rtol=1e-13, atol=1e-13)


def test_batches():
    target = PCA()
    problem = sum_of(target, batch_size=7, seed=1)
    batches = list(problem.batches(problem.batches_per_pass, 5))
    assert [len(b) for b in batches] == [7] * 9
    assert sorted(torch.cat(batches)[:N].tolist()) == list(range(N))
    assert all(torch.equal(a, b) for a, b in zip(batches, problem.batches(9, 5), strict=True))
    assert not torch.equal(batches[0], next(problem.batches(9, 6)))
    free = sum_of(target, batch_size=7, seed=1, replacement=True)
    counts = torch.cat(list(free.batches(9, 5))).bincount(minlength=N)
    assert counts.max() > 2, "drawn independently, some term comes thrice"


# Optima. --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "dtype"), [(SVRG(0.3), torch.complex128), (SRG(0.3), torch.float64)], ids=lambda m: type(m).__name__
)
def test_principal_components(method, dtype):
    target = PCA(dtype=dtype)
    result = run(target, method)
    assert result.success, str(result)
    assert abs(result.value - target.optimum) < 1e-14  # the gap is quadratic in a gradient of 1e-9
    assert result.evaluations.gradients == result.history[-1].evaluations
    assert result.history[-1].note["passes"] == result.history[-1].evaluations / N


def test_variance_reduction_converges_linearly_where_plain_gradients_stall():
    target = PCA()
    gaps = {}
    for method in (Stochastic(0.3, decay=0.0), Stochastic(0.3, decay=1.0), SVRG(0.3), SRG(0.3)):
        result = run(target, method, epochs=27 if isinstance(method, Stochastic) else 9, tolerance=0.0)
        assert result.history[-1].note["passes"] <= 27
        gaps[method] = [max(r.value - target.optimum, 1e-17) for r in result.history]
    constant, decaying, svrg, srg = gaps.values()
    assert min(constant[18:]) > 1e-4
    assert min(decaying) > 1e-7
    for gap in (svrg, srg):
        assert gap[-1] < 1e-7, gap
        assert all(b < 0.1 * a for a, b in zip(gap, gap[4:], strict=False) if a > 1e-12), f"four epochs, a digit: {gap}"


@pytest.mark.parametrize("family", [SVRG, SRG])
def test_mean_of_positive_matrices(family):
    target = Mean()
    result = run(target, family(0.3), 20, batch_size=4)
    assert result.success
    oracle = target.manifold.mean(target.points)
    torch.testing.assert_close(result.x, oracle, rtol=0, atol=1e-8)  # ten times the gradient's tolerance


@pytest.mark.parametrize(("manifold", "shape"), PLACES[1:4], ids=str)
@pytest.mark.parametrize("method", EXAMPLES, ids=str)
def test_every_method_descends_everywhere(method, manifold, shape):
    target = Targets(manifold, shape)
    result = run(target, method, epochs=3)
    assert result.value < result.history[0].value
    assert result.value == min(r.value for r in result.history) or result.success
    assert manifold.residual(result.x).max() < 1e-10


def test_with_replacement():
    target = PCA()
    assert run(target, SVRG(0.2), replacement=True, tolerance=1e-5).success


# Saddles. -------------------------------------------------------------------------------------------------------------


class Rayleigh:
    """-(d_i^T x)^2 for 64 vectors whose covariance is exactly diag(4, 1, 1/4, ...), from the second eigenvector: a
    strict saddle. All numbers are small multiples of powers of two, so that its gradient is zero without rounding, and
    the terms' own ones are not."""

    def __init__(self):
        signs = torch.ones(1, 1, dtype=torch.float64)
        for _ in range(6):
            signs = torch.cat([torch.cat([signs, signs], 1), torch.cat([signs, -signs], 1)])
        self.data, self.manifold = signs[:, :6] * 2.0 ** -torch.arange(-1, 5), Sphere()
        self.x0, self.saddle, self.optimum = torch.eye(6, dtype=torch.float64)[1], -1.0, -4.0

    def __call__(self, x, index):
        return -(self.data[index] @ x).square()


def test_a_planted_saddle_is_left_by_the_perturbed_method_alone():
    target = Rayleigh()
    for family in (SVRG, SRG):
        stayed = run(target, family(0.05), 64, batch_size=8)
        assert (stayed.value, stayed.gradient_norm) == (target.saddle, 0.0)
        to, _ = family(0.05, steps=50).epoch(*_start(target))
        assert torch.equal(to.x, target.x0), "the corrected gradients are zero as well"
    assert sum_of(target, 64).part(_start(target)[0], torch.tensor([5])).norm() > 0.1
    values = []
    for seed in (0, 1, 1):
        result = run(target, PerturbedSRG(0.05), 64, batch_size=8, seed=seed)
        assert result.success, str(result)
        assert "perturbation" in result.reason
        assert result.value - target.optimum < 1e-8  # the square of a gradient of 1e-4, over a gap of about one
        assert result.history[1].note["escape"] == 1
        values.append(result.value)
    assert values[1] == values[2] != values[0], "deterministic by its seed"


def _start(target):
    problem = sum_of(target, 64, batch_size=8)
    return problem.at(target.x0), problem, {"iteration": 0, "rate": 0.05}


def test_an_escape_is_cut_at_its_distance():
    at, problem, state = _start(Rayleigh())
    method = PerturbedSRG(0.05, distance=0.05)
    z = method._escape(at, problem, state, method._ball(at, problem, 0))
    assert math.isclose(float(z.norm()), 0.05, rel_tol=1e-12)
    ball = torch.stack([method._ball(at, problem, k).norm() for k in range(200)]) / method.radius
    assert ball.max() <= 1
    assert abs(ball.pow(at.size).mean() - 0.5) < 0.1  # the size's power is uniform: standard error 0.02


def test_steps_too_long_to_descend_are_no_proof_of_a_minimum():
    """Along one of its directions the saddle's curvature is 20, so that steps of 1/2 go up; along another it is -1."""
    values = torch.tensor([10.0, 0.0, -0.5], dtype=torch.float64)
    saddle = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)
    term = lambda x, index: (values * x * x).sum().expand(index.shape)  # noqa: E731
    result = minimize_sum(term, 4, saddle, Sphere(), PerturbedSRG(0.5, steps=50), tolerance=1e-9)
    assert result.success
    assert abs(result.value + 0.5) < 1e-8  # the square of a gradient of 1e-4
    assert result.history[-1].note["rate"] < 0.1


def test_a_minimum_is_not_left():
    target = PCA()
    exact = run(target, SRG(0.3), tolerance=1e-5)
    target.x0 = exact.x
    result = run(target, PerturbedSRG(0.3))
    assert result.success
    assert result.iterations == 0
    assert torch.equal(result.x, exact.x)


# Options. -------------------------------------------------------------------------------------------------------------


def test_adaptation_saves_gradients():
    target = PCA()
    full, few = (run(target, SVRG(0.1, adaptation=a), epochs=8, tolerance=0.0) for a in (None, 2.0))
    costs = [b.evaluations - a.evaluations for a, b in itertools.pairwise(few.history)]
    assert costs[0] == 168, "all terms, then two mini-batches of six for each of nine steps"
    assert costs[1] < costs[-1], f"with shorter gradients there are more of them: {costs}"
    assert few.evaluations.gradients < full.evaluations.gradients


def test_longest_and_shrink():
    target = PCA()
    problem = sum_of(target, batch_size=6)
    at = problem.at(target.x0)
    to, _ = SRG(0.3, steps=1, longest=0.01).epoch(at, problem, {"iteration": 0, "rate": 0.3})
    assert math.isclose(float(torch.linalg.norm(to.x - at.x)), 0.01, rel_tol=1e-3)  # a chord of so short an arc
    before = problem.terms
    SRG(0.3, steps=500, shrink=0.5).epoch(at, problem, {"iteration": 0, "rate": 0.3})
    assert problem.terms - before < 2000, "of 6060 without shrinking"


def test_too_large_a_rate_is_halved():
    target = Mean()
    result = run(target, SVRG(50.0), 20, batch_size=4, epochs=60, tolerance=1e-6)
    assert result.success, str(result)
    assert result.history[-1].note["rate"] < 5


def test_what_is_not_finite_is_not_accepted():
    target = PCA()
    start = float(target(target.x0, torch.arange(N)).mean())

    def partial(x, index):
        value = target(x, index)
        return torch.where(value.mean() < start - 0.2, torch.nan, value)

    for method in EXAMPLES:
        result = minimize_sum(partial, N, target.x0, target.manifold, method, batch_size=6, epochs=4)
        assert math.isfinite(result.value)
        assert result.x.isfinite().all()


def test_single_precision():
    target = PCA(dtype=torch.float32)
    result = run(target, SVRG(0.3), tolerance=1e-4)
    assert result.success
    assert result.x.dtype == torch.float32
    assert abs(result.value - target.optimum) < 1e-5


def test_nothing_of_torchs_own_generator_is_used():
    state = torch.get_rng_state()
    for method in EXAMPLES:
        run(PCA(), method, epochs=2)
    assert torch.equal(state, torch.get_rng_state())


# Runs. ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", EXAMPLES, ids=str)
def test_resumes_bit_for_bit(method, tmp_path):
    for i, target in enumerate((PCA(dtype=torch.complex128), Targets(*PLACES[3]))):
        options = {"tolerance": 0.0, "seed": 2}
        whole = run(target, method, epochs=4, **options)
        run(target, method, epochs=2, checkpoint=tmp_path / f"{i}.pt", **options)
        resumed = run(target, method, epochs=4, checkpoint=tmp_path / f"{i}.pt", **options)
        for a, b in zip(whole.history, resumed.history, strict=True):
            assert (a.iteration, a.value, a.evaluations, a.note) == (b.iteration, b.value, b.evaluations, b.note)
        assert all(torch.equal(a, b) for a, b in zip(as_tuple(whole.x), as_tuple(resumed.x), strict=True))
        assert whole.evaluations == resumed.evaluations


@pytest.mark.parametrize("method", EXAMPLES, ids=str)
def test_is_a_value(method):
    assert SumMethod.from_spec(json.loads(json.dumps(method.to_spec()))) == method
    assert hash(method) == hash(type(method)(**vars(method)))


def test_limits_and_callback(capsys):
    target = PCA()
    assert run(target, "SVRG", epochs=3, tolerance=0.0, verbose=1).iterations == 3
    assert "epochs = 3 reached" in capsys.readouterr().out
    ended = run(target, "SRG", callback=lambda record, x: record.iteration == 2)
    assert (ended.iterations, ended.success) == (2, False)
    assert run(target, "SVRG", tolerance=0.0, max_seconds=0.0).iterations == 0


def test_refusals(tmp_path):
    target = PCA()
    with pytest.raises(ValueError, match=r"batch_size: got 61, expected a finite number in .1, 60"):
        run(target, "SVRG", batch_size=61)
    with pytest.raises(TypeError, match=r"term: got \(\) torch.float64, expected the real values of 60 terms"):
        minimize_sum(lambda x, i: target(x, i).sum(), N, target.x0, Stiefel())
    with pytest.raises(TypeError, match=r"method: got LBFGS\(.*SVRG"):
        run(target, LBFGS())
    with pytest.raises(ValueError, match="expected one of PerturbedSRG, SRG, SVRG, Stochastic"):
        run(target, "Adam")
    with pytest.raises(ValueError, match=r"term: the mean of its values at x0 is inf"):
        minimize_sum(lambda x, i: target(x, i) / 0, N, target.x0, Stiefel())
    with pytest.raises(ValueError, match="rate"):
        SVRG(rate=0.0)
    run(target, "SVRG", epochs=1, checkpoint=tmp_path / "run.pt")
    with pytest.raises(
        ValueError, match=r"its n, batch_size and replacement are \[60, 6, 0\], this run's \[60, 5, 0\]"
    ):
        run(target, "SVRG", epochs=2, batch_size=5, checkpoint=tmp_path / "run.pt")
