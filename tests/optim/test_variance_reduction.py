"""Wrappers that correct gradients: the corrected ones are their formulas, on any manifold, and runs resume."""

import copy
import itertools
import math
import pickle

import pytest
import torch
from torch import nn

import steepest
from steepest import SGD, SPD, Adam, Bloop, FixedRank, Product, Sphere, Stiefel, VarianceReduced, testing
from steepest.manifolds import Euclidean
from steepest.manifolds.tensors import as_tuple, each, like
from steepest.optim.wrapper import covector
from steepest.solvers import SRG, SVRG, FiniteSum

N, BATCH, RATE = 24, 4, 0.05
PLACES = [
    (Stiefel("canonical"), (5, 2)),
    (SPD(), (3, 3)),
    (SPD("bures-wasserstein"), (3, 3)),
    (FixedRank(), ((4, 2), (2, 5))),
]


class Sum:
    """Squared distances to N matrices, of a point that is held by a module."""

    def __init__(self, manifold=None, shape=(4, 3), dtype=torch.float64):
        self.manifold, generator = manifold or Euclidean(2), torch.Generator().manual_seed(0)
        draw = {"dtype": dtype, "generator": generator}
        self.x0 = self.manifold.random_point(shape, **draw)
        goals = [self.manifold.represent(self.manifold.random_point(shape, **draw)) for _ in range(N)]
        self.goals = torch.stack(goals)
        self.module = nn.Module()
        names = [f"p{i}" for i in range(self.manifold.arity)]
        for name, t in zip(names, as_tuple(self.x0), strict=True):
            self.module.register_parameter(name, nn.Parameter(t.clone()))
        self.params = list(self.module.parameters())
        if manifold:
            steepest.constrain(self.module, names if len(names) > 1 else names[0], manifold)

    def terms(self, x, index):
        return (self.manifold.represent(x) - self.goals[index]).square().flatten(1).sum(1) / 2

    def closure(self, index):
        def run():
            loss = self.terms(like(self.x0, self.params), torch.as_tensor(index)).mean()
            loss.backward()
            return loss.item()

        return run

    def pulled(self):
        """Coordinates of the gradients that the parameters have."""
        x, g = (like(self.x0, [f(p) for p in self.params]) for f in (torch.Tensor.detach, lambda p: p.grad))
        return as_tuple(self.manifold.pull(x, g))


def test_a_covector_has_the_coordinates_it_was_made_of():
    """On a manifold of each class and metric: `pull` of it is `conform` of them."""
    alike = {(type(m), repr(getattr(m, "metric", None))): (m, shape) for m, shape in testing.manifolds()}
    assert len(alike) > 25
    for m, shape in alike.values():
        dtype = torch.complex128 if m.scalars == ("complex",) else torch.float64
        x = m.random_point(shape, dtype=dtype, generator=torch.Generator().manual_seed(1))
        f = m.frame(x)
        h = each(lambda t: torch.randn_like(t), m._pull(f, x))
        found = as_tuple(m._pull(f, covector(m, f, h, x)))
        for a, b in zip(found, as_tuple(m._conform(f, h)), strict=True):
            torch.testing.assert_close(
                a, b, rtol=1e-7, atol=1e-9, msg=f"{m} {shape}"
            )  # ill-conditioned ones among them


@pytest.mark.parametrize(("manifold", "shape"), [(None, (4, 3)), *PLACES], ids=str)
def test_corrected_gradients_have_the_full_one_for_mean(manifold, shape):
    target = Sum(manifold, shape)
    optimizer = VarianceReduced(SGD(target.module.parameters(), lr=0.05))
    optimizer.anchor(target.closure(range(N)))
    for k in range(3):
        optimizer.step(target.closure([k]))
    target.module.zero_grad()
    target.closure(range(N))()
    full = target.pulled()
    optimizer.param_groups[0]["lr"] = 0.0
    found = []
    for k in range(N):
        optimizer.step(target.closure([k]))
        found.append(target.pulled())
    for a, b in zip(full, zip(*found, strict=True), strict=True):
        torch.testing.assert_close(torch.stack(b).mean(0), a, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("manifold", "shape"), [(None, (4, 3)), *PLACES], ids=str)
@pytest.mark.parametrize("method", [SVRG, SRG])
def test_an_epoch_of_descent_is_the_solvers(method, manifold, shape):
    """Where coordinates are carried from frame to frame, and here by way of Euclidean gradients."""
    target = Sum(manifold, shape)
    problem = FiniteSum(target.terms, N, target.manifold, BATCH, seed=1)
    batches = list(problem.batches(5, 0))
    oracle, _ = method(RATE, 6).epoch(problem.at(target.x0), problem, {"iteration": 0, "rate": RATE})
    optimizer = VarianceReduced(SGD(target.module.parameters(), lr=RATE), method.__name__.lower())
    optimizer.anchor(target.closure(range(N)))
    for index in [batches[-1], *batches]:  # at the anchor any mini-batch will do
        optimizer.step(target.closure(index))
    for p, t in zip(target.params, as_tuple(oracle.x), strict=True):
        torch.testing.assert_close(p.detach(), t, rtol=0, atol=1e-12)


