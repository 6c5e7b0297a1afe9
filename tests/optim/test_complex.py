"""Complex parameters: the inner product is Re tr(a^H b), for which torch's gradient is the gradient.

Two oracles. A complex matrix acts on real vectors as [[Re, -Im], [Im, Re]], and what is linear, a product, a conjugate
transpose or a power of a Hermitian matrix passes through that embedding. And entrywise, a complex tensor is a real one
with an axis more. `CLOSE` is rounding of a few steps on small matrices, times a condition below 1e3.
"""

import copy
import io
import math

import pytest
import torch
from torch import nn

import steepest
from steepest import Euclidean, Muon, Product, Shampoo, clip_grad_norm_, constrain, param_groups, testing
from steepest.norms import Columns, Frobenius, Max, Norm, Nuclear, Rows, Spectral, StiefelSpectral
from steepest.optim import OPTIMIZERS
from steepest.transforms import ClipNorm, Context, Transform, chain

CLOSE = {"rtol": 1e-9, "atol": 1e-10}
ALL = {name: family for name, family in OPTIMIZERS.items() if name != "composed" and "steepest" in family.__module__}
every = pytest.mark.parametrize("name", ALL)


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.complex128) -> torch.Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def embed(z: torch.Tensor) -> torch.Tensor:
    return torch.cat([torch.cat([z.real, -z.imag], -1), torch.cat([z.imag, z.real], -1)], -2)


def run(optimizer: torch.optim.Optimizer, grads: list[torch.Tensor]) -> torch.Tensor:
    (p,) = optimizer.param_groups[0]["params"]
    for g in grads:
        p.grad = g.clone()
        optimizer.step()
    return p.detach()


# Through the embedding. -----------------------------------------------------------------------------------------------

EMBEDDED = {
    "sgd": lambda p: steepest.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    "muon": lambda p: Muon(p, lr=0.1, norm=Spectral("exact"), weight_decay=0.1),
    "shampoo": lambda p: Shampoo(p, lr=0.1, eps=1e-4, weight_decay=0.1),
    "averaged shampoo": lambda p: Shampoo(p, lr=0.1, eps=1e-4, beta=0.9, every=2),
}


@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (4, 4)], ids=str)
@pytest.mark.parametrize("name", EMBEDDED)
def test_equals_the_real_embedding(name, shape):
    start, grads = randn(*shape), [randn(*shape, seed=seed) for seed in range(1, 6)]
    ours = run(EMBEDDED[name]([nn.Parameter(start.clone())]), grads)
    theirs = run(EMBEDDED[name]([nn.Parameter(embed(start))]), [embed(g) for g in grads])
    torch.testing.assert_close(embed(ours), theirs, **CLOSE)


@pytest.mark.parametrize("shape", [(5, 3), (4, 4)], ids=str)
@pytest.mark.parametrize("scale", [1.0, 2**0.5])
def test_stiefel_spectral_equals_its_real_embedding(shape, scale):
    """The iteration uses nothing but what passes through, so that even its intermediate points agree."""
    x, g = torch.linalg.qr(randn(*shape))[0], randn(*shape, seed=1)
    inside = x.mH @ g
    blocks = (inside - inside.mH) / 2, g - x @ inside
    norm = StiefelSpectral(scale)
    real = norm.dual(tuple(embed(b) for b in blocks))
    for a, b in zip(norm.dual(blocks), real, strict=True):
        torch.testing.assert_close(embed(a), b, rtol=1e-6, atol=1e-7)  # 60 steps, each amplifies what rounding differs
    torch.testing.assert_close(norm.value(blocks), norm.value(tuple(embed(b) for b in blocks)), **CLOSE)


# Muon. ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
@pytest.mark.parametrize("shape", [(6, 3), (3, 6), (5, 5), (300, 20)], ids=str)
def test_muon_step_has_unit_singular_values(shape, dtype):
    p = nn.Parameter(torch.zeros(shape, dtype=dtype))
    g = randn(*shape, seed=1).to(dtype)
    step = -run(Muon([p], lr=1.0, norm=Spectral("exact"), scale="none", momentum=0.0, nesterov=False), [g])
    u, _, vh = torch.linalg.svd(g.to(torch.complex128), full_matrices=False)
    tolerance = 1e-5 if dtype == torch.complex64 else 1e-11  # eps times a condition below 100
    torch.testing.assert_close(
        torch.linalg.svdvals(step), torch.ones(min(shape), dtype=dtype.to_real()), rtol=tolerance, atol=0
    )
    torch.testing.assert_close(step.to(torch.complex128), u @ vh, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    "norm", [Spectral(), Spectral("quintic"), Spectral("polar_express", 8), Spectral(dtype="bfloat16")]
)
def test_muon_by_polynomials(norm):
    """To Muon's grade; there is no complex bfloat16, so that "bfloat16" runs in complex64."""
    p = nn.Parameter(torch.zeros(12, 5, dtype=torch.complex64))
    step = -run(Muon([p], lr=1.0, norm=norm, scale="none"), [randn(12, 5, seed=1, dtype=torch.complex64)])
    assert step.dtype == torch.complex64
    s = torch.linalg.svdvals(step)
    assert (s > 0.6).all()
    assert (s < 1.25).all()


