"""Min-max problems: games whose iterates are known in closed form, and the Hamiltonian's gradient by other ways."""

import dataclasses
import importlib
import json
import math
import pathlib
import sys

import pytest
import torch

from steepest import SPD, DoublyStochastic, Euclidean, FixedRank, Grassmann, Product, Sphere, Stiefel
from steepest.manifolds.tensors import as_tuple, each
from steepest.solvers import (
    ConjugateGradients,
    Consensus,
    DescentAscent,
    ExtraGradient,
    Hamiltonian,
    Saddle,
    SteepestDescent,
    StochasticHamiltonian,
    minmax,
)
from steepest.solvers.minmax import MinMaxMethod

F64 = torch.float64
METHODS = [m for _, family in sorted(MinMaxMethod.known.items()) for m in family.examples()]


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


# The bilinear game x^T A y. -------------------------------------------------------------------------------------------

A = torch.tensor([[0.9, 0.2], [-0.3, 0.6]], dtype=F64)
START = torch.tensor([1.0, -2.0], dtype=F64), torch.tensor([0.5, 1.5], dtype=F64)
FIELD = torch.cat([torch.cat([torch.zeros(2, 2), -A], 1), torch.cat([A.mT, torch.zeros(2, 2)], 1)])
"""(x, y) -> (-A y, A^T x)."""
EYE = torch.eye(4, dtype=F64)


@pytest.mark.parametrize(
    ("method", "step"),
    [
        (DescentAscent(0.3), EYE + 0.3 * FIELD),
        (DescentAscent(0.3, 2.0), EYE + 0.3 * torch.diag(torch.tensor([1.0, 1.0, 2.0, 2.0]).double()) @ FIELD),
        (ExtraGradient(0.3), EYE + 0.3 * FIELD @ (EYE + 0.3 * FIELD)),
        (ExtraGradient(0.3, "carry"), EYE + 0.3 * FIELD @ (EYE + 0.3 * FIELD)),
        (Consensus(0.3, 0.0), EYE - 0.3 * FIELD.mT @ FIELD),
        (Consensus(0.3, 0.7), EYE - 0.3 * FIELD.mT @ FIELD + 0.21 * FIELD),
    ],
    ids=lambda v: str(v) if isinstance(v, MinMaxMethod) else "",
)
def test_iterates_of_the_bilinear_game(method, step):
    """Powers of a matrix that is written down here: outwards for descent and ascent, inwards for the others."""
    seen = []
    options = {"max_iterations": 25, "tolerance": 0, "callback": lambda r, x, y: seen.append(torch.cat([x, y]))}
    minmax(lambda x, y: x @ A @ y, *START, method=method, **options)
    z = torch.cat(START)
    for found in seen:
        assert torch.allclose(found, z, rtol=1e-12, atol=1e-14)  # rounding of 25 steps
        z = step @ z
    assert len(seen) == 26
    grows = seen[-1].norm() > seen[0].norm()
    assert grows == isinstance(method, DescentAscent)


@pytest.mark.parametrize("inner", ["ConjugateGradients", "SteepestDescent", "LBFGS"])
def test_hamiltonian_solves_the_bilinear_game(inner):
    result = minmax(lambda x, y: x @ A @ y, *START, method=Hamiltonian(inner), tolerance=1e-10, max_iterations=50)
    assert result.success
    assert torch.cat([result.x, result.y]).norm() < 1e-10 / 0.5  # the smallest singular value of A is 0.6
    assert result.evaluations.values == len(result.history)


def test_minimum_is_no_saddle():
    """x^2 + y^2 has its stationary point where y is low: the Hamiltonian goes there, and consensus with much weight on
    ascent leaves it, as y <- (1 + 2 t (weight - 2)) y says."""
    one = torch.ones(1, dtype=F64)

    def bowl(x, y):
        return (x**2 + y**2).sum()

    assert minmax(bowl, one, one).y.abs() < 1e-6
    ended = []
    options = {"max_iterations": 30, "callback": lambda record, x, y: ended.append((x.item(), y.item()))}
    minmax(bowl, one, one, method=Consensus(0.05, 3.0), **options)
    assert math.isclose(ended[-1][1], 1.1**30, rel_tol=1e-10)
    assert math.isclose(ended[-1][0], 0.5**30, rel_tol=1e-6, abs_tol=1e-12)


