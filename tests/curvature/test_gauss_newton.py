"""EGN against the damped normal equations in the parameters, against python-somax, and on manifolds."""

import copy
import io
import itertools
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from steepest import SGD, Composed, FixedRank, Muon, Sphere, Stiefel, constrain, param_groups
from steepest.curvature import EGN
from steepest.curvature.coordinates import Coordinates, points_of
from steepest.transforms import Momentum

SOMAX = json.loads((Path(__file__).parent / "somax.json").read_text())["cases"]


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def small(outputs=3):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, outputs)).double()


def targets_of(loss, rows=7, columns=3):
    return torch.arange(rows) % columns if loss == "cross_entropy" else randn(rows, columns, seed=3)


def jacobian(model, x, params):
    """Rows of outputs by parameters, by forward mode: a way of its own."""

    def f(tensors):
        return torch.func.functional_call(model, tensors, (x,)).reshape(-1)

    start = {name: p.detach() for name, p in model.named_parameters() if any(p is q for q in params)}
    parts = torch.func.jacfwd(f)(start)
    return torch.cat([parts[name].flatten(1) for name in start], 1), f(start)


def curved(loss, z, y):
    """Residual and Hessian of all rows."""
    if loss == "squared":
        return (z.view(y.shape) - y).reshape(-1), torch.eye(len(z), dtype=z.dtype)
    p = z.view(len(y), -1).softmax(-1)
    q = torch.block_diag(*[torch.diag(row) - torch.outer(row, row) for row in p])
    return (p - nn.functional.one_hot(y, p.shape[-1])).reshape(-1), q


def dense(model, x, y, loss, damping, params=None):
    params = list(model.parameters()) if params is None else params
    j, z = jacobian(model, x, params)
    r, q = curved(loss, z, y)
    system = j.T @ q @ j / len(y) + damping * torch.eye(j.shape[1], dtype=j.dtype)
    return torch.linalg.solve(system, j.T @ r / len(y))


def flat_grad(model):
    return torch.cat([p.grad.reshape(-1) for p in model.parameters() if p.grad is not None])


CG = {"solver": "cg", "tolerance": 1e-14, "iterations": 400}
DENSE = {"solver": "dense", "chunk": 4}
ROWS = {"solver": "rows", "chunk": 4}


@pytest.mark.parametrize("options", [DENSE, CG, {}, ROWS], ids=["chunked", "cg", "dense", "rows"])
@pytest.mark.parametrize("damping", [10.0, 1e-2, 1e-5])
@pytest.mark.parametrize("loss", ["cross_entropy", "squared"])
def test_against_the_dense_primal_solution(loss, damping, options):
    """14 more parameters than outputs of rank: J^T Q J is singular, and so is Q of cross-entropy."""
    model, x, y = small(), randn(7, 4), targets_of(loss)
    expected = dense(model, x, y, loss, damping)
    found = EGN(model, SGD(model.parameters(), lr=1.0), loss, damping, **options).backward(x, y)
    # condition number of the normal equations, up to 1e6, times rounding
    torch.testing.assert_close(flat_grad(model), expected, rtol=0, atol=1e-9 * expected.norm().item())
    z = model(x)
    true = nn.functional.cross_entropy(z, y) if loss == "cross_entropy" else (z - y).square().sum(-1).mean() / 2
    torch.testing.assert_close(found, true.detach(), rtol=1e-14, atol=0)


@pytest.mark.parametrize("options", [DENSE, ROWS, CG], ids=["dense", "rows", "cg"])
def test_certain_and_wrong(options):
    """Probabilities of 1 and 1e-200: Q is zero to rounding, and the root of p that divides is tiny."""
    model, x, y = small(), randn(7, 4), torch.zeros(7, dtype=torch.long)
    with torch.no_grad():
        model[2].bias.copy_(torch.tensor([-460.0, 0.0, 1.0]))
    expected = dense(model, x, y, "cross_entropy", 0.5)
    EGN(model, SGD(model.parameters(), lr=1.0), damping=0.5, **options).backward(x, y)
    torch.testing.assert_close(flat_grad(model), expected, rtol=0, atol=1e-10 * expected.norm().item())