def test_storm_is_its_formula():
    target, mixing = Sum(), 0.3
    optimizer = VarianceReduced(torch.optim.SGD(target.params, lr=RATE), "storm", mixing)
    x = target.x0.clone()
    v = last = None
    for k in range(5):
        optimizer.step(target.closure([k, k + 1]))

        def gradient(x, k=k):
            return x - target.goals[[k, k + 1]].mean(0)

        v = gradient(x) if v is None else gradient(x) + (1 - mixing) * (v - gradient(last))
        last, x = x, x - RATE * v
        torch.testing.assert_close(target.params[0].detach(), x, rtol=0, atol=1e-12)


FAMILIES = [(SGD, "svrg"), (SGD, "srg"), (Adam, "svrg"), (torch.optim.SGD, "srg")]
FAMILIES += [(torch.optim.AdamW, "svrg")]


@pytest.mark.slow
@pytest.mark.parametrize(("family", "kind"), FAMILIES, ids=str)
def test_a_constant_rate_converges_with_any_optimizer(family, kind):
    """On a least-squares problem in which single terms disagree; with the optimisers that divide by the gradient's
    size, to a neighbourhood that the rate makes, and plain ones stay further away."""
    errors = []
    for wrap in (VarianceReduced, None):
        target = Sum()
        lr = {SGD: 0.3, torch.optim.SGD: 0.3}.get(family, 0.05)
        inner = family(target.params, lr=lr)
        optimizer = wrap(inner, kind) if wrap else inner
        generator = torch.Generator().manual_seed(0)
        for _ in range(20):
            if wrap:
                optimizer.anchor(target.closure(range(N)))
            for index in torch.randperm(N, generator=generator).split(BATCH):
                if wrap:
                    optimizer.step(target.closure(index))
                else:
                    inner.zero_grad()
                    inner.step(target.closure(index))
        errors.append((target.params[0].detach() - target.goals.mean(0)).norm().item())
    assert errors[0] < 0.6 * errors[1], errors
    if "SGD" in family.__name__:
        assert errors[0] < 1e-6


# What it is to torch. -------------------------------------------------------------------------------------------------


def run(target, optimizer, steps, start=0):
    for k in range(start, start + steps):
        if k % 4 == 0:
            optimizer.anchor(target.closure(range(N)))
        optimizer.step(target.closure([k % N, (3 * k) % N]))


@pytest.mark.parametrize("kind", ["svrg", "srg", "storm"])
@pytest.mark.parametrize(("manifold", "shape"), [(None, (4, 3)), PLACES[3]], ids=str)
def test_resumes_bit_for_bit(kind, manifold, shape, tmp_path):
    whole, first, second = (Sum(manifold, shape) for _ in range(3))
    optimizers = [VarianceReduced(Adam(t.module.parameters(), lr=0.01), kind) for t in (whole, first, second)]
    run(whole, optimizers[0], 11)
    run(first, optimizers[1], 6)
    torch.save([optimizers[1].state_dict(), first.module.state_dict()], tmp_path / "run.pt")
    state, weights = torch.load(tmp_path / "run.pt", weights_only=True)
    second.module.load_state_dict(weights)
    optimizers[2].load_state_dict(state)
    run(second, optimizers[2], 5, 6)
    for a, b in zip(whole.params, second.params, strict=True):
        assert torch.equal(a, b)


def test_schedulers_groups_hooks_and_copies():
    target = Sum()
    inner = SGD(target.params, lr=0.1)
    optimizer = VarianceReduced(inner)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    seen = []
    optimizer.register_step_post_hook(lambda *_: seen.append(1))
    run(target, optimizer, 2)
    scheduler.step()
    assert inner.param_groups[0]["lr"] == 0.05
    assert optimizer.param_groups is inner.param_groups
    assert optimizer.state is inner.state
    assert len(seen) == 2
    more = nn.Parameter(torch.ones(3))
    optimizer.add_param_group({"params": [more], "lr": 1.0})
    more.grad = torch.ones(3)
    assert len(inner.param_groups) == 2
    run(target, optimizer, 2, 2)  # the new one has no anchor, and gets no gradient
    optimizer.zero_grad()
    assert target.params[0].grad is None
    for again in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert again.kind == "svrg"
        assert torch.equal(again.param_groups[0]["params"][0], target.params[0])
    assert "SGD" in repr(optimizer)
    assert not hasattr(optimizer, "nothing_of_this_name")