# The Hamiltonian. -----------------------------------------------------------------------------------------------------

PAIRS = [
    (SPD(), (3, 3), Stiefel("canonical"), (4, 2)),
    (SPD("bures-wasserstein"), (2, 2), Sphere(), (4,)),
    (DoublyStochastic(), (3, 4), Stiefel(), (4, 2)),
    (Product((Stiefel(), Euclidean(1))), ((3, 2), (2,)), SPD("log-euclidean"), (3, 3)),
]


class Random:
    """A smooth function of all entries of x and y, coupled."""

    def __init__(self, x, y):
        sizes = [sum(t.numel() for t in as_tuple(p)) for p in (x, y)]
        self.weights = randn(*sizes, seed=3)

    def __call__(self, x, y):
        a, b = (torch.cat([t.flatten() for t in as_tuple(p)]) for p in (x, y))
        return a.sin() @ self.weights @ b.cos() + (a**3).sum() - (b**2).sum()


def place(mx, sx, my, sy):
    g = torch.Generator().manual_seed(1)
    return mx.random_point(sx, dtype=F64, generator=g), my.random_point(sy, dtype=F64, generator=g)


@pytest.mark.parametrize(("mx", "sx", "my", "sy"), PAIRS, ids=lambda v: str(v))
def test_gradient_of_the_hamiltonian(mx, sx, my, sy):
    """Autograd through the frame, the Riemannian Hessian times the gradient, and differences along a curve agree."""
    x, y = place(mx, sx, my, sy)
    saddle = Saddle(Random(x, y), mx, my)
    saddle.problem.curvature = True
    f, h = (p.at((*as_tuple(x), *as_tuple(y))) for p in (saddle.problem, saddle.hamiltonian))
    assert math.isclose(h.value, f.norm**2 / 2, rel_tol=1e-13)
    assert torch.allclose(h.gradient, f.product(f.gradient), rtol=1e-9, atol=1e-9 * h.norm)
    z = h.random(torch.Generator().manual_seed(2))
    t = 1e-5
    slope = (h.move(t * z).value - h.move(-t * z).value) / (2 * t)
    assert math.isclose(slope, float(h.gradient @ z), rel_tol=1e-6, abs_tol=1e-7 * h.norm)  # t^2 |H'''|, eps H / t


def test_hamiltonian_on_quotients():
    """On FixedRank and Grassmann the gradient is horizontal, and so is the Hamiltonian's."""
    g = torch.Generator().manual_seed(1)
    x = FixedRank().random_point(((4, 2), (2, 3)), dtype=F64, generator=g)
    y = Grassmann().random_point((4, 2), dtype=F64, generator=g)
    c, d = randn(4, 4), randn(4, 3, seed=1)
    saddle = Saddle(
        lambda x, y: (y.mT @ (x[0] @ x[1] - d)).square().sum() + (y.mT @ c @ y).trace(), FixedRank(), Grassmann()
    )
    saddle.problem.curvature = True
    f, h = (p.at((*x, y)) for p in (saddle.problem, saddle.hamiltonian))
    assert torch.allclose(h.gradient, f.product(f.gradient), rtol=1e-9, atol=1e-9 * h.norm)
    assert saddle.field(f).norm() == f.norm
    assert [len(p) for p in saddle.parts(f, f.gradient)] == [4 * 2 + 2 * 3, 4 * 2]


# Games on manifolds. --------------------------------------------------------------------------------------------------


