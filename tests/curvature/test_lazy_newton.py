"""LazyNewton against dense Newton systems, its local rates, and what it must survive."""

import copy
import io
import itertools

import pytest
import torch
from torch import nn

from steepest import FixedRank, Sphere, Stiefel, constrain
from steepest.curvature import LazyNewton


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


class Logistic(nn.Module):
    """A strongly convex problem with a Lipschitz Hessian."""

    def __init__(self, d=6, dtype=torch.float64):
        super().__init__()
        self.x, self.w = randn(60, d, dtype=dtype), nn.Parameter(torch.zeros(d, dtype=dtype))
        self.y = torch.sign(randn(60, seed=1, dtype=dtype) + self.x[:, 0])

    def forward(self):
        return nn.functional.softplus(-self.y * (self.x @ self.w)).mean() + 0.01 * self.w.square().sum()


def minimiser(model):
    """By undamped Newton steps from where a long run of them ends."""
    twin = copy.deepcopy(model)
    optimizer = LazyNewton(twin, every=1)
    for _ in range(40):
        optimizer.step(twin)
    return twin.w.detach()


def test_one_cubic_step_is_the_dense_one():
    model = Logistic()
    x, y = model.x, model.y

    def f(w):
        return nn.functional.softplus(-y * (x @ w)).mean() + 0.01 * w.square().sum()

    start = model.w.detach().clone()
    g, hessian = torch.func.grad(f)(start), torch.func.hessian(f)(start)
    LazyNewton(model, smoothness=3.0, adaptive=False).step(model)
    h = model.w.detach() - start
    left = (hessian + 1.5 * h.norm() * torch.eye(6, dtype=h.dtype)) @ h
    torch.testing.assert_close(left, -g, rtol=0, atol=1e-14)


def test_one_quadratic_step_is_the_dense_one():
    model = Logistic()
    start = model.w.detach().clone()
    g = torch.autograd.grad(model(), model.w)[0]
    hessian = torch.func.hessian(lambda w: torch.func.functional_call(model, {"w": w}))(start)
    LazyNewton(model, lr=0.5, smoothness=3.0, regularization="quadratic", adaptive=False).step(model)
    shifted = hessian + (3 * g.norm()).sqrt() * torch.eye(6, dtype=g.dtype)
    torch.testing.assert_close(model.w.detach() - start, -0.5 * torch.linalg.solve(shifted, g), rtol=1e-12, atol=0)


class Points(nn.Module):
    """Three points and a plain tensor, all coupled."""

    def __init__(self, dtype=torch.float64):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.s = nn.Parameter(Stiefel().random_point((5, 2), generator=generator, dtype=dtype).T.contiguous())
        b, a = FixedRank().random_point(((4, 2), (2, 5)), generator=generator, dtype=dtype)
        self.b, self.a = nn.Parameter(b), nn.Parameter(a)
        self.u = nn.Parameter(Sphere().random_point((4,), generator=generator, dtype=dtype))
        self.v = nn.Parameter(randn(2, seed=5, dtype=dtype))
        constrain(self, "s", Stiefel(), matrix="p n -> n p")
        constrain(self, ("b", "a"), FixedRank())
        constrain(self, "u", Sphere())
        self.t = randn(4, 2, seed=6, dtype=dtype)

    def forward(self):
        return ((self.b @ self.a @ self.s.T + torch.outer(self.u, self.v) - self.t) ** 2).sum() / 2 + self.u[0] ** 3


def test_hessian_in_coordinates_is_that_of_the_retracted_loss():
    model = Points()
    optimizer = LazyNewton(model, smoothness=50.0, adaptive=False)
    here, _ = optimizer._place()
    before = [p.detach().clone() for p in here.params]

    def along(h):
        with torch.no_grad():
            here.write(here.moved(h))
            value = model().item()
            for p, old in zip(here.params, before, strict=True):
                p.copy_(old)
        return value

    optimizer.step(model)
    with torch.no_grad():
        for p, old in zip(here.params, before, strict=True):
            p.copy_(old)
    state = optimizer.state[here.params[0]]
    hessian = (state["vectors"] * state["values"]) @ state["vectors"].T
    eps = 1e-4  # errors: eps^2 of the formula, 1e-15 / eps^2 of rounding
    for seed in range(4):
        h = here.pull([randn(*p.shape, seed=seed) for p in here.params])  # in the range of the frame
        h /= h.norm()
        second = (along(eps * h) - 2 * along(0 * h) + along(-eps * h)) / eps**2
        assert second == pytest.approx((h @ hessian @ h).item(), abs=2e-6)


@pytest.mark.parametrize("every", [1, 3])
def test_points_stay_on_their_manifolds_and_converge(every):
    model = Points()
    optimizer = LazyNewton(model, every=every)
    losses = [optimizer.step(model).item() for _ in range(40)]
    assert all(b <= a + 1e-14 for a, b in itertools.pairwise(losses))
    here, _ = optimizer._place()
    g = here.pull(torch.autograd.grad(model(), here.params))
    assert g.norm() < 1e-7, g.norm()
    assert Stiefel().residual(model.s.T) < 1e-14
    assert (model.u.norm() - 1).abs() < 1e-14