# Norms. ---------------------------------------------------------------------------------------------------------------

DUALS = {
    # a norm, its definition, its dual norm's definition
    "frobenius": (Frobenius(), lambda x: x.abs().square().sum().sqrt(), lambda g: g.abs().square().sum().sqrt()),
    "spectral": (Spectral("exact"), lambda x: torch.linalg.svdvals(x)[0], lambda g: torch.linalg.svdvals(g).sum()),
    "nuclear": (Nuclear(), lambda x: torch.linalg.svdvals(x).sum(), lambda g: torch.linalg.svdvals(g)[0]),
    "max": (Max(), lambda x: x.abs().max(), lambda g: g.abs().sum()),
    "rows": (Rows(), lambda x: x.abs().square().sum(1).sqrt().max(), lambda g: g.abs().square().sum(1).sqrt().sum()),
    "columns": (
        Columns(),
        lambda x: x.abs().square().sum(0).sqrt().max(),
        lambda g: g.abs().square().sum(0).sqrt().sum(),
    ),
}


def test_every_norm_has_an_oracle_here():
    assert {type(norm).__name__ for norm, *_ in DUALS.values()} | {"StiefelSpectral"} == set(Norm.known)


@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (4, 4), (1, 1)], ids=str)
@pytest.mark.parametrize("name", DUALS)
def test_dual_norm(name, shape):
    norm, value, dual_value = DUALS[name]
    g = randn(*shape, seed=2)
    d = norm.dual(g)
    torch.testing.assert_close((g.conj() * d).real.sum(), dual_value(g), rtol=1e-12, atol=0)
    torch.testing.assert_close(norm.value(d), torch.ones((), dtype=torch.float64), rtol=1e-12, atol=0)
    torch.testing.assert_close(norm.value(g), value(g), rtol=1e-12, atol=0)
    turn = torch.polar(torch.ones(()).double(), torch.tensor(0.7).double())
    torch.testing.assert_close(norm.dual(turn * g), turn * d, rtol=1e-11, atol=1e-11)  # one phase for all goes through
    real = g.real.contiguous()
    torch.testing.assert_close(norm.dual(torch.complex(real, 0 * real)).real, norm.dual(real), rtol=1e-11, atol=1e-11)
    assert norm.dual(0 * g).abs().max() == 0


# Clipping. ------------------------------------------------------------------------------------------------------------


def test_clip_norm_over_real_and_complex_blocks():
    m = Product((Euclidean(), Euclidean(1)))
    h = randn(2, 3), randn(4, dtype=torch.float64)
    length = math.sqrt(sum(b.abs().square().sum().item() for b in h))
    clipped = chain(ClipNorm(0.5)).update(h, ({}, {}), Context(m, h, 0.1, 1))
    for a, b in zip(clipped, h, strict=True):
        torch.testing.assert_close(a, b * 0.5 / length, rtol=1e-14, atol=0)


def test_clip_grad_norm():
    p, q = nn.Parameter(torch.zeros(2, dtype=torch.complex64)), nn.Parameter(torch.zeros(1))
    p.grad, q.grad = torch.tensor([3j, 0]), torch.tensor([4.0])
    assert clip_grad_norm_(steepest.SGD([p, q]), 1.0).item() == pytest.approx(5)
    torch.testing.assert_close(p.grad, torch.tensor([0.6j, 0]))
    torch.testing.assert_close(q.grad, torch.tensor([0.8]))


# The engine. ----------------------------------------------------------------------------------------------------------


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 3, dtype=torch.complex128)
        self.second = nn.Linear(4, 3, dtype=torch.complex128)
        self.real = nn.Linear(3, 2, dtype=torch.float64)

    def forward(self, x):
        return self.real((self.first(x) * self.second(x).conj()).real.tanh())


def train(model, optimizer, steps):
    for seed in steps:
        optimizer.zero_grad()
        model(randn(8, 4, seed=seed)).square().sum().backward()
        optimizer.step()


