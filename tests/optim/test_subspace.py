"""An inner chain in a subspace: what is projected, how the subspace follows the gradient, what becomes of the state."""

import io
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import steepest
from steepest import SPD, Euclidean, FixedRank, GaLore, Stiefel, constrain, param_groups, testing
from steepest.manifolds.tensors import as_tuple
from steepest.projectors import Correlated, Cosine, Gaussian, Moment, OneHead, Online, Power, Principal, principal
from steepest.transforms import (
    AdamScale,
    Context,
    LowRank,
    Momentum,
    Quantized,
    ScaleChannels,
    ScaledResidual,
    SparseResidual,
    WeightDecay,
    chain,
)
from steepest.transforms.subspace import Subspace

STILL = {
    "principal": Principal(every=1000),
    "power": Power(every=1000, iterations=1),
    "cosine": Cosine(every=1000),
    "gaussian": Gaussian(orthonormal=True),
    "one head": OneHead(projector=Power(every=1000, iterations=1), heads=2),
}
"""Orthonormal, and nowhere else at steps 2, 3, ..."""

sizes, seeds = st.integers(1, 7), st.integers(0, 2**31)


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def context(step=1, ndim=2):
    return Context(Euclidean(ndim), None, 0.1, step)


class Run:
    """A transform, and the state that it has come to."""

    def __init__(self, transform, like, ndim=2):
        self.transform, self.ndim, self.count = transform, ndim, 0
        self.state = transform.init(like, context(ndim=ndim))

    def step(self, h):
        self.count += 1
        return self.transform.update(h, self.state, context(self.count, self.ndim)).clone()

    def lifted(self, key, like):
        return self.transform.first_order(key, self.state, like, context(self.count, self.ndim))


def rotation(n, seed=0, dtype=torch.float64):
    return torch.linalg.qr(randn(n, n, seed=seed, dtype=dtype))[0]


def with_values(m, n, values, dtype=torch.float64, seed=0):
    """A random matrix with these singular values, and its right singular vectors, all n of them."""
    u, v = rotation(m, seed, dtype), rotation(n, seed + 1, dtype)
    s = torch.tensor(values, dtype=torch.float64).to(dtype)
    return (u[:, : len(values)] * s) @ v[:, : len(values)].mH, v


def first_basis(projector, x, rank):
    state = projector.init(x, rank)
    state |= projector.before(x, rank, state, Moment(1)) or {}
    return projector.basis(x, rank, state, Moment(1))


def energy(x, p):
    return (x @ p).norm().square().item()


# What is projected. ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STILL)
@given(m=sizes, n=sizes, rank=st.integers(1, 3), side=st.sampled_from(("short", "long", "left", "right")), seed=seeds,
       dtype=st.sampled_from((torch.float64, torch.complex128)))  # fmt: skip
@settings(max_examples=12)
def test_with_nothing_inside_it_is_an_orthogonal_projection(name, m, n, rank, side, seed, dtype):
    """h P P^H or P P^H h, idempotent and symmetric as a map of matrices, of rank r."""
    transform = LowRank(Momentum(0.0), rank, STILL[name], side)
    a, b = randn(m, n, seed=seed, dtype=dtype), randn(m, n, seed=seed + 1, dtype=dtype)
    run, tight = Run(transform, a), {"rtol": 1e-12, "atol": 1e-12}  # some products' worth of rounding
    of_a = run.step(a)
    left = side == "left" or (side != "right" and (m < n) == (side == "short"))
    rank, projected = min(rank, m, n), m if left else n
    if rank < projected:
        x = a.mH if left else a
        kept = {key[len("projector.") :]: value for key, value in run.state.items() if key.startswith("projector.")}
        p = STILL[name].basis(x, rank, kept, Moment(1))
        expected = (x @ p @ p.mH).mH if left else x @ p @ p.mH
        torch.testing.assert_close(of_a, expected, **tight)
    else:
        assert torch.equal(of_a, a)
    assert torch.linalg.matrix_rank(of_a, rtol=1e-9) <= (rank if rank < projected else min(m, n))
    torch.testing.assert_close(run.step(of_a), of_a, **tight)
    of_b = run.step(b)
    torch.testing.assert_close((a.conj() * of_b).sum(), (of_a.conj() * b).sum(), **tight)