@pytest.mark.parametrize("regularization", ["cubic", "quadratic"])
@pytest.mark.parametrize("every", [1, 2, 3, 6])
def test_the_tail_is_superlinear(every, regularization):
    """The error after a step is at most a constant times the error before it times that at the Hessian's place; as
    "quadratic" adds sqrt(M |g|) to H, with the root of the error before it in place of that where it is larger."""
    model = Logistic()
    solution = minimiser(model)
    optimizer = LazyNewton(model, every=every, smoothness=0.1, regularization=regularization)
    errors = [solution.norm().item()]
    for _ in range(14):
        optimizer.step(model)
        errors.append((model.w.detach() - solution).norm().item())
    seen = 0
    for k, (now, then) in enumerate(itertools.pairwise(errors)):
        order = errors[k - k % every] if regularization == "cubic" else max(errors[k - k % every], now**0.5)
        if now < 0.3 and then > 1e-13:
            seen += 1
            assert then < now * order, errors
    assert seen >= 3
    assert errors[-1] < 1e-14


@pytest.mark.parametrize("every", [1, 4])
def test_hessians_are_computed_when_due(every, monkeypatch):
    count, inner = [], LazyNewton._decompose
    monkeypatch.setattr(LazyNewton, "_decompose", lambda *a: (count.append(1), inner(*a)))
    model = Logistic()
    optimizer = LazyNewton(model, every=every)
    for _ in range(9):
        optimizer.step(model)
    assert len(count) == -(-9 // every)


def test_a_saddle_is_left():
    """The gradient is zero, and the Hessian indefinite: the hard case."""
    x = nn.Parameter(torch.zeros(3, dtype=torch.float64))

    def f():
        return x[0] ** 4 / 4 - x[0] ** 2 / 2 + x[1] ** 2 + x[2] ** 2

    optimizer = LazyNewton([x], every=1)
    for _ in range(12):
        optimizer.step(f)
    torch.testing.assert_close(x.detach().abs(), torch.tensor([1.0, 0, 0], dtype=torch.float64), rtol=0, atol=1e-10)


@pytest.mark.parametrize("regularization", ["cubic", "quadratic"])
def test_rosenbrock(regularization):
    x = nn.Parameter(torch.tensor([-1.2, 1.0], dtype=torch.float64))

    def f():
        return 100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2

    optimizer = LazyNewton([x], every=1, regularization=regularization)
    losses = [optimizer.step(f).item() for _ in range(40)]
    assert all(b <= a for a, b in itertools.pairwise(losses))
    assert losses[-1] < 1e-20


def test_the_constant_is_found():
    model = Logistic()
    for start in (1e-8, 1e8):
        twin = copy.deepcopy(model)
        optimizer = LazyNewton(twin, every=1, smoothness=start)
        for _ in range(60):
            optimizer.step(twin)
        assert (twin.w - minimiser(model)).norm() < 1e-7


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_state_resumes_to_the_bit(dtype):
    model = Points(dtype)
    optimizer = LazyNewton(model, every=4)
    for _ in range(6):
        optimizer.step(model)
    twin = Points(dtype)
    twin.load_state_dict(model.state_dict())
    other = LazyNewton(twin, every=4)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    copied, copied_optimizer = copy.deepcopy((model, optimizer))
    for _ in range(5):
        for m, o in ((model, optimizer), (twin, other), (copied, copied_optimizer)):
            o.step(m)
    for p, q, r in zip(model.parameters(), twin.parameters(), copied.parameters(), strict=True):
        assert torch.equal(p, q)
        assert torch.equal(p, r)


def test_learning_rates_of_groups_and_schedulers():
    a, b = nn.Parameter(torch.ones(2, dtype=torch.float64)), nn.Parameter(torch.ones(2, dtype=torch.float64))
    optimizer = LazyNewton([{"params": [a], "lr": 0.5}, {"params": [b]}], smoothness=1e-9, adaptive=False, every=1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)

    def f():
        return (a.square().sum() + 3 * b.square().sum()) / 2

    optimizer.step(f)
    torch.testing.assert_close(a.detach(), torch.full_like(a, 0.5), atol=1e-8, rtol=0)
    torch.testing.assert_close(b.detach(), torch.zeros_like(b), atol=1e-8, rtol=0)
    scheduler.step()
    optimizer.step(f)
    torch.testing.assert_close(a.detach(), torch.full_like(a, 0.375), atol=1e-8, rtol=0)


def test_half_precision_and_a_bounded_turn():
    torch.manual_seed(0)
    layer = nn.Linear(4, 2).bfloat16()
    x, y = randn(20, 4).bfloat16(), randn(20, 2, seed=1).bfloat16()
    optimizer = LazyNewton(layer, every=2)
    losses = [optimizer.step(lambda: (layer(x) - y).float().square().mean()).item() for _ in range(4)]
    best = torch.linalg.lstsq(torch.cat([x, torch.ones(20, 1)], 1).double(), y.double()).solution
    left = (torch.cat([x, torch.ones(20, 1)], 1).double() @ best - y.double()).square().mean()
    assert losses[-1] < 1.05 * left + 0.01
    b, a = nn.Parameter(torch.zeros(3, 2).double()), nn.Parameter(randn(2, 4))
    holder = nn.ParameterDict({"b": b, "a": a})
    constrain(holder, ("b", "a"), FixedRank(turn=0.5))
    target = randn(3, 2, seed=3) @ randn(2, 4, seed=4)
    optimizer = LazyNewton([b, a], every=2)
    for _ in range(14):
        loss = optimizer.step(lambda: (b @ a - target).square().sum())
    assert loss < 1e-15


def test_frozen_and_unused_parameters_and_a_linear_loss():
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1)).double()
    model[0].weight.requires_grad_(False)
    unused = nn.Parameter(torch.ones(2, dtype=torch.float64))
    frozen = model[0].weight.clone()
    optimizer = LazyNewton([*model.parameters(), unused], every=1)
    x = randn(8, 3)
    for _ in range(3):
        optimizer.step(lambda: model(x).square().mean())
    assert torch.equal(frozen, model[0].weight)
    assert torch.equal(unused.detach(), torch.ones(2, dtype=torch.float64))
    w = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    LazyNewton([w], adaptive=False).step(lambda: w[0] * 2.0)  # H = 0: h = -g sqrt(2 / (M |g|))
    torch.testing.assert_close(w.detach(), torch.tensor([-2.0, 0.0], dtype=torch.float64))