@every
def test_a_model_of_real_and_complex_layers(name):
    """It learns, and a checkpoint resumes it to the last bit; the two complex layers step as one batch."""
    torch.manual_seed(0)
    model = Model()
    again = copy.deepcopy(model)
    optimizer = ALL[name](param_groups(model), lr=0.01)
    before = model(randn(8, 4, seed=0)).square().sum()
    train(model, optimizer, range(3))
    assert model(randn(8, 4, seed=0)).square().sum() < before
    for p in model.parameters():
        known = (p.dtype, p.dtype.to_real(), torch.int64)
        assert all(v.dtype in known for k, v in optimizer.state[p].items() if k != "step")
    file = io.BytesIO()
    torch.save([model.state_dict(), optimizer.state_dict()], file)
    file.seek(0)
    weights, state = torch.load(file, weights_only=True)
    again.load_state_dict(weights)
    resumed = ALL[name](param_groups(again), lr=1.0)
    resumed.load_state_dict(state)
    for m, o in ((model, optimizer), (again, resumed)):
        train(m, o, range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


@pytest.mark.usefixtures("unconstrained")
@pytest.mark.of_each_kind
@every
def test_a_gradient_that_is_only_marked_as_conjugated(name):
    """autograd may leave such a one, and `view_as_real` refuses it."""
    params = [nn.Parameter(randn(4, 3)) for _ in range(2)]
    for p, lazy in zip(params, (True, False), strict=True):
        optimizer = ALL[name]([p], lr=0.1)
        for seed in (1, 2, 3):
            p.grad = randn(4, 3, seed=seed).conj() if lazy else randn(4, 3, seed=seed).conj().resolve_conj()
            optimizer.step()
    torch.testing.assert_close(*params, **CLOSE)


@pytest.mark.parametrize("value", [complex(0, math.nan), complex(math.inf, 0), complex(0, -math.inf)], ids=str)
def test_a_gradient_with_a_bad_part_is_refused(value):
    p = nn.Parameter(randn(3, 2))
    optimizer = steepest.Adam([("weight", p)], lr=0.1)
    p.grad = torch.zeros_like(p)
    p.grad[1, 1] = value
    with pytest.raises(ValueError, match="weight"):
        optimizer.step()
    assert torch.equal(p, randn(3, 2))


@pytest.mark.usefixtures("unconstrained")
@pytest.mark.of_each_kind
@every
def test_a_tensor_as_learning_rate(name):
    grads = [randn(4, 3, seed=s, dtype=torch.complex64) for s in (1, 2, 3)]
    start = randn(4, 3, dtype=torch.complex64)
    lrs = (0.1, torch.tensor(0.1), torch.tensor(0.1, dtype=torch.float64))
    first, *rest = [run(ALL[name]([nn.Parameter(start.clone())], lr=lr), grads) for lr in lrs]
    for other in rest:
        torch.testing.assert_close(other, first, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:ComplexHalf")
@pytest.mark.parametrize("dtype", [torch.complex32, torch.int64, torch.bool])
def test_dtypes_that_are_refused(dtype):
    p = nn.Parameter(torch.ones(2, 2).to(dtype), requires_grad=False)
    with pytest.raises(ValueError, match=r"weight.*expected a floating point one, or complex64 or complex128"):
        steepest.SGD([("weight", p)])
    layer = nn.Linear(2, 2)
    layer.weight = p
    with pytest.raises(ValueError, match=r"weight.*complex64"):
        constrain(layer, "weight", Euclidean())


def test_complex_points_of_real_manifolds_are_refused_by_name():
    for manifold, shape in testing.manifolds():
        if "complex" not in manifold.scalars:
            shapes = shape if manifold.arity > 1 else (shape,)
            params = [(f"w{i}", nn.Parameter(torch.ones(s, dtype=torch.complex64))) for i, s in enumerate(shapes)]
            with pytest.raises(ValueError, match=r"w0.*complex"):
                steepest.SGD([{"params": params, "geometry": manifold}])


def test_points_of_complex_manifolds_are_recognised_and_stay():
    layer = nn.Linear(4, 3, dtype=torch.complex128)
    constrain(layer, "weight", steepest.Oblique())
    optimizer = steepest.Adam(param_groups(layer), lr=0.1)
    target = steepest.Oblique().project(randn(3, 4, seed=5))
    for _ in range(200):
        optimizer.zero_grad()
        (layer.weight - target).abs().square().sum().backward()
        optimizer.step()
    assert optimizer.residual() < 1e-12
    assert (layer.weight - target).abs().max() < 1e-2


# Entrywise transforms. ------------------------------------------------------------------------------------------------


def test_entrywise_transforms_see_two_real_numbers():
    for transform in [t for family in Transform.known.values() for t in family.examples() if t.entrywise]:
        at, real_at = (Context(Euclidean(n), None, 0.1, 1) for n in (2, 3))
        alone, both = chain(transform), chain(transform)
        z = randn(4, 3)
        states, real_states = alone.init((z,), at), both.init((torch.view_as_real(z),), real_at)
        for step in (1, 2, 3):
            z = randn(4, 3, seed=step)
            (ours,) = alone.update((z,), states, Context(Euclidean(), None, 0.1, step))
            (theirs,) = both.update((torch.view_as_real(z),), real_states, Context(Euclidean(3), None, 0.1, step))
            assert torch.equal(torch.view_as_real(ours), theirs)
        for key, value in states[0].items():
            assert value.is_complex(), f"{transform}: {key}"
            assert torch.equal(torch.view_as_real(value), real_states[0][key])
