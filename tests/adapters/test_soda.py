"""SODA: against dense Kronecker products, numbers of the authors' code, and what training must keep."""

import functools
import itertools
import math

import pytest
import torch
from torch import nn

import steepest
from steepest.adapters import SODA, Source
from steepest.adapters import soda as module
from steepest.adapters.soda import even_sizes, kron_product, right_singular_vectors

NAMES = ("Q1", "Q2", "Q3", "Q4", "Q5", "Q6")
SHAPES = {"wide": (5, 12), "tall": (20, 12), "square": (12, 12)}


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def rotation(n, seed):
    q, r = torch.linalg.qr(random(n, n, seed=seed))
    q = q * r.diagonal().sign()
    return torch.cat([q[:, :-1], q[:, -1:] * torch.linalg.det(q)], dim=1)


def made(weight, size=0.5, **options):
    """An adapter on that weight, its rotations and d anywhere."""
    adapter = SODA(**options)
    bases = adapter.bases(Source(weight))
    trained = adapter.start(Source(weight), bases)
    moved = {n: rotation(len(v), seed=i) if n in NAMES else size * random(*v.shape, seed=9) for i, (n, v) in
             enumerate(trained.items())}  # fmt: skip
    return adapter, bases | moved


def kron(t):
    return functools.reduce(torch.kron, [t[name] for name in NAMES if name in t])


def expected(t, weight):
    """W' by a decomposition and a Kronecker product of their own."""
    if "delta" not in t:
        return weight @ kron(t).mT
    u, s, vh = torch.linalg.svd(weight, full_matrices=False)
    return u @ torch.diag((s + t["delta"]).clamp_min(0)) @ vh @ kron(t).mT


@pytest.mark.parametrize("sizes", [(12,), (3, 4), (2, 3, 2), (2, 1, 3, 2), (5, 1), (2, 2, 2, 2, 2, 2)], ids=str)
def test_kron_product_is_that_with_the_dense_matrix(sizes):
    factors = [random(q, q, seed=i) for i, q in enumerate(sizes)]
    x = random(2, 3, math.prod(sizes), seed=50)
    dense = functools.reduce(torch.kron, factors)
    torch.testing.assert_close(kron_product(x, factors), x @ dense, rtol=1e-12, atol=1e-12)  # float64
    assert kron_product(x[:0], factors).shape == (0, 3, math.prod(sizes))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("options", [{}, {"factors": 2}, {"factors": (6, 2)}, {"singular_values": False}], ids=str)