def logdets(c):
    """Saddle where both determinants are one, for every c; geodesically convex in x and concave in y for the first."""
    return lambda x, y: (x.logdet() ** 2 + c * x.logdet() * y.logdet() - y.logdet() ** 2) / 4


def needs(method):
    return {"terms": 5} if isinstance(method, StochasticHamiltonian) else {}


def target(method):
    """The same game for methods that want a sum: with noise in each term that vanishes in the mean."""
    whole = logdets(1.0)
    if not needs(method):
        return whole
    noise = torch.tensor([-0.2, -0.1, 0.0, 0.1, 0.2], dtype=F64)
    return lambda x, y, index: whole(x, y) + noise.to(x)[index] * x.logdet() * y.logdet()


@pytest.mark.parametrize("method", METHODS, ids=str)
class TestMethod:
    """What every method must do."""

    x, y = place(SPD(), (3, 3), SPD(), (2, 3, 3))

    def run(self, method, tolerance=1e-8, iterations=400, dtype=F64, **options):
        fun = target(method)

        def batched(x, y, *index):
            return fun(x, y[0], *index) + fun(x, y[1], *index)

        options = {"tolerance": tolerance, "max_iterations": iterations, **needs(method), **options}
        return minmax(batched, self.x.to(dtype), self.y.to(dtype), SPD(), SPD(), method, **options)

    def test_finds_the_saddle(self, method):
        result = self.run(method)
        assert result.success, str(result)
        assert abs(result.x.logdet()) < 1e-7  # 1e-8 over the Hessian's smallest eigenvalue, which is above 1 / 4
        assert result.y.logdet().abs().max() < 1e-7
        norms = result.gradient_norm_x, result.gradient_norm_y
        assert math.isclose(math.hypot(*norms), result.gradient_norm, rel_tol=1e-9)
        assert SPD().residual(result.y).max() < 1e-12
        assert result.gradient_norm <= min(r.gradient_norm for r in result.history) * (1 + 1e-9)

    def test_resumes(self, method, tmp_path):
        """To the very numbers, and nothing else has changed."""
        random, before = torch.get_rng_state(), self.x.clone()
        whole = self.run(method, 0.0, 7)
        self.run(method, 0.0, 3, checkpoint=tmp_path / "run.pt")
        resumed = self.run(method, 0.0, 7, checkpoint=tmp_path / "run.pt")
        assert torch.equal(whole.x, resumed.x)
        assert torch.equal(whole.y, resumed.y)
        if method.every == 1:
            assert [r[:3] for r in whole.history] == [r[:3] for r in resumed.history]
            assert [r.iteration for r in whole.history] == list(range(8))
        assert torch.equal(random, torch.get_rng_state())
        assert torch.equal(before, self.x)

    def test_single_precision(self, method):
        result = self.run(method, 1e-3, dtype=torch.float32)
        assert result.success
        assert result.x.dtype == torch.float32

    def test_limits(self, method):
        assert self.run(method, 0.0, 40, max_evaluations=1).iterations <= method.every
        assert self.run(method, 0.0, 40, callback=lambda r, x, y: True).reason == "the callback ended it"

    def test_spec(self, method):
        again = MinMaxMethod.from_spec(json.loads(json.dumps(method.to_spec())))
        assert again == method
        with pytest.raises(dataclasses.FrozenInstanceError):
            method.step_size = 1.0


def test_not_defined_everywhere():
    """A long step leads to where the logarithm ends; the run says so, and keeps what it had."""
    x = torch.full((1,), 0.1, dtype=F64)
    result = minmax(lambda x, y: (x.log() * y).sum(), x, 10 * x, method=DescentAscent(1.0), max_iterations=9)
    assert "not finite" in result.reason
    assert math.isfinite(result.value)
    assert result.x > 0