NOTHING = {
    "tall": ((5, 2), 2, "short"),
    "wide": ((2, 5), 2, "short"),
    "left": ((2, 5), 3, "left"),
    "square": ((4, 4), 1.0, "long"),
    "three axes": ((2, 3, 2), 2, "short"),
    "vector": ((6,), 1, "short"),
    "number": ((), 1, "short"),
}
"""Blocks with nothing to project, rank, side."""


@pytest.mark.parametrize("family", [LowRank, ScaledResidual, ScaleChannels, SparseResidual])
@pytest.mark.parametrize("name", NOTHING)
def test_what_is_no_larger_than_the_subspace_is_left_to_the_inner_chain(name, family):
    shape, rank, side = NOTHING[name]
    inner = [Momentum(0.9), AdamScale()]
    feedback = {"feedback": 0.5} if family is LowRank else {}
    run = Run(family(inner, rank, side=side, **feedback), torch.zeros(shape), len(shape))
    alone, states = chain(*inner), chain(*inner).init((torch.zeros(shape),), context(ndim=len(shape)))
    assert run.state.keys() == states[0].keys()
    for step in (1, 2, 3):
        h = randn(*shape, seed=step, dtype=torch.float32)
        assert torch.equal(run.step(h), alone.update((h,), states, context(step, len(shape)))[0])


@pytest.mark.parametrize("projector", [Cosine(), Principal(every=2), Power(every=1), Power(every=3, iterations=2)])
@pytest.mark.parametrize("shape", [(6, 4), (4, 6)])
@pytest.mark.parametrize("rank", [1, 3])
def test_with_feedback_nothing_is_lost(projector, shape, rank):
    """The steps' sum, and what is left out at the end, are the sum of all gradients."""
    run, gradients = Run(LowRank(Momentum(0.0), rank, projector, feedback=0.0), torch.zeros(shape).double()), []
    steps = []
    for step in range(9):
        gradients.append(randn(*shape, seed=step))
        steps.append(run.step(gradients[-1]))
    torch.testing.assert_close(sum(steps) + run.state["left_out"], sum(gradients), rtol=1e-12, atol=1e-12)  # rounding


@pytest.mark.parametrize("beta", [0.0, 0.9])
def test_with_feedback_the_subspace_follows_all_that_is_projected(beta):
    """By the power iteration on M, of which a part has been taken only when it has been iterated on."""
    run = Run(LowRank(Momentum(0.0), 2, Power(every=1, iterations=1), feedback=beta), randn(6, 4))
    p, m = run.state["projector.basis"].clone(), torch.zeros(6, 4, dtype=torch.float64)
    for step in range(1, 6):
        h = randn(6, 4, seed=step)
        m = m + h
        p = torch.linalg.qr(m.mT @ (m @ p))[0] if step == 1 else p
        taken = m @ p @ p.mT
        torch.testing.assert_close(run.step(h), taken, rtol=1e-10, atol=1e-10)  # rounding, over the gaps of m
        p = torch.linalg.qr(m.mT @ (m @ p))[0] if step > 1 else p
        m = m - (1 - beta) * taken


# The subspace. --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "rounding"), [(torch.float64, 1e-12), (torch.complex128, 1e-12), (torch.float32, 1e-6)]
)
@pytest.mark.parametrize("shape", [(9, 6), (6, 9), (7, 7)])
@given(seed=seeds, rank=st.integers(1, 4), power=st.integers(-12, 12))
@settings(max_examples=10)
def test_principal_holds_the_leading_vectors(dtype, rounding, shape, seed, rank, power):
    """Up to the sine of the largest principal angle, which is some eps times the square of the condition above the gap;
    at any size of the gradient."""
    x, _ = with_values(*shape, [5.0, 4.0, 3.0, 2.0, 0.5, 0.1], torch.promote_types(dtype, torch.float64), seed)
    p = first_basis(Principal(), (x * 10.0**power).to(dtype), rank)
    v = torch.linalg.svd(x)[2][:rank].mH
    p = p.to(v.dtype)
    assert torch.linalg.matrix_norm(v - p @ (p.mH @ v), 2) < 20 * rounding