def test_the_choice_of_factors_does_not_matter():
    """(B, A) and (B M, M^-1 A): the same matrices B A, with Hessians carried over several steps."""
    target, m = randn(5, 4, seed=3), torch.tensor([[3.0, 1.0], [-0.5, 0.2]], dtype=torch.float64)
    b, a = FixedRank().random_point(((5, 2), (2, 4)), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    runs = []
    for left, right in ((b, a), (b @ m, torch.linalg.solve(m, a))):
        holder = nn.ParameterDict({"b": nn.Parameter(left.clone()), "a": nn.Parameter(right.clone())})
        constrain(holder, ("b", "a"), FixedRank())
        optimizer = LazyNewton(holder, every=4, smoothness=30.0, adaptive=False)
        products = []
        for _ in range(8):
            optimizer.step(lambda h=holder: (torch.tanh(h["b"] @ h["a"]) - target).square().sum())
            products.append((holder["b"] @ holder["a"]).detach())
        runs.append(torch.stack(products))
    torch.testing.assert_close(runs[0], runs[1], rtol=0, atol=1e-8)  # 1e-16 times the growth of eight steps
    assert (runs[0][0] - runs[0][-1]).norm() > 0.1


def test_what_is_refused():
    with pytest.raises(ValueError, match=r"Hessian of 5050 x 5050 numbers.*max_size = 5000"):
        LazyNewton(nn.Linear(100, 50))
    LazyNewton(nn.Linear(100, 50), max_size=6000)
    with pytest.raises(ValueError, match="complex"):
        LazyNewton([nn.Parameter(torch.zeros(2, dtype=torch.complex64))])
    with pytest.raises(ValueError, match="regularization: unknown 'quartic'"):
        LazyNewton(nn.Linear(2, 2), regularization="quartic")
    with pytest.raises(ValueError, match="every: got 0"):
        LazyNewton(nn.Linear(2, 2), every=0)
    model = Logistic()
    optimizer = LazyNewton(model)
    with pytest.raises(TypeError, match="closure: expected it to return the loss"):
        optimizer.step(lambda: model().item())

    def usual():
        loss = model()
        loss.backward()
        return loss

    with pytest.raises(TypeError, match="closure: has called backward"):
        optimizer.step(usual)
    optimizer.step(model)
    before, kept = model.w.detach().clone(), copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match="nothing was changed"):
        optimizer.step(lambda: model() * torch.nan)
    assert torch.equal(before, model.w)
    optimizer.load_state_dict(kept)
    for key, value in optimizer.state[model.w].items():
        assert torch.equal(value, kept["state"][0][key]), key


def test_a_search_in_vain_leaves_the_point():
    x = nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
    calls = []

    def f():
        calls.append(1)
        return x.square().sum() + len(calls)  # it grows from call to call

    optimizer = LazyNewton([x])
    optimizer.step(f)
    assert x.item() == 1.0
    assert "vectors" not in optimizer.state[x]
    optimizer.step(lambda: x.square().sum())
    assert abs(x.item()) < 0.9
