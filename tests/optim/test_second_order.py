"""Shampoo, SOAP and what they are made of: rotations, tiles, grafting, roots, few bits."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch

from steepest import SOAP, SPD, Adam, FixedRank, Shampoo, Shampoo4bit, Stiefel
from steepest.bases import Eigenbasis, RandomBasis
from steepest.bases.eigen import turned
from steepest.linalg import inverse_root as roots
from steepest.manifolds import Euclidean
from steepest.testing.transform import Run
from steepest.transforms import (
    AdamScale,
    Context,
    Graft,
    Momentum,
    Precondition,
    PreconditionFactored,
    Quantized,
    Rotate,
    Tiled,
    WeightDecay,
    chain,
)
from steepest.transforms import precondition as module
from steepest.transforms.precondition_factored import rectified


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


class Alone:
    """A transform fed with matrices."""

    def __init__(self, transform, like, phase=0):
        self.chain, self.phase = chain(transform), phase
        self.states = self.chain.init((like,), self.context(1))

    def context(self, step):
        return Context(Euclidean(), None, 0.1, step, phase=self.phase)

    def step(self, number, h):
        return self.chain.update((h,), self.states, self.context(number))[0]


# Rotation. ------------------------------------------------------------------------------------------------------------


def test_a_fixed_basis_is_the_inner_chain_between_two_products():
    q = {n: RandomBasis(3).matrix(randn(n, 1), {}) for n in (6, 4)}
    run, plain = Alone(Rotate(AdamScale(), RandomBasis(3)), randn(6, 4)), Alone(AdamScale(), randn(6, 4))
    for step in (1, 2, 3):
        h = randn(6, 4, seed=step)
        torch.testing.assert_close(run.step(step, h), q[6] @ plain.step(step, q[6].mT @ h @ q[4]) @ q[4].mT)


@pytest.mark.parametrize("sides", ["both", "left", "right"])
@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (3, 5, 2)], ids=str)
def test_momentum_turns_with_the_basis(shape, sides):
    """Averaging is the same in every basis, if the average follows each turn exactly."""
    run = Alone(Rotate(Momentum(0.9), Eigenbasis(0.9, 2), sides), randn(*shape))
    plain = Alone(Momentum(0.9), randn(*shape))
    assert not run.step(1, randn(*shape)).any()  # it only looks
    for step in range(2, 12):
        h = randn(*shape, seed=step)
        torch.testing.assert_close(run.step(step, h), plain.step(step - 1, h))


def test_the_basis_becomes_that_of_the_eigenvectors():
    """One step of the QR algorithm after another, for a matrix that stays, whose eigenvalues have a ratio of 0.7: in
    100 steps to 0.7^100; every column where its predecessor was."""
    v = torch.linalg.qr(randn(6, 6))[0]
    s = (v * 0.7 ** torch.tensor([3.0, 1, 0, 4, 2, 5], dtype=torch.float64)) @ v.mT
    q = torch.linalg.qr(v + 0.05 * randn(6, 6, seed=1))[0]
    for _ in range(100):
        q = turned(s, q)
    torch.testing.assert_close((v.mT @ q).abs(), torch.eye(6, dtype=torch.float64), rtol=0, atol=1e-12)


def test_soap_is_adam_in_the_eigenbasis_of_both_covariances():
    """The paper's algorithm 3 written down, for gradients that have the same singular vectors throughout: Adam on their
    singular values, where order and signs of axes make no difference."""
    u, v = (torch.linalg.qr(randn(5, 5, seed=seed))[0] for seed in (1, 2))
    run = Alone(Rotate(AdamScale((0.9, 0.8)), Eigenbasis(0.8, 1, shift=0.0)), u)
    m, w = torch.zeros(5, dtype=torch.float64), torch.zeros(5, dtype=torch.float64)
    assert not run.step(1, (u * 0.5 ** torch.arange(5)) @ v.mT).any()
    for t in range(1, 6):
        s = 0.5 ** torch.arange(5, dtype=torch.float64) * (1 + t)
        m, w = 0.9 * m + 0.1 * s, 0.8 * w + 0.2 * s**2
        step = (m / (1 - 0.9**t)) / ((w / (1 - 0.8**t)).sqrt() + 1e-8)
        # off the diagonal there is rounding, 1e-16 of numbers up to 6, over eps = 1e-8
        torch.testing.assert_close(run.step(t + 1, (u * s) @ v.mT), (u * step) @ v.mT, rtol=0, atol=1e-6)


# Tiles and grafting. --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inner", [Precondition(), AdamScale(), Momentum(0.9)], ids=lambda t: t.name)
@pytest.mark.parametrize("shape", [(7, 5), (3, 9), (2, 2), (6, 4), (2, 8, 7)], ids=str)
def test_every_tile_is_alone(shape, inner):
    size, run = 3, Alone(Tiled(inner, 3), randn(*shape))
    *_, m, n = shape
    places = list(itertools.product(range(0, m, size), range(0, n, size)))
    tiles = {(i, j): (..., slice(i, i + size), slice(j, j + size)) for i, j in places}
    alone = {place: Alone(inner, randn(*shape)[at].clone()) for place, at in tiles.items()}
    for step in (1, 2, 3):
        h = randn(*shape, seed=step)
        out = run.step(step, h)
        for place, at in tiles.items():
            torch.testing.assert_close(out[at], alone[place].step(step, h[at].clone()))


def test_tiles_carry_momentum_with_the_point():
    """On a manifold, momentum in tiles is what it is without them."""
    manifold, shape = Stiefel(), (6, 3)
    tiled, plain = (Run(t, manifold, shape) for t in (Tiled(Momentum(0.9), 2), Momentum(0.9)))
    for step in (1, 2):
        for a, b in zip(tiled.step(step), plain.step(step), strict=True):
            torch.testing.assert_close(a, b)
    key_of = [run.chain.carried[0].split(".")[-1] for run in (tiled, plain)]
    assert key_of == ["buffer", "buffer"]
    seen = []
    for run in (tiled, plain):
        run.chain.carry(run.states, run.gradient(0), run.context, lambda b: seen.append(b) or b, lambda b: b)
    for a, b in zip(*seen, strict=True):
        torch.testing.assert_close(a, b)


def test_a_grafted_step_has_one_direction_and_anothers_length():
    h = randn(3, 6, 4)
    d, s = Alone(Precondition(), h).step(1, h), Alone(AdamScale(), h).step(1, h)
    out = Alone(Graft(Precondition(), AdamScale()), h).step(1, h)
    torch.testing.assert_close(out / out.norm(dim=(-2, -1), keepdim=True), d / d.norm(dim=(-2, -1), keepdim=True))
    torch.testing.assert_close(out.norm(dim=(-2, -1)), s.norm(dim=(-2, -1)))
    assert not Alone(Graft(Precondition()), h).step(1, h * 0).any()
    late = Alone(Graft(Precondition(), AdamScale(), 2), h)
    torch.testing.assert_close(late.step(1, h), s)


# Roots. ---------------------------------------------------------------------------------------------------------------


def test_shampoo_squared_is_one_power_iteration_to_the_nearest_kronecker_product():
    """Of the covariance H of gradients, by Van Loan's rearrangement, from the identity; to the power -1/2."""
    gradients, (m, n) = randn(40, 3, 4), (3, 4)
    vectors = gradients.reshape(40, -1)
    h = (vectors.mT @ vectors).numpy()
    rearranged = h.reshape(m, n, m, n).transpose(0, 2, 1, 3).reshape(m * m, n * n)
    right = (rearranged.T @ np.eye(m).ravel()).reshape(n, n)
    left = (rearranged @ np.eye(n).ravel()).reshape(m, m)
    nearest = np.kron(left, right) / np.trace(left)
    w, v = np.linalg.eigh(nearest)
    expected = (v * w**-0.5) @ v.T @ vectors[-1].numpy()
    run = Alone(Precondition(power=0.5, eps=0.0), gradients[0])
    for step, g in enumerate(gradients, 1):
        out = run.step(step, g)
    np.testing.assert_allclose(out.numpy().ravel(), expected, rtol=1e-9)