def test_conjugate_gradients_are_those_of_the_primal_problem():
    """After k steps: the same d as conjugate gradients on the normal equations."""
    model, x, y = small(), randn(7, 4), targets_of("cross_entropy")
    j, z = jacobian(model, x, list(model.parameters()))
    r, q = curved("cross_entropy", z, y)
    a = j.T @ q @ j / 7 + 0.01 * torch.eye(j.shape[1], dtype=j.dtype)
    d, e = torch.zeros(j.shape[1], dtype=j.dtype), j.T @ r / 7
    p = e
    for k in range(1, 5):
        step = (e @ e) / (p @ a @ p)
        d, e, before = d + step * p, e - step * (a @ p), e
        p = e + (e @ e) / (before @ before) * p
        EGN(model, SGD(model.parameters(), lr=1.0), damping=0.01, solver="cg", tolerance=0.0, iterations=k).backward(
            x, y
        )
        torch.testing.assert_close(flat_grad(model), d, rtol=0, atol=1e-13)


class Somax(nn.Module):
    """The problem of the numbers in somax.json."""

    def __init__(self):
        super().__init__()
        i = torch.arange(12.0, dtype=torch.float64)
        self.w1 = nn.Parameter(0.7 * torch.sin(1.3 * i + 0.5).view(4, 3))
        self.w2 = nn.Parameter(0.8 * torch.cos(0.9 * i[:4]))

    def forward(self, x):
        return torch.tanh(x @ self.w1.T) @ self.w2


@pytest.mark.parametrize("solver", ["dense", "cg"])
@pytest.mark.parametrize("case", SOMAX, ids=lambda c: f"{c['name']}-{c['steps']}")
def test_the_authors_numbers(case, solver):
    """Constant damping; their trust region rule; and momentum, where the predicted decrease is that of the step with
    momentum. (Of squared loss: see the class on cross-entropy.)"""
    model = Somax()
    i = torch.arange(18.0, dtype=torch.float64)
    x, y = torch.sin(i).view(6, 3), torch.cos(0.7 * i[:6])
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.5 if case["name"] == "momentum" else 0.0)
    more = {"tolerance": 1e-15, "iterations": 60} if solver == "cg" else {}
    egn = EGN(model, optimizer, "squared", 0.125, solver, adaptive=case["name"] != "constant", **more)
    for _ in range(case["steps"]):
        egn.step(x, y)
    for p, key in ((model.w1, "w1"), (model.w2, "w2")):
        torch.testing.assert_close(p.detach(), torch.tensor(case[key], dtype=p.dtype), rtol=0, atol=1e-9)