def test_is_the_formula(shape, options):
    weight = random(*shape)
    adapter, t = made(weight, **options)
    if "delta" in t:
        t["delta"][1] = -2 * t["S"][1]  # cut off
    turned = expected(t, weight)
    torch.testing.assert_close(adapter.merge(t, weight), turned, rtol=1e-11, atol=1e-11)
    x = random(2, 3, shape[1], seed=4)
    z = adapter.turn(t, x)
    y = z @ weight.mT if (added := adapter.add(t, z)) is None else z @ weight.mT + added
    torch.testing.assert_close(y, x @ turned.mT, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(adapter.unmerge(t, turned), weight, rtol=1e-11, atol=1e-11)
    assert sum(v.numel() for n, v in t.items() if n in adapter.trained) == adapter.count(*shape)


def test_right_singular_vectors_become_k_v():
    weight = random(10, 12)
    adapter, t = made(weight, size=0.1)
    _, s, vh = torch.linalg.svd(adapter.merge(t, weight), full_matrices=False)
    turned = kron(t) @ t["V"]
    torch.testing.assert_close(vh.mT.mul(turned).sum(0).abs(), torch.ones(10, dtype=torch.float64))
    torch.testing.assert_close(s, t["S"] + t["delta"])  # d is too small to exchange two


def test_numbers_of_the_authors_code():
    """Their `InjectedSODA_SVD` in float64 on W_ij = sin((12 i + j)^2), (4, 12), with tmp_l = {12: (2, 3, 2)}, factors
    expm(A - A^T) with A = (0.3, 0.6, ...) + (number of the factor, from 0) row by row above the diagonal, delta from -2
    to 1, x = (cos 0, cos 1, ...): outputs, sums of the gradients of the sum of outputs. Computed by running it once."""
    weight = (torch.arange(48).double() ** 2).reshape(4, 12).sin()
    adapter = SODA(factors=(2, 3, 2))
    bases = adapter.bases(Source(weight))
    t = bases | adapter.start(Source(weight), bases)
    for i, name in enumerate(NAMES[:3]):
        a = torch.zeros_like(t[name])
        rows, columns = torch.triu_indices(*a.shape, 1)
        a[rows, columns] = torch.arange(1, len(rows) + 1).double() * 0.3 + i
        t[name] = torch.linalg.matrix_exp(a - a.mT).requires_grad_()
    t["delta"] = torch.linspace(-2, 1, 4, dtype=torch.float64).requires_grad_()
    z = adapter.turn(t, torch.arange(12).double().cos()[None])
    y = z @ weight.mT + adapter.add(t, z)
    official = [2.565963265280, 2.426710664608, 0.296549279079, 0.571541399882]
    torch.testing.assert_close(y[0], torch.tensor(official, dtype=torch.float64), rtol=1e-10, atol=1e-10)
    *turns, change = torch.autograd.grad(y.sum(), [t[name] for name in (*NAMES[:3], "delta")])
    sums = torch.tensor([13.326535625533412, -0.5711859289259973, -3.6375193064621496], dtype=torch.float64)
    torch.testing.assert_close(torch.stack([g.sum() for g in turns]), sums, rtol=1e-10, atol=1e-10)
    official = [0.257536533351, 0.671068204738, 1.483292394788, 0.436021843572]
    torch.testing.assert_close(change, torch.tensor(official, dtype=torch.float64), rtol=1e-10, atol=1e-10)


def all_sizes(n, number):
    """Every way to write n as a product, by trial."""
    divisors = [q for q in range(1, n + 1) if n % q == 0]
    return [c for c in itertools.combinations_with_replacement(divisors, number) if math.prod(c) == n]


@pytest.mark.parametrize("n", [1, 7, 12, 36, 64, 100, 210])
@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_factors_are_those_with_the_fewest_numbers(n, number):
    sizes = even_sizes(n, number)
    assert (len(sizes), math.prod(sizes), list(sizes)) == (number, n, sorted(sizes))
    assert sum(q * q for q in sizes) == min(sum(q * q for q in c) for c in all_sizes(n, number))


def test_factors_beside_the_authors():
    """Theirs are written down for the four widths of their model; ours are never more numbers."""
    for n, theirs in {640: (8, 8, 10), 2048: (4, 8, 64), 1280: (4, 16, 20), 768: (6, 8, 16)}.items():
        assert sum(q * q for q in SODA().sizes(n)) <= sum(q * q for q in theirs)
        assert SODA(factors=theirs).sizes(n) == theirs
    assert SODA().sizes(640) == (8, 8, 10)
    assert SODA().count(3072, 768) == 8 * 8 + 8 * 8 + 12 * 12 + 768
    assert SODA(singular_values=False).count(3072, 768) == 8 * 8 + 8 * 8 + 12 * 12


@pytest.mark.parametrize("factors", [0, 7, -1, True, 2.0, "3", (), (2, 0), (2, 2.0), (1,) * 7], ids=str)
def test_wrong_factors_are_refused(factors):
    with pytest.raises(ValueError, match="factors: got"):
        SODA(factors=factors)


def test_sizes_that_do_not_fit_and_wrong_choices_are_refused():
    with pytest.raises(ValueError, match=r"factors: got the sizes \(6, 8, 16\).*768.*100 inputs"):
        SODA(factors=(6, 8, 16)).sizes(100)
    with pytest.raises(ValueError, match="singular_values"):
        SODA(singular_values="yes")


@pytest.mark.parametrize("options", [{}, {"singular_values": False}], ids=str)
def test_gradients(options):
    weight = random(7, 12)
    adapter, t = made(weight, size=0.2, **options)
    names = [n for n in t if n in adapter.trained]

    def both(x, *values):
        moved = t | dict(zip(names, values, strict=True))
        return adapter.turn(moved, x), adapter.merge(moved, weight)

    inputs = [v.clone().requires_grad_() for v in (random(3, 12, seed=8), *(t[n] for n in names))]
    assert torch.autograd.gradcheck(both, inputs)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("rank", [0, 1, 3])
def test_singular_values_that_the_weight_lacks_stay_zero(shape, rank):
    weight = random(shape[0], rank, seed=1) @ random(rank, shape[1], seed=2)
    adapter, t = made(weight, size=3.0)
    t["delta"] = t["delta"].abs()  # the authors' code would give every direction a value
    merged = adapter.merge(t, weight)
    assert merged.isfinite().all()
    assert torch.linalg.matrix_rank(merged) == rank
    s = torch.linalg.svdvals(weight)[:rank] + t["delta"][:rank]
    found = torch.linalg.svdvals(merged)[:rank]
    torch.testing.assert_close(found, s.sort(descending=True).values, rtol=1e-10, atol=1e-10)
    start = adapter.start(Source(weight), {})
    torch.testing.assert_close(adapter.merge(t | start, weight), weight, rtol=0, atol=1e-13)


class Net(nn.Module):
    """A wide layer and a tall one."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.wide, self.tall = nn.Linear(18, 8, dtype=dtype), nn.Linear(8, 15, dtype=dtype)
        with torch.no_grad():
            for i, p in enumerate(self.parameters()):
                p.copy_(random(*p.shape, seed=i) / 3)

    def forward(self, x):
        return self.tall(torch.tanh(self.wide(x)))


def adapted(**options):
    peft = pytest.importorskip("peft")
    return peft.get_peft_model(Net(), steepest.adapters.SODAConfig(target_modules=["wide", "tall"], **options))


def layers(model):
    return [m for m in model.modules() if hasattr(m, "get_delta_weight")]


OPTIMIZERS = {
    "Adam": lambda p: steepest.Adam(p, lr=0.02),
    "Muon": lambda p: steepest.Muon(p, lr=0.02),
    "SGD": lambda p: steepest.SGD(p, lr=0.5, momentum=0.9),
    "Shampoo": lambda p: steepest.Shampoo(p, lr=0.01),
    "Lion": lambda p: steepest.Lion(p, lr=0.003),
}
OFTEN = {"Adam", "Muon"}


@pytest.mark.parametrize(
    "make", [pytest.param(o, id=n, marks=[pytest.mark.slow] * (n not in OFTEN)) for n, o in OPTIMIZERS.items()]
)
@pytest.mark.parametrize("singular_values", [True, False])
def test_training_keeps_rotations_and_gives_the_singular_values_that_d_says(make, singular_values):
    model = adapted(singular_values=singular_values)
    start = [torch.linalg.svdvals(m.get_base_layer().weight.double()) for m in layers(model)]
    optimizer = make(steepest.param_groups(model))
    x, y = random(30, 18, dtype=torch.float32), random(30, 15, seed=1, dtype=torch.float32)
    losses = []
    for _ in range(100):
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    for layer, s in zip(layers(model), start, strict=True):
        t = layer.tensors("default")
        for q in (v.detach().double() for n, v in t.items() if n in NAMES):
            gap = (q.mT @ q - torch.eye(len(q), dtype=torch.float64)).abs().max()
            assert gap <= 20 * torch.finfo(torch.float32).eps  # the retraction's rounding
            assert len(q) == 1 or (q - torch.eye(len(q))).abs().max() > 1e-2, "nothing was turned"
            assert torch.linalg.det(q) > 0
        if singular_values:
            assert t["delta"].abs().max() > 1e-2
            s = (s + t["delta"].detach()).clamp_min(0).sort(descending=True).values
        found = torch.linalg.svdvals((layer.get_base_layer().weight + layer.get_delta_weight("default")).double())
        torch.testing.assert_close(found, s, rtol=1e-5, atol=1e-5 * s[0].item())  # float32


def other_svd(weight, full_matrices=True, _svd=torch.linalg.svd):
    """As valid a decomposition, of other signs: those of every second pair of vectors."""
    u, s, vh = _svd(weight, full_matrices=full_matrices)
    signs = torch.ones(vh.shape[-2], dtype=vh.dtype)
    signs[1::2] = -1
    return u * signs[: u.shape[-1]], s, vh * signs[:, None]


@pytest.mark.parametrize("fixed", [True, False], ids=["signs fixed", "signs found by the probe"])
@pytest.mark.parametrize("svd", [torch.linalg.svd, other_svd], ids=["same", "other"])
def test_reload_with_another_decomposition_is_the_same_model(monkeypatch, tmp_path, fixed, svd):
    peft = pytest.importorskip("peft")
    if not fixed:
        monkeypatch.setattr(module, "fix_signs", lambda v: v)
    model, x = adapted(init_weights=False), random(6, 18, seed=3, dtype=torch.float32)
    model.save_pretrained(tmp_path)
    before = layers(model)[0].tensors("default")["V"]
    monkeypatch.setattr(torch.linalg, "svd", svd)
    if not fixed and svd is other_svd:
        other = right_singular_vectors(Net().wide.weight.double())
        assert (other - before).abs().max() > 0.1, "the other decomposition is the same"
    loaded = peft.PeftModel.from_pretrained(Net(), tmp_path)
    torch.testing.assert_close(loaded(x), model(x), rtol=1e-5, atol=1e-5)  # float32


def test_another_base_model_is_refused(tmp_path):
    peft = pytest.importorskip("peft")
    adapted(init_weights=False).save_pretrained(tmp_path)
    other = Net()
    with torch.no_grad():
        other.tall.weight.copy_(random(15, 8, seed=77))
    with pytest.raises((ValueError, RuntimeError), match="base model"):
        peft.PeftModel.from_pretrained(other, tmp_path)