def test_both_calls_see_the_same_random_numbers():
    torch.manual_seed(0)
    model, dropout = nn.Linear(40, 1, bias=False), nn.Dropout(0.5)
    data = torch.ones(40)

    def closure():
        loss = model(dropout(data)).sum()
        loss.backward()
        return loss

    def full():
        loss = model(data).sum()
        loss.backward()
        return loss

    optimizer = VarianceReduced(SGD(model.parameters(), lr=0.1))
    optimizer.anchor(full)
    grads = []
    for _ in range(2):
        optimizer.step(closure)
        grads.append(model.weight.grad.clone())
        assert torch.equal(grads[-1], torch.ones(1, 40)), "the loss is linear: the mask is the same in both"


def test_what_is_not_finite_does_not_stay():
    for kind in ("svrg", "srg", "storm"):
        target = Sum()
        optimizer = VarianceReduced(SGD(target.params, lr=0.1, nonfinite="skip"), kind)
        optimizer.anchor(target.closure(range(N)))
        optimizer.step(target.closure([1]))
        before = target.params[0].detach().clone()
        goals = target.goals.clone()
        target.goals[2] = torch.nan
        optimizer.step(target.closure([2]))
        assert torch.equal(target.params[0], before), "skipped"
        with pytest.raises(ValueError, match="the anchor stays what it was"):
            optimizer.anchor(target.closure(range(N)))
        target.goals = goals
        loss = optimizer.step(target.closure([3]))
        assert math.isfinite(loss)
        assert target.params[0].isfinite().all()
        assert not torch.equal(target.params[0], before)
        state = optimizer.state_dict()["variance_reduction"]
        assert all(t.isfinite().all() for t in state["place"] + state["gradient"])


def test_the_parameters_survive_a_closure_that_fails():
    target = Sum()
    optimizer = VarianceReduced(SGD(target.params, lr=0.1))
    run(target, optimizer, 2)
    before, calls = target.params[0].detach().clone(), itertools.count()

    def closure():
        if next(calls) == 1:
            raise RuntimeError("second call")
        return target.closure([0])()

    with pytest.raises(RuntimeError, match="second call"):
        optimizer.step(closure)
    assert torch.equal(target.params[0], before)


def test_half_precision_and_shapes_of_tensors():
    """A convolution's weight, constrained as a matrix, and a bfloat16 one: what is kept is in float32."""
    conv = nn.Conv2d(2, 3, 2, bias=False)
    steepest.constrain(conv, "weight", Stiefel(), matrix="o i h w -> (i h w) o")
    half = nn.Linear(4, 2, bias=False).bfloat16()
    optimizer = VarianceReduced(SGD([*conv.parameters(), *half.parameters()], lr=0.05), "srg")
    image, row = torch.randn(4, 2, 3, 3), torch.randn(4, 4).bfloat16()

    def closure(index):
        def run():
            loss = conv(image[index]).square().mean() + half(row[index]).square().mean().float()
            loss.backward()
            return loss

        return run

    first = optimizer.anchor(closure([0, 1, 2, 3]))
    for k in range(8):
        loss = optimizer.step(closure([k % 4, (k + 1) % 4]))
    assert optimizer.anchor(closure([0, 1, 2, 3])) < first
    assert loss.isfinite()
    assert optimizer.optimizer.residual() < 1e-5
    assert optimizer.state_dict()["variance_reduction"]["gradient"][1].dtype == torch.float32


def test_refusals():
    target = Sum()
    inner = SGD(target.params, lr=0.1)
    with pytest.raises(ValueError, match="kind: unknown 'saga', expected one of svrg, srg, storm"):
        VarianceReduced(inner, "saga")
    with pytest.raises(TypeError, match="optimizer: got list"):
        VarianceReduced([1])
    with pytest.raises(TypeError, match="closure: got None"):
        VarianceReduced(inner).step()
    with pytest.raises(ValueError, match="has no 'variance_reduction'"):
        VarianceReduced(inner).load_state_dict(inner.state_dict())
    with pytest.raises(ValueError, match="is of kind 'svrg', expected 'srg'"):
        VarianceReduced(inner, "srg").load_state_dict(VarianceReduced(inner).state_dict())
    with pytest.raises(ValueError, match="mixing"):
        VarianceReduced(inner, mixing=1.5)