class Points(nn.Module):
    """Orthonormal rows, a pair of factors, a unit vector and a plain matrix."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        options = {"generator": generator, "dtype": torch.float64}
        self.s = nn.Parameter(Stiefel().random_point((6, 3), **options).T.contiguous())
        b, a = FixedRank().random_point(((4, 2), (2, 3)), **options)
        self.b, self.a = nn.Parameter(b), nn.Parameter(a)
        self.u = nn.Parameter(Sphere().random_point((4,), **options))
        self.m = nn.Parameter(torch.randn(3, 4, **options))
        constrain(self, "s", Stiefel(), matrix="p n -> n p")
        constrain(self, ("b", "a"), FixedRank())
        constrain(self, "u", Sphere())

    def forward(self, x):
        return torch.tanh(x @ self.s.T @ (self.b @ self.a).T + self.u) @ self.m.T


@pytest.mark.parametrize("options", [DENSE, ROWS, CG], ids=["dense", "rows", "cg"])
@pytest.mark.parametrize("loss", ["cross_entropy", "squared"])
def test_on_manifolds_against_the_dense_solution_in_the_tangent_space(loss, options):
    """min over tangent v of g^T v + v^T (J^T Q J / b + damping metric) v / 2, in a basis of the tangent space."""
    model, x, y = Points(), randn(5, 6), targets_of(loss, 5)
    optimizer = SGD(param_groups(model), lr=1.0)
    here = Coordinates(points_of(optimizer))
    j, z = jacobian(model, x, here.params)
    r, q = curved(loss, z, y)
    pushed = [here.push(row) for row in torch.eye(here.size, dtype=torch.float64)]  # spans the tangent space
    place = {id(p): i for i, p in enumerate(here.params)}
    basis = torch.stack([torch.cat([v[place[id(p)]].reshape(-1) for p in model.parameters()]) for v in pushed])
    gram = torch.zeros(here.size, here.size, dtype=torch.float64)
    for point, at in zip(here.points, here.x, strict=True):
        vectors = [point.constraint.point([v[place[id(p)]] for p in point.params]) for v in pushed]
        vectors = (
            tuple(torch.stack(part) for part in zip(*vectors, strict=True))
            if len(point.params) > 1
            else torch.stack(vectors)
        )

        def inner(u, v, m=point.constraint.manifold, at=at):
            return m.inner(at, u, v)

        gram += torch.func.vmap(torch.func.vmap(inner, (None, 0)), (0, None))(vectors, vectors)
    system = basis @ (j.T @ q @ j / 5) @ basis.T + 0.1 * gram
    # coordinates are not unique where the frame has a kernel; the tangent vector is
    expected = basis.T @ (torch.linalg.pinv(system, hermitian=True, rtol=1e-11) @ (basis @ (j.T @ r / 5)))
    EGN(model, optimizer, loss, 0.1, **options).backward(x, y)
    found = here.push(here.pull([p.grad for p in here.params]))
    found = torch.cat([found[place[id(p)]].reshape(-1) for p in model.parameters()])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("make", [lambda g: SGD(g, lr=1.0), lambda g: Composed(g, Momentum(0.5), lr=1.0)])
def test_steps_stay_on_the_manifolds_and_descend(make):
    model, x, y = Points(), randn(12, 6), targets_of("cross_entropy", 12)
    egn = EGN(model, make(param_groups(model)), damping=10.0, adaptive=True)
    losses = [egn.step(x, y).item() for _ in range(20)]
    assert losses[-1] < losses[0] / 100
    assert egn.optimizer.residual() < 1e-12


class Fit(nn.Module):
    def __init__(self, x, dtype=torch.float64):
        super().__init__()
        self.x = x
        self.w = nn.Parameter(torch.tensor([1.5, -0.5, 0.3, 1.2], dtype=dtype))

    def forward(self, x):
        return self.w[0] * torch.exp(self.w[1] * x) + self.w[2] * torch.sin(self.w[3] * x)


@pytest.mark.parametrize("solver", ["dense", "cg"])
def test_the_tail_is_superlinear_where_the_residual_vanishes(solver):
    x = torch.linspace(0, 3, 30, dtype=torch.float64)
    truth = torch.tensor([2.0, -0.8, 0.5, 1.0], dtype=torch.float64)
    y = truth[0] * torch.exp(truth[1] * x) + truth[2] * torch.sin(truth[3] * x)
    model = Fit(x)
    more = {"tolerance": 1e-14, "iterations": 50} if solver == "cg" else {}
    egn = EGN(model, SGD(model.parameters(), lr=1.0), "squared", 1e-9, solver, **more)
    errors = []
    for _ in range(9):
        egn.step(x, y)
        errors.append((model.w.detach() - truth).norm().item())
    tail = [e for e in errors if 1e-10 < e < 0.1]  # below, the damping's own error
    orders = [torch.log(torch.tensor(b)) / torch.log(torch.tensor(a)) for a, b in itertools.pairwise(tail)]
    assert len(tail) >= 3, errors
    assert min(orders) > 1.5, errors
    assert errors[-1] < 1e-11


def test_damping_adapts_both_ways():
    x = torch.linspace(0, 3, 30, dtype=torch.float64)
    y = 2 * torch.exp(-0.8 * x)
    model = Fit(x)
    egn = EGN(model, SGD(model.parameters(), lr=1.0), "squared", 1e-3, adaptive=True)
    for _ in range(10):
        egn.step(x, y)
    assert egn.damping < 1e-3 * 0.5**5
    model, x, y = Points(), randn(12, 6), targets_of("cross_entropy", 12)
    egn = EGN(model, SGD(param_groups(model), lr=1.0), damping=0.01, adaptive=True)  # its first step is too long
    egn.step(x, y)
    assert egn.damping == 0.015


def test_damping_falls_where_there_is_nothing_more_to_gain():
    x = torch.linspace(0, 3, 30, dtype=torch.float64)
    y = 1.5 * torch.exp(-0.5 * x) + 0.3 * torch.sin(1.2 * x) + 0.1  # not zero
    model = Fit(x)
    egn = EGN(model, SGD(model.parameters(), lr=1.0), "squared", 1e-3, adaptive=True)
    for _ in range(60):
        egn.step(x, y)
    assert egn.damping < 1e-9


class Noisy(nn.Module):
    """Dropout and batch statistics."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3)).double()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return self.layers(x)


