"""QGOFT: against dense matrices of planes, and against the authors' code where that is right."""

import math

import pytest
import torch

from steepest.adapters import QGOFT, Source
from steepest.adapters.givens import givens, levels

SIZES = (1, 2, 3, 5, 8, 12, 13, 16)


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def pairs(n):
    """The planes of all levels, by a tournament: of those that are still in, neighbours meet, and the first goes on."""
    rounds, standing = [], list(range(n))
    while len(standing) > 1:
        rounds.append(list(zip(standing[::2], standing[1::2], strict=False)))
        standing = standing[::2]
    return rounds


def dense(n, blocks):
    """G_L ... G_2 G_1, one plane after the other: `blocks` are 2 x 2 matrices in the order of the planes."""
    product = torch.eye(n, dtype=torch.float64)
    for (i, j), block in zip([pair for level in pairs(n) for pair in level], blocks, strict=True):
        one = torch.eye(n, dtype=torch.float64)
        one[i, i], one[i, j], one[j, i], one[j, j] = block.flatten()
        product = one @ product
    return product


def turns(theta):
    """[[cos, -sin], [sin, cos]] for each angle."""
    return torch.stack([theta.cos(), -theta.sin(), theta.sin(), theta.cos()], -1).unflatten(-1, (2, 2))


def made(n, seed=0, size=1.0, **options):
    """An adapter with random numbers, of that size, and its weight (5, n)."""
    adapter, weight = QGOFT(**options), random(5, n, seed=99)
    start = adapter.start(Source(weight), {})
    return adapter, {k: size * random(*v.shape, seed=seed + i) for i, (k, v) in enumerate(start.items())}, weight