def test_too_long_steps():
    """On a manifold they end in a factorisation that fails, or in numbers that are not finite; the best is kept."""
    x, y = place(SPD(), (3, 3), SPD(), (3, 3))
    for step in (1e2, 1e4):
        result = minmax(logdets(1.0), x, y, SPD(), SPD(), ExtraGradient(step), max_iterations=20)
        assert not result.success
        assert "shorter steps might converge" in result.reason
        assert math.isfinite(result.gradient_norm)
        assert result.gradient_norm <= result.history[0].gradient_norm


# Sums. ----------------------------------------------------------------------------------------------------------------


class Chosen(Saddle):
    """Batches of one given term."""

    def sample(self, at, size, *numbers):
        term = self.indices[numbers[-1]]
        part = Saddle(lambda x, y: self.fun(x, y, torch.tensor([term])).sum(), self.manifold_x, self.manifold_y)
        part.problem.curvature = True
        return part.problem.at(at.x)


def test_stochastic_gradient_has_no_bias():
    """The mean over all pairs of terms is the gradient of the Hamiltonian; over pairs of equal terms it is another."""
    a, weight = randn(3, 3, 3), 0.4

    def fun(x, y, index):
        return (x @ a[index] @ y.unsqueeze(-1)).squeeze(-1) + (index + 1) * (x[0] ** 3 - y[1] ** 2)

    x, y = place(Sphere(), (3,), Sphere(), (3,))
    saddle = Chosen(fun, Sphere(), Sphere(), terms=3)
    at = saddle.problem.at((x, y))
    method = StochasticHamiltonian(batch=1, weight=weight)

    def direction(i, j):
        saddle.indices = i, j
        return method.direction(saddle, at, 0)

    exact = weight * saddle.field(at) - saddle.hamiltonian.at((x, y)).gradient
    mean = sum(direction(i, j) for i in range(3) for j in range(3)) / 9
    assert torch.allclose(mean, exact, rtol=1e-12, atol=1e-13)
    biased = sum(direction(i, i) for i in range(3)) / 3
    assert (biased - exact).norm() > 0.1 * exact.norm()


def test_batches_are_independent():
    """Two in one iteration, and the same number's in two iterations, differ; the same again is the same."""
    drawn = []

    def fun(x, y, index):
        drawn.append(index)
        return x[0] * y[0] * torch.ones(len(index), dtype=x.dtype)

    one = torch.ones(1, dtype=F64)
    saddle = Saddle(fun, Euclidean(1), Euclidean(1), terms=10**6)
    at = saddle.problem.at((one, one))
    for numbers in ((0, 0), (0, 1), (1, 0), (0, 0)):
        saddle.sample(at, 4, *numbers).value  # noqa: B018
    assert drawn[0].tolist() == drawn[3].tolist()
    assert len({tuple(i.tolist()) for i in drawn[:3]}) == 3


# Faults. --------------------------------------------------------------------------------------------------------------


def test_faults():
    x = torch.ones(2, dtype=F64)

    def f(x, y):
        return x @ y

    with pytest.raises(ValueError, match=r"y0 is not a point of Sphere"):
        minmax(f, x, x, None, Sphere())
    with pytest.raises(ValueError, match=r"y0: its batch dimensions are \(3,\), those of x0 \(2,\)"):
        minmax(f, randn(2, 3, 2), randn(3, 3, 2), Euclidean(2), Euclidean(2))
    with pytest.raises(ValueError, match="one precision"):
        minmax(f, x, x.float())
    with pytest.raises(TypeError, match="fun: got"):
        minmax(lambda x, y: x * y, x, x)
    with pytest.raises(ValueError, match="expected finite numbers"):
        minmax(lambda x, y: (x @ y).log() * torch.nan, x, x)
    with pytest.raises(ValueError, match=r"method: unknown 'Newton', expected one of .*Hamiltonian"):
        minmax(f, x, x, method="Newton")
    with pytest.raises(TypeError, match=r"y0: got ndarray.*torch\.as_tensor\(y0"):
        minmax(f, x, x.numpy())
    with pytest.raises(TypeError, match="method: got SteepestDescent"):
        minmax(f, x, x, method=SteepestDescent())
    with pytest.raises(ValueError, match="needs a sum"):
        minmax(f, x, x, method="StochasticHamiltonian")
    with pytest.raises(TypeError, match="values"):
        minmax(lambda x, y, i: x @ y, x, x, method="StochasticHamiltonian", terms=3)
    with pytest.raises(ValueError, match="correction: unknown 'exp'"):
        ExtraGradient(correction="exp")
    with pytest.raises(ValueError, match="step_size"):
        Consensus(math.nan)
    with pytest.raises(ValueError, match="inner: unknown 'nothing'"):
        Hamiltonian("nothing")