@pytest.mark.parametrize("solver", ["dense", "cg"])
def test_noise_is_drawn_once_and_statistics_move_once(solver):
    torch.manual_seed(0)
    model, x, y = Noisy(), randn(16, 4), targets_of("cross_entropy", 16)
    twin = copy.deepcopy(model)
    state = torch.get_rng_state()
    expected = nn.functional.cross_entropy(twin(x), y)
    after = torch.get_rng_state()
    torch.set_rng_state(state)
    egn = EGN(model, SGD(model.parameters(), lr=1.0), damping=1.0, solver=solver, adaptive=True)
    loss = egn.step(x, y)
    torch.testing.assert_close(loss, expected.detach())
    assert model.calls == 2
    assert torch.equal(torch.get_rng_state(), after)
    for (name, a), b in zip(model.named_buffers(), twin.buffers(), strict=True):
        assert torch.equal(a, b), name


def test_the_noise_of_the_second_pass_is_that_of_the_first():
    """A short step is always as good as the model says, but only of the same function."""
    torch.manual_seed(0)
    model, x, y = Noisy(), randn(16, 4), targets_of("cross_entropy", 16)
    egn = EGN(model, SGD(model.parameters(), lr=1e-3), damping=1.0, adaptive=True)
    for step in range(1, 8):
        egn.step(x, y)
        assert egn.damping == 0.5**step


def test_rows_that_do_not_count_and_sequences():
    model, x = small(), randn(3, 4, 4)
    y = torch.tensor([[0, -100, 2, 1], [-100, -100, -100, -100], [1, 1, 0, -100]])
    keep = (y.reshape(-1) != -100).nonzero().squeeze(-1)
    expected = dense(model, x.reshape(-1, 4)[keep], y.reshape(-1)[keep], "cross_entropy", 0.1)
    loss = EGN(model, SGD(model.parameters(), lr=1.0), damping=0.1).backward(x, y)
    torch.testing.assert_close(flat_grad(model), expected)
    torch.testing.assert_close(loss, nn.functional.cross_entropy(model(x).mT, y).detach())
    hot = nn.functional.one_hot(y.reshape(-1)[keep], 3).double()
    EGN(model, SGD(model.parameters(), lr=1.0), damping=0.1).backward(x.reshape(-1, 4)[keep], hot)
    torch.testing.assert_close(flat_grad(model), expected)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4).double()
        self.again = self.inner
        self.unused = nn.Linear(2, 2).double()

    def forward(self, x, scale):
        return self.again(torch.tanh(self.inner(x))) * scale