# An auxiliary loss. ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("manifold", "shape"), [(None, (4, 3)), *PLACES], ids=str)
def test_bloop_is_its_formula(manifold, shape):
    """In coordinates, with the mean carried from frame to frame."""
    target, weight, ema, m = Sum(manifold, shape), 0.5, 0.3, None
    optimizer = Bloop(SGD(target.module.parameters(), lr=RATE), weight, ema)
    last = None
    for k in range(4):
        x = each(lambda t: t.clone(), like(target.x0, [p.detach() for p in target.params]))

        def losses(x=None, k=k):
            x = like(target.x0, target.params) if x is None else x
            return target.terms(x, torch.tensor([k, k + 1])).mean(), target.terms(x, torch.tensor([10, 11])).mean()

        leaf = each(lambda t: t.clone().requires_grad_(), x)
        g, a = (
            as_tuple(target.manifold.pull(x, like(x, torch.autograd.grad(loss, as_tuple(leaf), retain_graph=True))))
            for loss in losses(leaf)
        )
        if m is None:
            m = g
        else:
            m = as_tuple(target.manifold.carry(last, x, m if len(m) > 1 else m[0]))
            m = tuple(u + ema * (v - u) for u, v in zip(m, g, strict=True))
        share = sum((u * v).sum() for u, v in zip(a, m, strict=True)) / sum(u.square().sum() for u in m)
        optimizer.step(losses)
        here = like(x, [p.grad for p in target.params])
        found = as_tuple(target.manifold.pull(x, here))
        for u, v, w, z in zip(found, g, a, m, strict=True):
            torch.testing.assert_close(u, v + weight * (w - share * z), rtol=0, atol=1e-12)
        last = x


@pytest.mark.slow
def test_bloop_chooses_among_the_minima_of_the_main_loss():
    """x0 = 0 is a line of minima for the main loss; the auxiliary one wants another x0 as well, and gets none of it.
    The mixed loss would give some. The valley is noisy: each step sees it moved."""
    x = nn.Parameter(torch.tensor([2.0, 2.0], dtype=torch.float64))
    optimizer = Bloop(SGD([x], lr=0.1), weight=0.5, ema=0.2)
    generator = torch.Generator().manual_seed(0)
    ends = []
    for k in range(400):
        noise = 0.3 * torch.randn((), dtype=torch.float64, generator=generator)
        optimizer.step(lambda noise=noise: ((x[0] - noise) ** 2 / 2, ((x - torch.tensor([3.0, 1.0])) ** 2).sum() / 2))
        optimizer.param_groups[0]["lr"] = 0.1 / (1 + k / 100)
        ends.append(x.detach().clone())
    end = torch.stack(ends[-80:]).mean(0)
    assert abs(float(end[1]) - 1) < 0.05, "the auxiliary loss has its way along the valley"
    assert abs(float(end[0])) < 0.2, "of the mixture it would be 3 * 0.5 / 1.5 = 1"


@pytest.mark.parametrize("product", [False, True])
def test_bloop_resumes_and_survives_what_is_not_finite(product, tmp_path):
    place = (Product((Sphere(), Euclidean(1))), ((4,), (2,))) if product else (Stiefel(), (4, 2))

    class Run:
        def __init__(self):
            generator = torch.Generator().manual_seed(0)
            x = place[0].random_point(place[1], generator=generator)
            self.module = nn.Module()
            for i, t in enumerate(as_tuple(x)):
                self.module.register_parameter(f"p{i}", nn.Parameter(t))
            names = [name for name, _ in self.module.named_parameters()]
            steepest.constrain(self.module, names if len(names) > 1 else names[0], place[0])
            inner = SGD(self.module.parameters(), lr=0.1, momentum=0.5, nonfinite="skip")
            self.optimizer = Bloop(inner)

        def go(self, first, last, bad=False):
            for k in range(first, last):
                flat = torch.cat([p.flatten() for p in self.module.parameters()])
                c = torch.randn(len(flat), 2, generator=torch.Generator().manual_seed(k))
                self.optimizer.step(lambda f=flat, c=c: (f @ c[:, 0] * (torch.nan if bad else 1), (f @ c[:, 1]) ** 2))
            return torch.cat([p.detach().flatten() for p in self.module.parameters()])

    whole = Run().go(0, 8)
    first, second = Run(), Run()
    first.go(0, 5)
    torch.save([first.optimizer.state_dict(), first.module.state_dict()], tmp_path / "run.pt")
    state, weights = torch.load(tmp_path / "run.pt", weights_only=True)
    second.module.load_state_dict(weights)
    second.optimizer.load_state_dict(state)
    assert torch.equal(second.go(5, 8), whole)
    before = first.go(5, 6)
    assert torch.equal(first.go(6, 7, bad=True), before)
    assert first.go(7, 9).isfinite().all()
    assert all(t.isfinite().all() for t in first.optimizer.state_dict()["bloop"]["mean"])