def test_the_unit_of_gradients_makes_no_difference():
    for transform in (Precondition(), Precondition(power=0.5, beta=0.9, debias=True), PreconditionFactored(every=1)):
        steps = []
        for unit in (1.0, 1e-6):
            run = Alone(transform, randn(5, 4))
            steps.append([run.step(t, unit * randn(5, 4, seed=t)) for t in (1, 2, 3)])
        for a, b in zip(*steps, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("fields", "phase", "steps"),
    [
        ({"every": 4}, 0, [1, 5, 9]),
        ({"every": 4, "early": 3}, 0, [1, 2, 3, 5, 9]),
        ({"every": 4}, 3, [1, 2, 6, 10]),
        ({"every": 4, "spread": False}, 3, [1, 5, 9]),
    ],
)
def test_roots_are_computed_when_they_are_due(fields, phase, steps, monkeypatch):
    seen, step = [], 0

    def counted(s, power, eps):
        seen.append(step)
        return roots.inverse_root(s, power, eps)

    monkeypatch.setattr(module, "inverse_root", counted)
    run = Alone(Precondition(**fields), randn(4, 3), phase)
    for step in range(1, 11):
        run.step(step, randn(4, 3, seed=step))
    assert seen == [s for s in steps for _ in range(2)]


def test_a_root_that_is_not_found_stays_what_it_was(monkeypatch):
    def fail(*_):
        raise torch.linalg.LinAlgError("did not converge")

    run = Alone(Precondition(), randn(4, 3))
    run.step(1, randn(4, 3, seed=1))
    before = {k: v.clone() for k, v in run.states[0].items() if k.endswith("root")}
    monkeypatch.setattr(module, "inverse_root", fail)
    with pytest.warns(RuntimeWarning, match="the old one stays"):
        out = run.step(2, randn(4, 3, seed=2))
    assert out.isfinite().all()
    assert all(torch.equal(run.states[0][k], v) for k, v in before.items())