@pytest.mark.parametrize("ratio", [0.3, 0.7])
@pytest.mark.parametrize("shape", [(8, 6), (6, 8)])
def test_power_converges_at_its_rate(shape, ratio):
    """Tangents of the largest angle fall by (s_{r+1} / s_r)^2 at each step, never by less, in the end not by more."""
    x, v = with_values(*shape, [4.0, 3.0, 2.0, 2 * ratio, ratio, 0.1])
    projector, tangents = Power(every=1, iterations=1), []
    state = projector.init(x, 3)
    for step in range(1, 14):
        at = Moment(step)
        state |= projector.before(x, 3, state, at) or {}
        p = projector.basis(x, 3, state, at)
        turned = v.mT @ p
        tangents.append(torch.linalg.matrix_norm(turned[3:] @ turned[:3].inverse(), 2).item())
        state |= projector.after(x, x @ p, state, at) or {}
    assert tangents[0] > ratio**2 * 0.01
    moved = [(a, b) for a, b in itertools.pairwise(tangents[1:]) if b > 1e-13]  # the second step's is the first one's
    assert all(b <= a * ratio**2 * (1 + 1e-2) for a, b in moved)  # 1e-13 of rounding at 1e-11
    assert moved[-1][1] > moved[-1][0] * ratio**2 * 0.9
    assert len(moved) > 3


@pytest.mark.parametrize("shape", [(9, 6), (6, 9)])
@given(seed=seeds, rank=st.integers(1, 5))
@settings(max_examples=10)
def test_principal_keeps_the_most(shape, seed, rank):
    """|x P|^2 is the sum of the r largest squares of singular values, and no other subspace has more (Ky Fan)."""
    x = randn(*shape, seed=seed)
    best = energy(x, first_basis(Principal(), x, rank))
    assert best == pytest.approx(torch.linalg.svdvals(x)[:rank].square().sum().item(), rel=1e-12)
    for projector in testing.projectors():
        p = torch.linalg.qr(first_basis(projector, x, rank))[0]
        assert energy(x, p) <= best * (1 + 1e-12)  # rounding


@given(seed=seeds, rank=st.integers(1, 5))
@settings(max_examples=10)
def test_cosine_keeps_the_most_of_all_choices_of_columns(seed, rank):
    """By squares; by absolute values it has the largest sum of these."""
    x = randn(5, 6, seed=seed)
    k = torch.arange(6, dtype=torch.float64)
    waves = torch.cos(torch.pi / 6 * (k[:, None] + 0.5) * k)
    in_waves = x @ (waves / waves.norm(dim=0))
    for order in (1, 2):
        of_columns = in_waves.abs().pow(order).sum(0)
        best = max(of_columns[list(columns)].sum().item() for columns in itertools.combinations(range(6), rank))
        kept = x @ first_basis(Cosine(order=order), x, rank)
        assert kept.abs().pow(order).sum().item() == pytest.approx(best, rel=1e-12)


def left_out(x, p):
    return (x @ p @ p.mH - x).abs().square().sum()


def product(x, p, momentum):
    """What `Correlated` descends: mean error times one minus the mean cosine of rows."""
    lifted = momentum @ p.mH
    cosine = (lifted.conj() * x).real.sum(-1) / (lifted.norm(dim=-1) * x.norm(dim=-1))
    return left_out(x, p) / x.numel() * (1 - cosine.mean())


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@given(m=st.integers(2, 6), n=st.integers(2, 6), r=st.integers(1, 3), seed=seeds)
@settings(max_examples=10)
def test_gradients_are_those_of_autograd(dtype, m, n, r, seed):
    """1e-10, some products' worth of rounding of numbers up to some hundreds; P need not be orthonormal."""
    x, momentum = randn(m, n, seed=seed, dtype=dtype), randn(m, r, seed=seed + 1, dtype=dtype)
    p = randn(n, r, seed=seed + 2, dtype=dtype).requires_grad_()
    (g,) = torch.autograd.grad(left_out(x, p) / x.norm().square(), p)
    torch.testing.assert_close(Online.gradient(x, x @ p, p), g, rtol=1e-10, atol=1e-10)
    (g,) = torch.autograd.grad(product(x, p, momentum), p)
    torch.testing.assert_close(Correlated.gradient(x, p, momentum), g, rtol=1e-10, atol=1e-10)