@pytest.mark.parametrize("adaptive", [False, True])
def test_tied_frozen_and_unused_parameters_and_inputs_by_name(adaptive):
    model, x, y = Tied(), randn(6, 4), torch.arange(6) % 4
    model.inner.bias.requires_grad_(False)
    egn = EGN(model, SGD([p for p in model.parameters() if p.requires_grad], lr=1.0), damping=0.2, adaptive=adaptive)
    egn.backward((x, 2.0), y)

    class Alone(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(model.inner.weight.detach().clone())

        def forward(self, x):
            f = nn.functional.linear
            bias = model.inner.bias
            return f(torch.tanh(f(x, self.weight, bias)), self.weight, bias) * 2

    expected = dense(Alone(), x, y, "cross_entropy", 0.2)
    torch.testing.assert_close(model.inner.weight.grad.reshape(-1), expected)
    assert model.inner.bias.grad is None
    assert model.unused.weight.grad is None
    egn.step({"x": x, "scale": 2.0}, y)


@pytest.mark.parametrize("solver", ["dense", "rows", "cg"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_precisions(dtype, solver):
    model, x, y = small(), randn(7, 4), targets_of("cross_entropy")
    expected = dense(model, x, y, "cross_entropy", 0.1)
    low = copy.deepcopy(model).to(dtype)
    EGN(low, SGD(low.parameters(), lr=1.0), damping=0.1, solver=solver).backward(x.to(dtype), y)
    assert low[0].weight.grad.dtype == dtype
    error = (flat_grad(low).double() - expected).norm() / expected.norm()
    assert error < {torch.float32: 1e-4, torch.bfloat16: 0.1}[dtype]  # eps times a condition number of some tens


@pytest.mark.parametrize("solver", ["dense", "rows"])
def test_single_precision_with_hardly_any_damping(solver):
    """What is below the rounding of the kernel counts as that: more outputs than parameters, and nothing fails."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(2, 3), nn.Tanh()), randn(40, 2, dtype=torch.float32)
    y = model(x).detach()
    with torch.no_grad():
        model[0].weight.add_(0.1)
    egn = EGN(model, SGD(model.parameters(), lr=1.0), "squared", 1e-12, solver)
    losses = [egn.step(x, y).item() for _ in range(15)]
    assert losses[-1] < 1e-10 * losses[0]


def test_warm_start_is_better_or_left_alone():
    model, x, y = small(), randn(7, 4), targets_of("cross_entropy")
    egn = EGN(model, SGD(model.parameters(), lr=0.0), damping=1e-2, solver="cg", tolerance=1e-13, iterations=5)
    expected = dense(model, x, y, "cross_entropy", 1e-2)
    gaps = []
    for _ in range(6):
        egn.backward(x, y)
        gaps.append((flat_grad(model) - expected).norm().item())
    assert gaps[-1] < gaps[0] / 50
    cold = EGN(model, SGD(model.parameters(), lr=0.0), damping=1e-2, solver="cg", tolerance=1e-13, iterations=5)
    cold.backward(-3 * x, y)
    first = flat_grad(model)
    egn._start = 1e6 * egn._start
    egn.backward(-3 * x, y)
    torch.testing.assert_close(flat_grad(model), first, rtol=1e-9, atol=0)


@pytest.mark.parametrize("solver", ["dense", "cg"])
def test_state_resumes_to_the_bit(solver):
    x, y = randn(7, 4), targets_of("cross_entropy")
    model = small()
    egn = EGN(model, Muon(model.parameters(), lr=0.02), damping=0.3, solver=solver, adaptive=True)
    for _ in range(3):
        egn.step(x, y)
    twin = copy.deepcopy(model)
    other = EGN(twin, Muon(twin.parameters(), lr=0.02), damping=0.7, solver=solver, adaptive=True)
    file = io.BytesIO()
    torch.save((egn.state_dict(), egn.optimizer.state_dict()), file)
    file.seek(0)
    state, inner = torch.load(file, weights_only=True)
    other.load_state_dict(state)
    other.optimizer.load_state_dict(inner)
    for _ in range(3):
        assert torch.equal(egn.step(x, y), other.step(x, y))
    assert egn.damping == other.damping
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(p, q)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(11, 8)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.table.weight
        self.double()

    def forward(self, tokens):
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            return self.head(self.block(self.table(tokens)))


def test_a_language_model_with_tied_weights():
    """Both solvers, with dropout, from the same noise; on a sequence with a row left out."""
    model = Attention()
    tokens = torch.arange(10).view(2, 5)
    y = (tokens + 1).clone()
    y[0, 0] = -100
    grads = []
    for options in ({"chunk": 32}, {"solver": "rows"}, {**CG, "adaptive": True}):
        torch.manual_seed(3)
        EGN(model, Muon(param_groups(model), lr=0.02), damping=0.1, **options).backward(tokens, y)
        grads.append(flat_grad(model))
    for other in grads[1:]:
        torch.testing.assert_close(grads[0], other, rtol=0, atol=1e-9 * grads[0].norm().item())
    assert len(list(model.parameters())) == len([p for p in model.parameters() if p.grad is not None])
    egn = EGN(model.eval(), SGD(param_groups(model), lr=1.0), damping=1.0, adaptive=True)
    losses = [egn.step(tokens, y).item() for _ in range(8)]
    assert losses[-1] < losses[0] / 10


class Spectrum(nn.Module):
    """Complex parameters, real outputs."""

    def __init__(self, w):
        super().__init__()
        self.w = nn.Parameter(w)

    def forward(self, x):
        w = self.w if self.w.is_complex() else torch.view_as_complex(self.w)
        return torch.tanh((x.to(w.dtype) @ w).real) + (x.to(w.dtype) @ w).imag ** 2


@pytest.mark.parametrize("options", [DENSE, ROWS, CG], ids=["dense", "rows", "cg"])
def test_complex_parameters(options):
    """As the pair of their real and imaginary parts."""
    w, x, y = randn(4, 3, dtype=torch.complex128), randn(7, 4), targets_of("cross_entropy")
    model, real = Spectrum(w.clone()), Spectrum(torch.view_as_real(w).clone())
    expected = dense(real, x, y, "cross_entropy", 0.1)
    EGN(model, SGD(model.parameters(), lr=1.0), damping=0.1, **options).backward(x, y)
    torch.testing.assert_close(torch.view_as_real(model.w.grad).reshape(-1), expected, rtol=0, atol=1e-12)


def test_lora_from_zero():
    """B = 0: the frame's metric is the identity there."""

    class LoRA(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = randn(3, 4, seed=1)
            self.b, self.a = nn.Parameter(torch.zeros(3, 2).double()), nn.Parameter(randn(2, 4, seed=2))
            constrain(self, ("b", "a"), FixedRank(turn=0.1))

        def forward(self, x):
            return x @ (self.w + self.b @ self.a).T

    model, x, y = LoRA(), randn(9, 4), targets_of("cross_entropy", 9)
    egn = EGN(model, SGD(param_groups(model), lr=1.0), damping=0.1, adaptive=True)
    losses = [egn.step(x, y).item() for _ in range(20)]
    assert losses[-1] < losses[0] / 3


def test_what_is_refused():
    model, x, y = small(), randn(7, 4), targets_of("cross_entropy")
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    for options, text in (
        ({"loss": "hinge"}, "loss: unknown 'hinge', expected one of cross_entropy, squared"),
        ({"solver": "lu"}, "solver: unknown 'lu'"),
        ({"damping": 0.0}, "damping: got 0.0"),
        ({"chunk": 0}, "chunk: got 0"),
    ):
        with pytest.raises(ValueError, match=text):
            EGN(model, optimizer, **options)
    with pytest.raises(ValueError, match="is no parameter of the model"):
        EGN(nn.Linear(2, 2), optimizer)
    egn = EGN(model, optimizer)
    for bad, text in (
        (torch.zeros(7, 1, dtype=torch.long), r"targets: shape \(7, 1\)"),
        (torch.full((7,), 3), "classes run from 3 to 3, expected 0 to 2"),
        (torch.full((7,), -100), "no row counts"),
        (torch.ones(7, 3, dtype=torch.float64), "must sum to one"),
    ):
        with pytest.raises(ValueError, match=text):
            egn.step(x, bad)
    with pytest.raises(ValueError, match=r"targets: shape \(7,\) is not that of the model's outputs, \(7, 3\)"):
        EGN(model, optimizer, "squared").step(x, torch.zeros(7))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="no parameter was changed"):
        egn.step(x * torch.inf, y)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])
    assert all(p.grad is None for p in model.parameters())
    assert egn.damping == 1.0