@pytest.mark.parametrize(
    "transform", [Precondition(), Rotate(AdamScale(), Eigenbasis(every=1)), PreconditionFactored(every=1)], ids=str
)
def test_a_gradient_that_overflows_when_squared_spoils_no_state(transform):
    run = Alone(transform, randn(4, 3, dtype=torch.float32))
    for step in range(1, 6):
        h = randn(4, 3, seed=step, dtype=torch.float32)
        run.step(step, h * 1e25 if step == 3 else h)
    statistics = {k: v for k, v in run.states[0].items() if "adam" not in k}
    assert all(v.isfinite().all() for v in statistics.values())


def test_options_are_refused_by_name():
    x = [torch.nn.Parameter(torch.ones(2, 2))]
    with pytest.raises(ValueError, match="graft: got 'adan', expected None or one of 'adam'"):
        Shampoo(x, graft="adan")
    with pytest.raises(ValueError, match="sides: got 'up'"):
        SOAP(x, sides="up")
    with pytest.raises(ValueError, match=r"debias: .* choose a beta below 1"):
        Precondition(debias=True)
    with pytest.raises(ValueError, match="inner: weight_decay needs the point itself"):
        Rotate(WeightDecay(0.1))


# Few bits. ------------------------------------------------------------------------------------------------------------