def test_another_run_is_refused(tmp_path):
    options = {"checkpoint": tmp_path / "run.pt", "max_iterations": 2, "tolerance": 0}
    minmax(lambda x, y: x @ A @ y, *START, **options)
    with pytest.raises(ValueError, match="its method is"):
        minmax(lambda x, y: x @ A @ y, *START, method=Hamiltonian(ConjugateGradients("liu-storey")), **options)


def test_a_run_that_goes_on_remembers_its_best_pair(tmp_path):
    """Descent and ascent spiral outwards from the start, which is the best pair."""
    options = {"method": DescentAscent(), "tolerance": 0}
    minmax(lambda x, y: x @ y, *START, checkpoint=tmp_path / "run.pt", max_iterations=3, **options)
    again = minmax(lambda x, y: x @ y, *START, checkpoint=tmp_path / "run.pt", max_iterations=6, **options)
    assert again.iterations == 6
    assert torch.equal(again.x, START[0])
    assert torch.equal(again.y, START[1])


def test_values_of_the_hamiltonian_without_derivatives():
    saddle = Saddle(lambda x, y: x @ A @ y, Euclidean(1), Euclidean(1))
    at = saddle.hamiltonian.at(START)
    assert saddle.hamiltonian.value(START) == at.value > 0


def test_constants_and_absent_variables():
    """A function without x has a gradient of y alone; a constant one is stationary."""
    result = minmax(lambda x, y: -(y**2).sum(), *START)
    assert result.success
    assert torch.equal(result.x, START[0])
    assert minmax(lambda x, y: torch.ones(()), *START).iterations == 0


def test_points_of_several_tensors():
    """x is a tuple, y a batch; both come back as they went in."""
    x = each(torch.clone, (randn(2), randn(3, seed=1)))
    manifold = Product((Euclidean(1), Euclidean(1)))
    result = minmax(
        lambda x, y: (x[0] @ x[0] + x[1] @ x[1]) + x[0].sum() * y.sum() - (y * y).sum(), x, randn(2, 2), manifold
    )
    assert result.success
    assert [t.shape for t in result.x] == [(2,), (3,)]
    assert result.y.shape == (2, 2)
    assert "of y" in repr(result)


# The example. ---------------------------------------------------------------------------------------------------------


def test_subspace_robust_wasserstein(monkeypatch):
    """The planted subspace and value: between the bounds with entropy, equal to both without."""
    example = load(monkeypatch, "subspace_robust_wasserstein")
    clouds = example.fragmented_hypercube(24, 5, 2)
    found = example.solve(clouds, entropies=(2.0, 0.5))
    assert all(run.success for run in found.runs)
    assert found.lower <= 8 <= found.upper
    assert found.upper - found.lower < 0.5 / 2 * math.log(24)  # entropy of at most log n, at weight 1 / 2
    assert found.angle < 0.05
    exact = example.rounded(clouds, found)
    assert math.isclose(exact.lower, 8, rel_tol=1e-12)
    assert math.isclose(exact.upper, 8, rel_tol=1e-12)
    assert exact.angle < 1e-7


def load(monkeypatch, name):
    """An example as a module."""
    path = pathlib.Path(__file__).parents[2] / "examples"
    monkeypatch.syspath_prepend(path)
    monkeypatch.delitem(sys.modules, name, raising=False)
    return importlib.import_module(name)