def moved_along(projector, x, start, steps, lr=lambda step: 0.1, momentum=None):
    """What a projector that has begun at `start` makes of a gradient that stays x."""
    state = projector.init(start, 2)
    for step in range(1, steps + 1):
        y, at = start if step == 1 else x, Moment(step, lr(step), momentum=momentum)
        state |= projector.before(y, 2, state, at) or {}
        p = projector.basis(y, 2, state, at)
        state |= projector.after(y, y @ p, state, at) or {}
    return projector.basis(x, 2, state, at)


@pytest.mark.parametrize("shape", [(8, 6), (6, 8)])
def test_online_descends(shape):
    """From another gradient's subspace to one that leaves out hardly more than the best does."""
    x, v = with_values(*shape, [3.0, 2.0, 0.5, 0.2])
    other, projector = randn(*shape, seed=9), Online(every=50, weight_decay=0.0)
    errors = [left_out(x, moved_along(projector, x, other, n)).item() for n in (1, 20, 60, 200)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < left_out(x, v[:, :2]).item() + 0.02 * errors[0]  # steps of 1/50 to each entry do not rest


def test_online_does_not_wait_for_a_warm_up():
    """A learning rate that begins a thousand times lower does not make steps of the subspace a thousand times longer;
    one that has fallen shortens them."""
    x, other, projector = randn(6, 5, seed=1), randn(6, 5, seed=2), Online(every=50)
    plain, warm, cold = (moved_along(projector, x, other, 6, lr) for lr in (
        lambda step: 0.1, lambda step: 0.1 if step > 1 else 1e-4, lambda step: 1e-4 if step > 1 else 0.1))  # fmt: skip
    start = moved_along(projector, x, other, 1)
    torch.testing.assert_close(warm, plain, rtol=0, atol=1e-12)  # rounding
    assert (cold - start).norm() < 2e-3 * (plain - start).norm()


def test_correlated_descends():
    x, other, momentum = randn(8, 6), randn(8, 6, seed=1), randn(8, 2, seed=2)
    projector = Correlated(every=1, spread=False, lr=0.3, anew=1000)
    losses = [product(x, moved_along(projector, x, other, n, momentum=momentum), momentum).item() for n in (1, 5, 25)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.9 * losses[0]


def test_power_keeps_its_subspace_through_gradients_of_zero():
    """And finds a gradient whose first columns are zero, as of inputs that are never seen."""
    x = randn(8, 6)
    x[:, :2] = 0
    run = Run(LowRank(Momentum(0.0), 2, Power(every=1)), x)
    for _ in range(3):
        run.step(torch.zeros_like(x))
    assert run.step(x).norm() > 0.1 * x.norm()
    for _ in range(40):
        step = run.step(x)
    best = torch.linalg.svdvals(x)[:2].square().sum()
    torch.testing.assert_close(step.norm().square(), best, rtol=1e-3, atol=0)  # 40 iterations


# Its state. -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(7, 5), (5, 7)])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_momentum_that_is_turned_with_the_basis_is_that_of_the_full_space(shape, side, dtype):
    """For gradients of one subspace, in which the basis, their singular vectors, is another one at each step."""
    run = Run(LowRank(Momentum(0.9), 3, Principal(every=1), side, "rotate"), randn(*shape, dtype=dtype))
    fixed, bases = rotation(shape[side == "right"], 5, dtype)[:, :3], []
    momentum = torch.zeros(shape, dtype=dtype)
    for step in range(1, 7):
        h = randn(*shape, seed=step, dtype=dtype)
        h = h @ fixed @ fixed.mH if side == "right" else fixed @ fixed.mH @ h
        momentum = 0.9 * momentum + 0.1 * h
        torch.testing.assert_close(run.step(h), momentum, rtol=1e-12, atol=1e-12)  # some products' worth of rounding
        bases.append(run.state["projector.basis"].clone())
    assert all((p - q).norm() > 0.1 for p, q in itertools.pairwise(bases))


@pytest.mark.parametrize("moved", ["rotate", "keep", "reset"])
@pytest.mark.parametrize("shape", [(7, 5), (5, 7)])
def test_what_becomes_of_momentum(shape, moved):
    """In a new subspace: the projection of what was lifted; the same numbers; nothing."""
    run = Run(LowRank(Momentum(0.9), 3, Principal(every=1), moved=moved), randn(*shape))
    wide = shape[0] < shape[1]
    turned = (lambda t: t.mT) if wide else (lambda t: t)
    h = randn(*shape, seed=1), randn(*shape, seed=2)
    run.step(h[0])
    lifted, numbers = run.lifted("momentum.buffer", h[0]), turned(run.state["momentum.buffer"].clone())
    run.step(h[1])
    p = run.state["projector.basis"]
    before = {"rotate": turned(lifted) @ p, "keep": numbers, "reset": 0 * numbers}[moved]
    expected = 0.9 * before + 0.1 * turned(h[1]) @ p
    torch.testing.assert_close(turned(run.state["momentum.buffer"]), expected, rtol=1e-12, atol=1e-12)  # rounding


def test_variances_are_permuted_with_waves():
    """A wave that stays keeps its average of squares, to rounding, wherever it stands in the basis; a new one has none.
    Other bases mix them, and they stay positive."""
    adam = AdamScale((0.9, 0.99))
    run = Run(LowRank(adam, 3, Cosine(), side="right", moved="rotate"), randn(4, 6))
    seconds, seen = {}, set()
    for step in range(1, 9):
        h = randn(4, 6, seed=step)
        run.step(h)
        columns = run.state["projector.columns"].tolist()
        p = run.transform.projector.basis(h, 3, {"columns": run.state["projector.columns"]}, Moment(step))
        new = 0.01 * (h @ p).square()
        seconds = {c: 0.99 * seconds.get(c, 0) + new[:, i] for i, c in enumerate(columns)}
        torch.testing.assert_close(
            run.state["adam_scale.second"], torch.stack(list(seconds.values()), -1), rtol=1e-12, atol=0
        )
        seen.add(tuple(columns))
    assert len(seen) > 3


@pytest.mark.parametrize("inner", [AdamScale(amsgrad=True), Quantized(AdamScale(), block=4, smallest=1)], ids=str)
@pytest.mark.parametrize("projector", [Principal(every=1), Power(every=1), Gaussian(every=1), Online(every=5)], ids=str)
def test_variances_stay_positive(inner, projector):
    run = Run(LowRank(inner, 2, projector, moved="rotate"), randn(5, 4))
    for step in range(1, 9):
        assert run.step(randn(5, 4, seed=step)).isfinite().all()
        for key in {k for k in run.state if k.endswith(("second", "largest", "second.scales"))}:
            assert (run.state[key] >= 0).all()


@pytest.mark.parametrize("inner", [AdamScale(), [Momentum(0.9), AdamScale(amsgrad=True)]], ids=["adam", "two"])
def test_a_reset_is_a_fresh_start(inner):
    """In the numbers, and in how they are corrected."""
    h = [randn(6, 4, seed=step) for step in range(6)]
    transform = LowRank(inner, 2, Principal(every=3, spread=False), moved="reset")
    long, fresh = Run(transform, h[0]), Run(transform, h[0])
    for g in h[:3]:
        long.step(g)
    for g in h[3:]:
        assert torch.equal(long.step(g), fresh.step(g))


def test_a_decomposition_that_fails_leaves_the_subspace_where_it_is(monkeypatch):
    def fails(s):
        raise torch.linalg.LinAlgError("it did not converge")

    monkeypatch.setattr(principal, "eigh", fails)
    x = randn(6, 4)
    for projector in (Principal(), Online(), Correlated()):
        state = projector.init(x, 2)
        with pytest.warns(RuntimeWarning, match="the old ones stay: it did not converge"):
            new = projector.before(x, 2, state, Moment(1)) or {}
        assert "basis" not in new
    for build in (lambda p: GaLore([p], projector=Principal(every=200)), lambda p: steepest.COAP([p])):
        weight = nn.Parameter(randn(6, 4))
        optimizer, before = build(weight), weight.detach().clone()
        weight.grad = x.clone()
        with pytest.warns(RuntimeWarning, match="no singular vectors"):
            optimizer.step()
        basis = optimizer.state[weight]["low_rank.projector.basis"].clone()
        weight.grad = randn(6, 4, seed=1)
        optimizer.step()
        assert torch.equal(optimizer.state[weight]["low_rank.projector.basis"], basis)
        assert (weight - before).abs().min() > 0


REFUSED = {
    "rank 0": ({"rank": 0}, ValueError, "rank: got 0"),
    "rank 1.5": ({"rank": 1.5}, ValueError, r"rank: got 1\.5"),
    "rank True": ({"rank": True}, TypeError, "rank: .* True"),
    "side": ({"side": "up"}, ValueError, "side: got 'up', expected one of 'short'"),
    "moved": ({"moved": "x"}, ValueError, "moved: got 'x', expected one of 'keep'"),
    "inner": ({"inner": WeightDecay(0.1)}, ValueError, "inner: weight_decay needs the point itself"),
    "projector": ({"projector": "Principle"}, ValueError, "unknown projector 'Principle': known are .*Principal"),
}


@pytest.mark.parametrize("family", [LowRank, ScaledResidual, ScaleChannels, SparseResidual])
@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name(name, family):
    options, error, message = REFUSED[name]
    with pytest.raises(error, match=message):
        family(**{"inner": AdamScale(), **options})


OWN = {
    "feedback": (lambda: LowRank(AdamScale(), feedback=1.5), "feedback"),
    "factor": (lambda: ScaledResidual(AdamScale(), factor=-1.0), "factor"),
    "growth": (lambda: ScaledResidual(AdamScale(), growth=0.5), "growth"),
    "density": (lambda: SparseResidual(AdamScale(), density=2.0), "density"),
    "warmup": (lambda: SparseResidual(AdamScale(), warmup=0), "warmup"),
    "every": (lambda: Principal(every=0), "every"),
    "iterations": (lambda: Power(iterations=0), "iterations"),
    "order": (lambda: Cosine(order=3), "order"),
    "betas": (lambda: Online(betas=(0.9, 1.0)), r"betas\[1\]"),
    "anew": (lambda: Correlated(anew=0), "anew"),
    "heads": (lambda: OneHead(heads=0), "heads"),
    "momentum": (lambda: OneHead(projector=Correlated()), "projector: Correlated"),
}


@pytest.mark.parametrize("name", OWN)
def test_options_of_one_class_are_refused_by_name(name):
    build, message = OWN[name]
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("option", ["rank", "side", "moved", "inner"])
def test_an_optimiser_refuses_them_as_well(option):
    options, error, message = REFUSED[{"rank": "rank 1.5"}.get(option, option)]
    weight = nn.Parameter(torch.ones(3, 3))
    with pytest.raises(error, match=message):
        GaLore([weight], **options)


# Optimisers. ----------------------------------------------------------------------------------------------------------


def low_rank_names():
    """The optimisers of which a link works in a subspace."""
    weight = nn.Parameter(torch.ones(3, 3))
    built = {name: family([weight], **family.in_suite) for name, family in testing.optimizers().items()}
    chains = {name: optimizer.chain(optimizer.param_groups[0]).links for name, optimizer in built.items()}
    return [name for name, links in chains.items() if any(isinstance(link, Subspace) for link in links)]


NAMES = low_rank_names()


class Both(nn.Module):
    """An orthonormal matrix plus one of rank 2, which are to become a given sum."""

    def __init__(self):
        super().__init__()
        self.layer = constrain(nn.Linear(6, 8, bias=False).double(), "weight", Stiefel())
        self.b, self.a = nn.Parameter(randn(8, 2, seed=1)), nn.Parameter(randn(2, 6, seed=2))
        constrain(self, ("b", "a"), FixedRank())
        self.target = torch.linalg.qr(randn(8, 6, seed=3))[0] + randn(8, 2, seed=4) @ randn(2, 6, seed=5)

    def forward(self):
        return (self.layer.weight + self.b @ self.a - self.target).square().sum()


def step(model, optimizer):
    optimizer.zero_grad()
    model().backward()
    optimizer.step()


@pytest.mark.parametrize(("name", "lr"), [("galore", 1.0), ("fira", 0.1), ("apollo", 0.3), ("coap", 0.3)])
def test_trains_points_of_manifolds(name, lr):
    torch.manual_seed(0)
    model, family = Both(), testing.optimizers()[name]
    optimizer = family(param_groups(model), lr=lr, rank=1, **family.in_suite)
    schedule, first = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, 120), model().item()
    for _ in range(120):
        step(model, optimizer)
        schedule.step()
    assert model().item() < 0.1 * first
    assert optimizer.residual() < 1e-9  # an hundred steps, none of which leaves more than rounding


def test_momentum_follows_its_point():
    """Lifted, carried to where the point is now, and projected on the subspace that was found in the last frame."""
    torch.manual_seed(0)
    model, manifold = Both(), Stiefel()
    weight = model.layer.weight
    options = {"inner": Momentum(0.9), "rank": 2, "projector": Principal(every=100), "weight_decay": 0.0}
    optimizer = GaLore([weight], lr=0.1, **options)
    for _ in range(3):
        before = weight.detach().clone()
        step(model, optimizer)
    (transform, *_), state = optimizer.chain(optimizer.param_groups[0]).links, optimizer.state[weight]
    now, old = weight.detach(), {key: value.clone() for key, value in state.items()}

    def blocks(kept, key="momentum.buffer"):
        parts = [
            {k.removeprefix("low_rank.").removesuffix(f".{name}"): v for k, v in kept.items() if k.endswith(name)}
            for name in manifold.blocks
        ]
        like = manifold.pull(now, torch.zeros_like(now))
        at = Context(manifold, now, 0.1, 3)
        return tuple(transform.first_order(key, part, h, at) for part, h in zip(parts, like, strict=True))

    last = blocks(old)
    conformed = manifold.conform(now, last)
    carried = manifold.carry(before, now, conformed)
    optimizer.state_dict()
    for name, m, moved, still, kept in zip(manifold.blocks, last, carried, conformed, blocks(state), strict=True):
        p = state[f"low_rank.projector.basis.{name}"]
        expected = m + (moved - still) @ p @ p.mT
        torch.testing.assert_close(kept, expected, rtol=1e-12, atol=1e-12)  # some products' worth of rounding


@pytest.mark.parametrize("projector", [Principal(), Gaussian(), Gaussian(orthonormal=True)], ids=repr)
@pytest.mark.parametrize(
    ("manifold", "shape"), [(Stiefel(), (9, 8)), (SPD(), (8, 8)), (FixedRank(), ((9, 4), (4, 8)))], ids=str
)
def test_nothing_of_momentum_is_lost_on_the_way(manifold, shape, projector):
    """Under one gradient, again and again, at a point that as good as stays, it becomes that gradient's projection."""
    generator = torch.Generator().manual_seed(0)
    x = as_tuple(manifold.random_point(shape, generator=generator, dtype=torch.float64))
    params, gradients = [nn.Parameter(t) for t in x], [randn(*t.shape, seed=1) for t in x]
    group = {"params": params, "geometry": manifold, "role": "point"}
    optimizer = GaLore([group], lr=1e-7, rank=2, inner=Momentum(0.5), projector=projector)
    for _ in range(50):
        for p, g in zip(params, gradients, strict=True):
            p.grad = g.clone()
        optimizer.step()
    x = tuple(p.detach() for p in params)
    pulled = as_tuple(manifold.pull(*((x, tuple(gradients)) if len(x) > 1 else (x[0], gradients[0]))))
    for owner, block, h in zip(manifold.owners, manifold.blocks, pulled, strict=True):
        shared = f".{block}" if manifold.owners.count(owner) > 1 else ""
        kept = {key: v for key, v in optimizer.state[params[owner]].items() if key.endswith(shared)}
        tall = h if h.shape[0] >= h.shape[1] else h.mT
        own = {key.split(".")[2]: v for key, v in kept.items() if ".projector." in key}
        basis = projector.basis(tall, 2, own, Moment(50))
        momentum = kept[f"low_rank.momentum.buffer{shared}"]
        momentum = momentum if h.shape[0] >= h.shape[1] else momentum.mT
        torch.testing.assert_close(momentum, tall @ basis, rtol=1e-4, atol=1e-4)  # the point has moved by about 5e-6


class Three(nn.Module):
    """A matrix that steps alone, two that step as one batch, a vector."""

    def __init__(self, seed=0):
        super().__init__()
        shapes = ((7, 5), (4, 6), (4, 6), (3,))
        self.parts = nn.ParameterList(randn(*shape, seed=seed + i) for i, shape in enumerate(shapes))

    def forward(self):
        one, two, three, four = self.parts
        return (one[:4] @ two[:, :5].T - 1).square().mean() + (three @ two.T).tanh().sum() + four.square().sum()


@pytest.mark.parametrize("name", NAMES)
def test_resumes_to_the_bit_across_a_move(name):
    """Saved one step before and one after the subspace moves, as plain tensors and numbers."""
    family = testing.optimizers()[name]
    for saved in (4, 6):
        model, again = Three(), Three(seed=10)
        optimizer = family(param_groups(model), lr=0.05, **family.in_suite)
        for _ in range(saved):
            step(model, optimizer)
        file = io.BytesIO()
        torch.save((model.state_dict(), optimizer.state_dict()), file)
        file.seek(0)
        weights, state = torch.load(file, weights_only=True)
        again.load_state_dict(weights)
        resumed = family(param_groups(again), lr=9.0, **family.in_suite)
        resumed.load_state_dict(state)
        for _ in range(saved, 12):
            step(model, optimizer)
            step(again, resumed)
        assert all(torch.equal(p, q) for p, q in zip(model.parameters(), again.parameters(), strict=True))


def test_low_rank_names_are_found():
    assert {"galore", "fira", "apollo", "flora", "coap", "trion"} <= set(NAMES)


def moves(names, steps=9, sides=(256, 130)):
    """At which steps the subspaces of parameters of these names move."""
    weights = {name: nn.Parameter(torch.zeros(sides)) for name in names}
    optimizer = GaLore(weights.items(), rank=1, projector=Principal(every=4))
    seen, last = {name: [] for name in names}, dict.fromkeys(names)
    for number in range(1, steps + 1):
        for weight in weights.values():
            weight.grad = randn(*sides, seed=number, dtype=torch.float32)
        optimizer.step()
        for name, weight in weights.items():
            basis = optimizer.state[weight]["low_rank.projector.basis"].clone()
            if last[name] is None or not torch.equal(basis, last[name]):
                seen[name].append(number)
            last[name] = basis
    return seen


def test_large_parameters_move_at_different_steps():
    """By their names alone; small ones, which step as a batch, together."""
    names = ["up.weight", "down.weight", "gate.weight"]
    seen = moves(names)
    assert len({tuple(steps) for steps in seen.values()}) > 1
    for steps in seen.values():
        assert steps[0] == 1
        assert all(b - a == 4 for a, b in itertools.pairwise(steps[1:]))
    assert moves(names[1:2]) == {names[1]: seen[names[1]]}
    assert set(map(tuple, moves(names, sides=(8, 4)).values())) == {(1, 5, 9)}