def test_four_bits_cost_an_eighth():
    """Two matrices of 256 x 256 in 4 bits with a scale to 64, and vectors; in 32 bits four of them."""
    bytes_of = {}
    for bits in (32, 4):
        x = torch.nn.Parameter(torch.zeros(256, 256))
        optimizer = Shampoo4bit([x], momentum=0.0, bits=bits)
        x.grad = randn(256, 256, dtype=torch.float32)
        optimizer.step()
        state = {k: v for k, v in optimizer.state[x].items() if k != "step" and "momentum" not in k}
        bytes_of[bits] = sum(v.numel() * v.element_size() for v in state.values())
    assert bytes_of[32] == 4 * (4 * 256**2 + 4 * 256)
    assert bytes_of[4] == 4 * (256**2 // 2 + 4 * 256**2 // 64 + 4 * 256)
    assert bytes_of[32] / bytes_of[4] > 6.9


def test_rectified_vectors_are_orthonormal_again():
    q = torch.linalg.qr(randn(64, 64))[0]
    noisy = q + 0.02 * randn(64, 64, seed=1)
    eye = torch.eye(64, dtype=torch.float64)
    gaps = [torch.linalg.matrix_norm(rectified(noisy, k).mT @ rectified(noisy, k) - eye, 2).item() for k in range(5)]
    assert gaps[0] > 0.3
    assert all(b <= 0.8 * a * max(a, 1e-14 / a) + 1e-13 for a, b in itertools.pairwise(gaps))  # 3/4 e^2 + e^3/4


def test_four_bits_in_eigenvectors_do_less_harm_than_in_statistics():
    """Steps after 20 gradients with singular values from 1 to 0.01, against 32 bits: by the cosine, 0.94 where the
    vectors are quantised, and 0.6 where statistics themselves are, which then have eigenvalues below zero."""
    u, v = (torch.linalg.qr(randn(64, 64, seed=s))[0] for s in (1, 2))
    size = torch.logspace(0, -2, 64, dtype=torch.float64)
    factored, plain = PreconditionFactored(0.9, 1e-4, 1, 1), Precondition(0.9, 1e-4)
    runs = [
        Alone(transform, u)
        for transform in (
            dataclasses.replace(factored, rectify=(0, 0)),
            Quantized(factored, 4, 64),
            plain,
            Quantized(plain, 4, 64),
        )
    ]
    for step in range(1, 21):
        h = (u * size) @ v.mT + 0.05 * (u * size) @ randn(64, 64, seed=step) @ (v * size).mT
        steps = [run.step(step, h) for run in runs]
    cosines = [((a * b).sum() / a.norm() / b.norm()).item() for a, b in (steps[:2], steps[2:])]
    assert cosines[0] > 0.9
    assert cosines[1] < 0.8


# What it is for. ------------------------------------------------------------------------------------------------------


def quadratic(condition, n=6, seed=0):
    """A, B with condition(A (x) B) as asked for."""
    out = []
    for s in (1, 2):
        q = torch.linalg.qr(randn(n, n, seed=seed + s))[0]
        out.append((q * torch.logspace(0, -math.log10(condition) / 2, n, dtype=torch.float64)) @ q.mT)
    return out


def test_shampoo_squared_does_not_feel_the_condition_of_a_kronecker_hessian():
    """f(X) = tr(A X B X^T) / 2. Gradients at independent normal X have the covariance (A (x) B)^2, so that its inverse
    root is Newton's step. With the roots after 6000 of them the descent from a normal start falls alike at conditions
    of 1, 1e3 and 1e6: within the 10% that 6000 samples leave."""
    count, lr, curves = 6000, 0.2, []
    for condition in (1.0, 1e3, 1e6):
        a, b = quadratic(condition)
        run = Alone(Precondition(power=0.5, eps=1e-14, every=2 * count), a, phase=count + 1)
        for t, x in enumerate(randn(count, 6, 6), 1):
            run.step(t, a @ x @ b)
        start = x = randn(6, 6, seed=1)
        curve = []
        for t in range(count + 1, count + 21):
            x = x - lr * math.sqrt(count) * run.step(t, a @ x @ b)
            curve.append((x.norm() / start.norm()).item())
        curves.append(torch.tensor(curve))
    assert curves[0][-1] < 0.02
    for curve in curves[1:]:
        assert ((curve / curves[0]).log().abs() < 0.1).all()


PLACES = {"Stiefel": (Stiefel(), (12, 4)), "SPD": (SPD(), (8, 8)), "FixedRank": (FixedRank(), ((12, 3), (3, 10)))}
METHODS = {
    "Adam": lambda p, lr: Adam(p, lr, betas=(0.95, 0.95)),
    "Shampoo": lambda p, lr: Shampoo(p, lr, beta=0.95),
    "SOAP": lambda p, lr: SOAP(p, lr, weight_decay=0.0),
}


def ill_conditioned(place, method, lr, steps=200):
    """tr(A D B D^T) / 2 with D = W(x) - W(y), A and B of condition 1e3 each, under a cosine schedule; its share that is
    left."""
    manifold, shape = PLACES[place]
    generator = torch.Generator().manual_seed(0)
    x, y = (manifold.random_point(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    params = [torch.nn.Parameter(t) for t in (x if manifold.arity > 1 else (x,))]

    def matrix(p):
        return p[0] @ p[1] if manifold.arity > 1 else p[0]

    target = matrix(y if manifold.arity > 1 else (y,))
    (a, _), (b, _) = (quadratic(1e6, n, seed) for n, seed in zip(target.shape, (0, 7), strict=True))
    b = a if place == "SPD" else b
    optimizer = METHODS[method]([{"params": params, "geometry": manifold, "role": "point"}], lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        d = matrix(params) - target
        loss = (a @ d @ b * d).sum() / 2
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
        schedule.step()
    return losses[-1] / losses[0]


RATES = {
    "Stiefel": {"Adam": 1.0, "Shampoo": 3.0, "SOAP": 1.0},
    "SPD": {"Adam": 0.1, "Shampoo": 0.3, "SOAP": 0.03},
    "FixedRank": {"Adam": 1.0, "Shampoo": 3.0, "SOAP": 0.3},
}
"""The best of 0.01, 0.03, ..., 3 for each."""


@pytest.mark.parametrize("place", PLACES)
def test_in_one_frame_shampoo_and_soap_need_fewer_steps_than_adam(place):
    left = {method: ill_conditioned(place, method, RATES[place][method]) for method in METHODS}
    assert left["Shampoo"] < left["Adam"] / 10
    assert left["SOAP"] < left["Adam"] / 2