def published(x, angles=None, blocks=None, scaler=None):
    """What the authors' code makes of rows x, as a formula: on every level c * x + s * x~ with x~ = (-x_1, x_0, -x_3,
    x_2, ...), neighbours exchanged, and c, s vectors that hold a level's numbers at its own coordinates; last level
    first, factors at the end. One entry of `blocks` or of `angles` to a plane."""
    n = x.shape[-1]
    blocks = turns(math.pi * torch.tanh(angles)) if blocks is None else blocks
    found, at = [], 0
    for level in pairs(n):
        c, s = torch.ones(n, dtype=x.dtype), torch.zeros(n, dtype=x.dtype)
        for (i, j), block in zip(level, blocks[at:], strict=False):
            c[i], c[j], s[i], s[j] = block[0, 0], block[1, 1], -block[0, 1], block[1, 0]
        found.append((c, s))
        at += len(level)
    for c, s in reversed(found):
        x = c * x + s * torch.stack([-x[..., 1::2], x[..., ::2]], -1).flatten(-2)
    return x if scaler is None else x * scaler


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("relaxed", [True, False])
@pytest.mark.parametrize("scale", [True, False])
def test_is_the_product_of_its_planes(n, relaxed, scale):
    adapter, t, weight = made(n, relaxed=relaxed, scale=scale)
    blocks = t["blocks"] + torch.eye(2, dtype=torch.float64) if relaxed else turns(t["theta"])
    matrix = dense(n, blocks).mT
    if scale:
        matrix = torch.diag(1 + t["scale"]) @ matrix
    x = random(2, 3, n, seed=7)
    torch.testing.assert_close(adapter.turn(t, x), x @ matrix.mT, rtol=1e-12, atol=1e-12)  # float64
    torch.testing.assert_close(adapter.turn_back(t, x), x @ matrix, rtol=1e-12, atol=1e-12)
    merged = adapter.merge(t, weight)
    torch.testing.assert_close(merged, weight @ matrix, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(x @ merged.mT, adapter.turn(t, x) @ weight.mT, rtol=1e-11, atol=1e-11)
    assert sum(v.numel() for v in t.values()) == adapter.count(5, n)


@pytest.mark.parametrize("n", SIZES)
def test_there_are_n_minus_one_planes_in_log_n_levels(n):
    assert [planes for _, planes in levels(n)] == [len(level) for level in pairs(n)]
    assert sum(planes for _, planes in levels(n)) == n - 1
    assert len(levels(n)) == math.ceil(math.log2(n))
    for (s, planes), level in zip(levels(n), pairs(n), strict=True):
        assert level == [(2 * j * s, 2 * j * s + s) for j in range(planes)]


def test_counts():
    assert QGOFT().count(7, 768) == 4 * 767
    assert QGOFT(scale=True).count(7, 768) == 4 * 767 + 768
    assert QGOFT(relaxed=False).count(7, 768) == 767
    assert QGOFT(relaxed=False, scale=True).count(7, 768) == 2 * 768 - 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("n", [4, 5, 8, 16, 100])
def test_the_published_turning_is_no_rotation_and_ours_is(n, dtype):
    theta, identity = random(n - 1, dtype=dtype), torch.eye(n, dtype=dtype)
    ours = QGOFT(relaxed=False).turn({"theta": theta}, identity)
    gap = torch.linalg.matrix_norm(ours @ ours.mT - identity)
    assert gap <= 20 * math.sqrt(n) * torch.finfo(dtype).eps  # some rounding in each of the n rows
    if n % 2:
        return  # the published formula exchanges neighbours, which an odd number has not
    theirs = published(identity, angles=torch.full((n - 1,), 0.4, dtype=dtype))
    assert torch.linalg.matrix_norm(theirs @ theirs.mT - identity) > 1


def test_is_the_published_turning_where_that_is_right():
    x, angle = random(6, 2), torch.tensor([0.4], dtype=torch.float64)
    scaler = 1 + random(2, seed=3)
    theirs = published(x, angles=angle, scaler=scaler)
    ours = QGOFT(relaxed=False, scale=True).turn({"theta": -math.pi * torch.tanh(angle), "scale": scaler - 1}, x)
    torch.testing.assert_close(ours, theirs)
    blocks = random(1, 2, 2, seed=4)
    ours = QGOFT().turn({"blocks": blocks.mT - torch.eye(2, dtype=torch.float64)}, x)
    torch.testing.assert_close(ours, published(x, blocks=blocks))


@pytest.mark.parametrize("n", [4, 8, 10])
def test_the_first_level_is_the_published_one(n):
    """On the first level neighbours are what meets; the others are left at rest here."""
    x, first = random(6, n), n // 2
    angles = torch.zeros(n - 1, dtype=torch.float64)
    angles[:first] = random(first, seed=1)
    ours = QGOFT(relaxed=False).turn({"theta": -math.pi * torch.tanh(angles)}, x)
    torch.testing.assert_close(ours, published(x, angles=angles))
    blocks = torch.eye(2, dtype=torch.float64).repeat(n - 1, 1, 1)
    blocks[:first] = random(first, 2, 2, seed=2)
    ours = QGOFT().turn({"blocks": blocks.mT - torch.eye(2, dtype=torch.float64)}, x)
    torch.testing.assert_close(ours, published(x, blocks=blocks))


def test_numbers_of_the_authors_code():
    """Their layer (`strict_oft=True`, class givens.Linear of peft-givens) with W = I, two inputs, givens_hard = 0.3 and
    givens_scaler = (2, -1), on the row (1, 2): computed by running it once."""
    angle = torch.tensor([0.3], dtype=torch.float64)
    x = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    scaler = torch.tensor([2.0, -1.0], dtype=torch.float64)
    ours = QGOFT(relaxed=False, scale=True).turn({"theta": -math.pi * torch.tanh(angle), "scale": scaler - 1}, x)
    torch.testing.assert_close(
        ours, torch.tensor([[-1.9514163, -2.0119627]], dtype=torch.float64), rtol=1e-6, atol=1e-6
    )  # float32


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("seed", range(3))
def test_any_vector_can_be_turned_onto_the_first_axis(n, seed):
    """The proof of theorem 4.1: in each plane the angle that leaves nothing of the second coordinate."""
    v = random(n, seed=seed)
    w, theta = v.clone(), []
    for i, j in (pair for level in pairs(n) for pair in level):
        theta.append(-torch.atan2(w[j], w[i]))
        w[i], w[j] = torch.hypot(w[i], w[j]), 0.0
    theta = torch.stack(theta) if theta else v.new_zeros(0)
    axis = torch.zeros(n, dtype=torch.float64)
    axis[0] = v.norm() if n > 1 else v[0]
    t = {"theta": theta}
    torch.testing.assert_close(QGOFT(relaxed=False).merge(t, v[None]), axis[None], rtol=0, atol=1e-12)  # a row of W
    torch.testing.assert_close(givens(theta, v[None]), axis[None], rtol=0, atol=1e-12)


def test_penalty_is_the_sum_of_squared_inner_products_of_columns():
    adapter, t, _ = made(12, regularizer=0.7)
    free = t["blocks"] + torch.eye(2, dtype=torch.float64)
    expected = 0.7 * sum((m[:, 0] @ m[:, 1]) ** 2 for m in free)
    torch.testing.assert_close(adapter.penalty(t), expected)
    angles = torch.linspace(0, 3, 11, dtype=torch.float64)
    stretched = turns(angles) @ torch.diag(torch.tensor([3.0, 0.2], dtype=torch.float64))  # columns at right angles
    at_rest = adapter.penalty({"blocks": stretched - torch.eye(2, dtype=torch.float64)})
    assert abs(at_rest) < 1e-28  # squares of rounding
    start = QGOFT().start(Source(random(5, 12)), {})
    assert QGOFT().penalty(start) == 0
    assert QGOFT(regularizer=0.0).penalty(t) is None
    assert QGOFT(relaxed=False).penalty({}) is None


@pytest.mark.parametrize("n", [5, 8])
@pytest.mark.parametrize(
    "options", [{}, {"scale": True}, {"relaxed": False}, {"relaxed": False, "scale": True}], ids=str
)
def test_gradients(n, options):
    adapter, t, _ = made(n, **options)
    names = list(t)

    def both(x, *values):
        t = dict(zip(names, values, strict=True))
        terms = [adapter.turn(t, x), adapter.turn_back(t, x)]
        return terms if (extra := adapter.penalty(t)) is None else [*terms, extra]

    inputs = [v.clone().requires_grad_() for v in (random(3, n, seed=8), *t.values())]
    assert torch.autograd.gradcheck(both, inputs)
    assert torch.autograd.gradgradcheck(both, inputs, fast_mode=True)


@pytest.mark.parametrize("n", [7, 16])
def test_angles_keep_singular_values_and_free_planes_do_not(n):
    adapter, t, weight = made(n, size=3.0, relaxed=False)
    before = torch.linalg.svdvals(weight)
    merged = adapter.merge(t, weight)
    torch.testing.assert_close(torch.linalg.svdvals(merged), before, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(adapter.unmerge(t, merged), weight, rtol=1e-12, atol=1e-12)
    for options in ({"relaxed": True}, {"relaxed": False, "scale": True}):
        other, t, _ = made(n, **options)
        assert not other.orthogonal()
        assert (torch.linalg.svdvals(other.merge(t, weight)) - before).abs().max() > 0.1


def test_costs_grow_linearly():
    """Elements that the operations write for an input: about 7 n on each level, never n^2."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        most = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            self.most = max(self.most, *(v.numel() for v in torch.utils._pytree.tree_leaves(out) if torch.is_tensor(v)))
            return out

    for options in ({}, {"relaxed": False}):
        adapter, t, _ = made(512, **options)
        leaves = {k: v.requires_grad_() for k, v in t.items()}
        with Largest() as seen:
            adapter.turn(leaves, random(1, 512)).sum().backward()
        assert seen.most <= 4 * 512  # the entries of the planes themselves


def test_wrong_options_are_refused_by_name():
    for name, value in (("relaxed", 2), ("scale", "yes"), ("regularizer", -1.0)):
        with pytest.raises(ValueError, match=name):
            QGOFT(**{name: value})
