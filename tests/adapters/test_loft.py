"""LOFT: what it contains, against PEFT's layers with the same numbers; its supports; what training keeps."""

import dataclasses
import itertools

import pytest
import torch
from torch import nn

import steepest
from steepest import testing
from steepest.adapters import HRA, LOFT, QGOFT, SODA, Source, register
from steepest.adapters import loft as module
from steepest.adapters.bases import principal
from steepest.adapters.loft import ROTATIONS, butterfly, gradient_support
from steepest.adapters.rotations import Cayley, CayleyNeumann, Exponential, Free, Givens, Reflections, skew_matrix

peft = pytest.importorskip("peft")

IN, OUT = 16, 10


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def linear(dtype=torch.float64, n=IN, out=OUT):
    layer = nn.Linear(n, out, dtype=dtype)
    with torch.no_grad():
        layer.weight.copy_(random(out, n, seed=1))
        layer.bias.copy_(random(out, seed=2))
    return nn.Sequential(layer)


def config_of(adapter, **options):
    fields = {f.name: getattr(adapter, f.name) for f in dataclasses.fields(adapter)}
    return register(type(adapter))(**fields, target_modules=["0"], **options)


def ours(adapter, values=None, dtype=torch.float64, **options):
    """A layer with our adapter inside PEFT, the trained numbers set; the model and the layer."""
    model = peft.get_peft_model(linear(dtype), config_of(adapter, **options))
    layer = model.base_model.model[0]
    for name, value in (values or {}).items():
        layer.tensors_of(name)["default"].data = value.to(dtype)
    return model, layer


def theirs(config, dtype=torch.float64):
    model = peft.get_peft_model(linear(torch.float32), config).to(dtype)
    with torch.no_grad():  # float64 is not what rounding to float32 and back gives
        model.base_model.model[0].get_base_layer().weight.copy_(random(OUT, IN, seed=1))
        model.base_model.model[0].get_base_layer().bias.copy_(random(OUT, seed=2))
    return model, model.base_model.model[0]


def both_agree(one, other, dtype=torch.float64):
    """Outputs and merged weights, to rounding."""
    x, tolerance = random(3, 5, IN, seed=3).to(dtype), {torch.float64: 1e-11, torch.float32: 2e-5}[dtype]
    close = {"rtol": tolerance, "atol": tolerance}
    assert (one(x) - linear(dtype)(x)).abs().max() > 0.1, "nothing was turned"
    torch.testing.assert_close(one(x), other(x), **close)
    merged = [model.merge_and_unload()[0].weight for model in (one, other)]
    torch.testing.assert_close(*merged, **close)


# What PEFT has. -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rotation", ["cayley", "cayley-neumann"])
def test_contains_oft(rotation):
    theta = 0.3 * random(IN // 4, 6)
    config = peft.OFTConfig(r=0, oft_block_size=4, use_cayley_neumann=False, target_modules=["0"])
    model, layer = theirs(config)
    layer.oft_R["default"].weight.data = theta
    both_agree(ours(LOFT(r=None, support="coordinates", block=4, rotation=rotation), {"theta": theta})[0], model)


def test_contains_oft_with_a_series_which_turns_the_other_way():
    theta = 0.05 * random(IN // 4, 6)
    config = peft.OFTConfig(r=0, oft_block_size=4, num_cayley_neumann_terms=20, target_modules=["0"])
    model, layer = theirs(config)
    layer.oft_R["default"].weight.data = theta
    x = random(7, IN, seed=3)
    mine, _ = ours(LOFT(r=None, support="coordinates", block=4, rotation="cayley-neumann"), {"theta": -theta})
    torch.testing.assert_close(mine(x), model(x), rtol=1e-11, atol=1e-11)
    other, _ = ours(LOFT(r=None, support="coordinates", block=4), {"theta": theta})
    assert (other(x) - model(x)).abs().max() > 0.1


def test_one_series_leaves_the_group_and_the_other_does_not():
    theta = 0.4 * random(IN // 8, 28)
    config = peft.OFTConfig(r=0, oft_block_size=8, target_modules=["0"])
    model, layer = theirs(config)
    layer.oft_R["default"].weight.data = theta
    before = torch.linalg.svdvals(random(OUT, IN, seed=1))
    off = (torch.linalg.svdvals(model.merge_and_unload()[0].weight) - before).abs().max()
    assert off > 1
    for rotation in ("cayley-neumann", "cayley", "exp"):
        adapter = LOFT(r=None, support="coordinates", block=8, rotation=rotation)
        mine = ours(adapter, {"theta": theta})[0].merge_and_unload()[0].weight
        torch.testing.assert_close(torch.linalg.svdvals(mine), before, rtol=1e-12, atol=1e-12)


def test_contains_psoft():
    r = 6
    config = peft.PsoftConfig(r=r, psoft_alpha=r, target_modules=["0"])
    model, layer = theirs(config, torch.float32)
    values = {
        "theta": 0.3 * random(15),
        "scale_in": 1 + 0.2 * random(r, seed=4),
        "scale_out": 1 + 0.2 * random(r, seed=5),
    }
    inner = layer.psoft_R["default"]
    inner.weight.data, inner.vector_a.data, inner.vector_b.data = (v.float() for v in values.values())
    mine, own = ours(LOFT(r=r, scales=True), values, torch.float32)
    basis = layer._psoft_A_cache["default"].mT
    signs = (own.tensors_of("P")["default"] * basis).sum(0)
    torch.testing.assert_close(signs.abs(), torch.ones(r), rtol=0, atol=1e-5)  # the same directions, in float32
    own.tensors_of("P")["default"].copy_(basis)  # with their signs
    both_agree(mine, model, torch.float32)


@pytest.mark.parametrize("adapter", [LOFT(r=6, support="householder"), HRA(r=6)], ids=["LOFT", "HRA"])
def test_contains_hra(adapter):
    u = random(IN, 6)
    model, layer = theirs(peft.HRAConfig(r=6, target_modules=["0"]))
    layer.hra_u["default"].data = u
    both_agree(ours(adapter, {"theta" if isinstance(adapter, LOFT) else "u": u})[0], model)


class DenseBlocks:
    """What the kernel that PEFT compiles for GPUs computes: block-diagonal matrices from their blocks."""

    @staticmethod
    def apply(blocks):
        return torch.stack([torch.block_diag(*level) for level in blocks])


@pytest.mark.parametrize("levels", [1, 2])
def test_contains_boft_of_up_to_two_factors(monkeypatch, levels):
    from peft.tuners.boft import layer as boft

    monkeypatch.setattr(boft, "get_fbd_cuda", lambda: True)  # without it PEFT takes one factor, whatever is asked for
    monkeypatch.setattr(boft, "FastBlockDiag", DenseBlocks)
    config = peft.BOFTConfig(boft_block_size=4, boft_n_butterfly_factor=levels, target_modules=["0"])
    model, layer = theirs(config)
    theta = 0.3 * random(levels, IN // 4, 6)
    layer.boft_R["default"].data = skew_matrix(theta, 4)
    both_agree(ours(LOFT(r=None, support="butterfly", block=4, levels=levels), {"theta": theta})[0], model)


@pytest.mark.parametrize("n", [13, 16])
def test_contains_goft(n):
    t, x, weight = {"theta": random(n - 1)}, random(4, n, seed=3), random(OUT, n, seed=1)
    loft, goft = LOFT(r=None, support="coordinates", rotation="givens"), QGOFT(relaxed=False)
    torch.testing.assert_close(loft.turn(t, x), goft.turn(t, x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(loft.merge(t, weight), goft.merge(t, weight), rtol=1e-12, atol=1e-12)


# Rotations. -----------------------------------------------------------------------------------------------------------


def householder(u):
    n = u.shape[0]
    product = torch.eye(n, dtype=u.dtype)
    for v in u.mT:
        product = product @ (torch.eye(n, dtype=u.dtype) - 2 * torch.outer(v, v) / (v @ v))
    return product


@pytest.mark.parametrize("n", [1, 2, 5, 8])
@pytest.mark.parametrize("size", [1e-3, 0.4, 3.0])
def test_maps_are_what_they_say(n, size):
    eye = torch.eye(n, dtype=torch.float64)
    q = skew_matrix(size * random(2, n * (n - 1) // 2), n)
    dense = torch.stack([torch.linalg.inv(eye - a) @ (eye + a) for a in q])
    for found, expected in (
        (Cayley().of(q), dense),
        (CayleyNeumann().of(q), dense),
        (Exponential().of(q), torch.linalg.matrix_exp(2 * q)),
    ):
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(found.mT @ found, eye.expand(2, n, n), rtol=0, atol=1e-12)
    u = size * random(2, n, 4)
    torch.testing.assert_close(
        Reflections(4).matrix(u, n), torch.stack([householder(a) for a in u]), rtol=1e-11, atol=1e-11
    )
    assert Free().matrix(q, n) is q


@pytest.mark.parametrize("rotation", [Cayley(), CayleyNeumann()], ids=str)
def test_large_blocks_on_several_threads(rotation):
    """Where torch's batched LU decompositions are wrong on a CPU."""
    n, threads = 160, torch.get_num_threads()
    theta, g = (0.1 * random(3, n * (n - 1) // 2)).requires_grad_(), random(3, n, n, seed=1)
    torch.set_num_threads(2)
    try:
        r = rotation.matrix(theta, n)
        (slope,) = torch.autograd.grad((r * g).sum(), theta)
    finally:
        torch.set_num_threads(threads)
    for i in range(3):
        one = theta[i].detach().requires_grad_()
        expected = Cayley().matrix(one, n)
        torch.testing.assert_close(r[i], expected, rtol=0, atol=1e-12)
        torch.testing.assert_close(slope[i], torch.autograd.grad((expected * g[i]).sum(), one)[0], rtol=0, atol=1e-11)


@pytest.mark.parametrize(
    "rotation", [Cayley(), CayleyNeumann(), Exponential(), Reflections(4), Givens(), Free()], ids=str
)
@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_maps_start_at_the_identity_and_count(rotation, batch):
    start = rotation.start(batch, 6, Source(random(OUT, 6)))
    matrix = rotation.matrix(start, 6)
    torch.testing.assert_close(matrix, torch.eye(6, dtype=torch.float64).expand(*batch, 6, 6), rtol=0, atol=1e-14)
    assert start[(0,) * len(batch)].numel() == rotation.count(6)


def test_maps_in_skew_matrices_agree_to_first_order():
    q = skew_matrix(random(15), 6)
    for t in (1e-2, 1e-3):
        maps = [m.of(t * q) for m in (Cayley(), CayleyNeumann(), Exponential())]
        gap = max((m - torch.eye(6) - 2 * t * q).abs().max() for m in maps)
        assert gap < 30 * t**2  # 2 |Q|^2 t^2


def test_the_series_falls_back_where_it_is_too_long():
    q = skew_matrix(random(10), 5)
    for norm in (0.1, 0.5, 0.69, 0.9, 0.999, 1.5):
        a = q * (norm / torch.linalg.matrix_norm(q, 2))
        gap = (CayleyNeumann().of(a) - Cayley().of(a)).abs().max()
        assert gap < 1e-14 * 40, f"off by {gap:.1e} at the norm {norm}"


# Supports. ------------------------------------------------------------------------------------------------------------


def loss_of(weight, seed=5):
    x, y = random(20, IN, seed=seed), random(20, OUT, seed=seed + 1)
    return (torch.tanh(x @ weight.mT) - y).square().mean()


def source(**options):
    weight = random(OUT, IN, seed=1).requires_grad_()
    (gradient,) = torch.autograd.grad(loss_of(weight), weight)
    return Source(weight.detach(), gradient, **options)


def skew_of(here):
    product = here.weight.mT @ here.gradient
    return (product - product.mT) / 2


def test_the_loss_changes_to_first_order_by_the_skew_part():
    here = source()
    for seed in range(3):
        s = skew_matrix(random(IN * (IN - 1) // 2, seed=seed), IN)
        h = 1e-6
        ahead, behind = (loss_of(here.weight @ (torch.eye(IN) + t * s)) for t in (h, -h))
        change = (ahead - behind) / (2 * h)
        torch.testing.assert_close(change, (skew_of(here) * s).sum(), rtol=1e-7, atol=1e-8)  # rounding / h


@pytest.mark.parametrize("r", [1, 2, 4, 8])
def test_gradient_support_is_spanned_by_leading_singular_vectors(r):
    here = source()
    p = gradient_support(here, r)
    _, s, vh = torch.linalg.svd(skew_of(here))
    width = r + r % 2  # they come in pairs, of which an odd r takes one and a half
    span = vh[:width].mT @ vh[:width]
    torch.testing.assert_close(span @ p, p, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(p.mT @ p, torch.eye(r, dtype=torch.float64))
    if r % 2 == 0:
        torch.testing.assert_close((p.mT @ skew_of(here) @ p).norm(), s[:r].norm())


def test_turning_helps_most_in_the_gradient_support():
    """The gradient with respect to theta at the start: twice the entries of P^T Skew(W^T G) P above the diagonal."""
    here, slopes = source(seed=3), {}
    for support in ("gradient", "principal", "random", "coordinates"):
        adapter = LOFT(r=4, support=support)
        bases = adapter.bases(here)
        theta = adapter.start(here, bases)["theta"].requires_grad_()
        (slope,) = torch.autograd.grad(loss_of(adapter.merge(bases | {"theta": theta}, here.weight)), theta)
        if "P" in bases:
            inner = bases["P"].mT @ skew_of(here) @ bases["P"]
            torch.testing.assert_close(skew_matrix(slope, 4), 4 * inner, rtol=1e-10, atol=1e-12)
        slopes[support] = slope.norm()
    assert max(slopes, key=slopes.get) == "gradient"


@pytest.mark.parametrize("decay", [0.5, 0.8, 0.95, 1.0])
def test_subspace_iteration_beside_the_exact_support(monkeypatch, decay):
    n, r = 60, 8
    u, v = (torch.linalg.qr(random(n, n, seed=i))[0] for i in (1, 2))
    here = Source(u, u @ (v * decay ** torch.arange(n)) @ torch.linalg.qr(random(n, n, seed=3))[0])
    exact = gradient_support(here, r)
    monkeypatch.setattr(module, "EXACT", n - 1)
    found = gradient_support(here, r)
    torch.testing.assert_close(found.mT @ found, torch.eye(r, dtype=torch.float64))
    kept = [torch.linalg.matrix_norm(skew_of(here) @ p) for p in (found, exact)]
    assert kept[0] >= 0.98 * kept[1]
    if decay < 0.9:  # a gap between what is found and what is not
        torch.testing.assert_close(found @ found.mT, exact @ exact.mT, rtol=0, atol=1e-3)
    assert torch.equal(found, gradient_support(here, r)), "another one when computed again"


def test_principal_and_coordinates():
    here = source()
    p = LOFT(r=5).bases(here)["P"]
    vh = torch.linalg.svd(here.weight)[2][:5]
    torch.testing.assert_close(p @ p.mT, vh.mT @ vh)
    place = LOFT(r=5, support="coordinates").bases(here)["place"][0]
    lengths = here.weight.norm(dim=0)
    assert place.tolist() == sorted(lengths.argsort(descending=True)[:5].tolist())
    spans = [LOFT(r=5, support="random").bases(source(seed=seed))["P"] for seed in (0, 0, 1)]
    assert torch.equal(spans[0], spans[1])
    assert (spans[0] @ spans[0].mT - spans[2] @ spans[2].mT).norm() > 0.5
    for weight in (random(4, IN), random(IN, 5).mT.contiguous(), random(20, 7) @ random(7, IN)):
        q = principal(weight, 3)
        torch.testing.assert_close(q.mT @ q, torch.eye(3, dtype=torch.float64))


@pytest.mark.parametrize(("n", "block"), [(16, 2), (16, 4), (24, 6), (64, 8)])
def test_butterfly_joins_pieces_at_growing_distance_and_all_in_the_end(n, block):
    half, levels = block // 2, 0
    reached = torch.eye(n)
    while n % (2 ** (levels + 1) * half) == 0:
        place = butterfly(n, block, levels)
        assert sorted(place.tolist()) == list(range(n))
        pieces = (place.view(-1, 2, half) // half)[..., 0]
        assert ((pieces[:, 1] - pieces[:, 0]) == 2**levels).all()
        assert (place.view(-1, half) - place.view(-1, half)[:, :1] == torch.arange(half)).all()
        joined = torch.zeros(n, n)
        for group in place.view(-1, block):
            joined[group[:, None], group] = 1
        reached = (joined @ reached).clamp_max(1)
        levels += 1
    if n // half == 2**levels:
        assert reached.all(), "after all levels some input does not reach some other one"
    assert torch.equal(butterfly(n, block, 0), torch.arange(n))


def columns(bases, n=IN):
    """P, which of coordinates are columns of the identity."""
    return bases["P"] if "P" in bases else torch.eye(n, dtype=torch.float64)[:, bases.get("place", [range(n)])[0]]


@pytest.mark.parametrize("adapter", LOFT.examples(), ids=str)
def test_is_the_formula_with_dense_matrices(adapter):
    """W (I + P (R - I) P^T) with P the columns of the identity where the support is coordinates."""
    n = 12
    here = Source(random(OUT, n, seed=1), random(OUT, n, seed=2), seed=5)
    bases = adapter.bases(here)
    t = bases | {k: v + 0.3 * random(*v.shape, seed=i) for i, (k, v) in enumerate(adapter.start(here, bases).items())}
    eye = torch.eye(n, dtype=torch.float64)
    if adapter.support == "householder":
        matrix = householder(t["theta"])
    elif adapter.support == "butterfly":
        matrix = eye
        for place, theta in zip(t["place"], t["theta"], strict=True):
            r = torch.block_diag(*Cayley().matrix(theta, adapter.block))
            matrix = matrix @ eye[place].mT @ r @ eye[place]  # the last level first
    else:
        p = columns(bases, n)
        width = p.shape[1]
        r = adapter.map().matrix(t["theta"], adapter.block or width)
        r = torch.block_diag(*r) if r.ndim == 3 else r
        if adapter.scales:
            r = torch.diag(t["scale_out"]) @ r @ torch.diag(t["scale_in"])
        matrix = eye + p @ (r - torch.eye(width, dtype=torch.float64)) @ p.mT
    x = random(2, 3, n, seed=9)
    torch.testing.assert_close(adapter.turn(t, x), x @ matrix.mT, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(adapter.merge(t, here.weight), here.weight @ matrix, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(
    "options",
    [
        {"r": 6, "support": "coordinates", "block": 3},
        {"r": 6, "block": 2},
        {"r": None, "support": "butterfly", "block": 4, "levels": 2},
        {"r": None, "support": "coordinates", "rotation": "givens"},
    ],
    ids=str,
)
def test_scales_with_every_support(options):
    """diag(b) R diag(a) for the whole of R, in blocks and in levels too."""
    here = source()
    bare, scaled = LOFT(**options), LOFT(**options, scales=True)
    bases = bare.bases(here)
    t = bases | {"theta": 0.3 * random(*bare.start(here, bases)["theta"].shape)}
    width = 6 if options["r"] else IN
    a, b = 1 + 0.3 * random(width, seed=4), 1 + 0.3 * random(width, seed=5)
    eye = torch.eye(IN, dtype=torch.float64)
    p = eye if bare.support == "butterfly" else columns(bases)
    r = p.mT @ bare.turn_back(t, eye) @ p
    matrix = eye + p @ (torch.diag(b) @ r @ torch.diag(a) - torch.eye(width)) @ p.mT
    t |= {"scale_in": a, "scale_out": b}
    x = random(5, IN, seed=9)
    torch.testing.assert_close(scaled.turn(t, x), x @ matrix.mT, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(scaled.turn_back(t, x), x @ matrix, rtol=1e-11, atol=1e-11)
    assert not scaled.orthogonal()


def test_counts():
    assert LOFT(r=32).count(768, 768) == 32 * 31 // 2
    assert LOFT(r=32, scales=True).count(768, 768) == 32 * 31 // 2 + 64
    assert LOFT(r=32, block=8).count(768, 768) == 4 * 28
    assert LOFT(r=None, support="coordinates", block=32).count(1, 768) == 24 * 32 * 31 // 2
    assert LOFT(r=None, support="butterfly", block=8, levels=3).count(1, 768) == 3 * 96 * 28
    assert LOFT(r=8, support="householder").count(1, 768) == 8 * 768
    assert LOFT(r=32, rotation="reflections", reflections=6).count(1, 768) == 6 * 32
    assert LOFT(r=32, rotation="givens").count(1, 768) == 31
    assert LOFT(r=32, rotation="free").count(1, 768) == 32 * 32


WRONG = {
    "support": [{"support": "leading"}],
    "rotation": [{"rotation": "qr"}],
    "r": [{"r": 0}, {"r": -2}, {"r": 2.0}, {"r": True}, {"r": None}, {"r": None, "support": "householder"},
          {"r": None, "support": "gradient"}, {"r": None, "support": "random"}, {"r": 8, "support": "butterfly"},
          {"r": 5, "support": "householder"}],
    "block": [{"block": 0}, {"block": 2.5}, {"support": "householder", "block": 4}],
    "scales": [{"support": "householder", "scales": True}, {"scales": "both"}],
    "levels": [{"levels": 2}, {"levels": 0}, {"r": None, "support": "butterfly", "levels": -1}],
    "reflections": [{"reflections": 0}, {"rotation": "reflections", "reflections": 3}],
}  # fmt: skip


@pytest.mark.parametrize(("name", "options"), [(n, o) for n, all_of in WRONG.items() for o in all_of], ids=str)
def test_wrong_options_are_refused_by_name(name, options):
    with pytest.raises(ValueError, match=name):
        LOFT(**options)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("r: got 17", {"r": 17, "support": "random"}),
        ("r: got 11", {"r": 11}),  # a layer with 10 outputs has no more right singular vectors
        ("r: got 18", {"r": 18, "support": "householder"}),
        ("block: got 4", {"r": 6, "block": 4}),
        ("block: got 5", {"r": None, "support": "coordinates", "block": 5}),
        ("block, levels", {"r": None, "support": "butterfly", "block": 4, "levels": 4}),
        ("block", {"r": None, "support": "butterfly", "block": 1}),
    ],
    ids=str,
)
def test_sizes_that_do_not_fit_the_layer_are_refused(name, options):
    with pytest.raises(ValueError, match=name):
        LOFT(**options).bases(source())


def test_gradient_support_asks_for_a_gradient():
    with pytest.raises(ValueError, match="calibrate"):
        ours(LOFT(r=4, support="gradient"))


# Training. ------------------------------------------------------------------------------------------------------------

FITS = {
    "free, Adam": ("free", lambda p: steepest.Adam(p, lr=0.05)),
    "free, Muon": ("free", lambda p: steepest.Muon(p, lr=0.05)),
    "Cayley, torch Adam": ("cayley", lambda p: torch.optim.Adam([q for g in p for q in g["params"]], lr=0.02)),
}


@pytest.mark.parametrize(("rotation", "make"), FITS.values(), ids=FITS)
def test_free_rotations_and_cayley_find_the_best_rotation(rotation, make):
    """W = I: Procrustes' problem, whose best rotation a singular value decomposition gives (Kabsch 1976)."""
    n = 6
    x = random(50, n, seed=1)
    y = x @ torch.linalg.matrix_exp(skew_matrix(0.5 * random(15, seed=2), n)).mT + 0.3 * random(50, n, seed=3)
    u, _, vh = torch.linalg.svd(y.mT @ x)
    u[:, -1] *= torch.linalg.det(u) * torch.linalg.det(vh)
    best = (x @ (u @ vh).mT - y).square().mean()
    base = nn.Sequential(nn.Linear(n, n, bias=False, dtype=torch.float64))
    nn.init.eye_(base[0].weight)
    model = peft.get_peft_model(base, config_of(LOFT(r=None, support="coordinates", rotation=rotation)))
    optimizer, steps = make(steepest.param_groups(model)), 150
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: 1 - k / steps)
    for _ in range(steps):
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        optimizer.step()
        schedule.step()
    loss = (model(x) - y).square().mean()
    assert best <= loss * (1 + 1e-12)
    assert loss - best < 1e-3


FAMILIES = {
    "LOFT cayley": LOFT(r=6),
    "LOFT exp": LOFT(r=6, support="random", rotation="exp"),
    "LOFT free": LOFT(r=6, rotation="free"),
    "LOFT reflections": LOFT(r=6, rotation="reflections", reflections=4),
    "LOFT givens": LOFT(r=None, support="coordinates", rotation="givens"),
    "HRA": HRA(r=4),
    "HRA strict": HRA(r=3, strict=True),
    "GOFT": QGOFT(relaxed=False),
    "SODA": SODA(singular_values=False),
}
POINTS = ("LOFT free", "SODA")
"""What leaves its group under other optimisers than those of this library."""
OTHERS = {
    "torch AdamW": lambda p: torch.optim.AdamW(p, lr=0.01),
    "torch SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
}


class Tower(nn.Module):
    """Layer after layer, each adapted by another family."""

    def __init__(self, families):
        super().__init__()
        self.layers = nn.ModuleList()
        for i, family in enumerate(families):
            base = nn.Sequential(nn.Linear(12, 12))
            with torch.no_grad():
                base[0].weight.copy_(random(12, 12, seed=i) / 3)
            self.layers.append(peft.get_peft_model(base, config_of(FAMILIES[family], seed=i)))

    def forward(self, x):
        for layer in self.layers:
            x = torch.tanh(layer(x)) + x / 2
        return x

    def adapted(self):
        return [layer.base_model.model[0] for layer in self.layers]


def keeps_singular_values(families, make, steps):
    model = Tower(families)
    before = [torch.linalg.svdvals(m.get_base_layer().weight.double()) for m in model.adapted()]
    optimizer = make(model)
    x, y = random(30, 12, seed=50, dtype=torch.float32), random(30, 12, seed=51, dtype=torch.float32)
    for _ in range(steps):
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        optimizer.step()
    for family, layer, s in zip(families, model.adapted(), before, strict=True):
        change = layer.get_delta_weight("default")
        assert change.norm() > 1e-3, f"{family} was not trained"
        found = torch.linalg.svdvals((layer.get_base_layer().weight + change).double())
        gap = ((found - s).abs().max() / s[0]).item()
        assert gap < 1e-5, f"{family}: singular values off by {gap:.1e} of the largest"  # float32
    y = model(x)
    for layer in model.layers:
        layer.merge_adapter()
    torch.testing.assert_close(model(x), y, rtol=1e-5, atol=1e-5 * len(families))  # float32, layer after layer


def of_steepest(name):
    return lambda model: testing.optimizers()[name](steepest.param_groups(model))


def of_torch(name):
    return lambda model: OTHERS[name]([p for p in model.parameters() if p.requires_grad])


@pytest.mark.slow
@pytest.mark.parametrize("name", testing.optimizers())
def test_singular_values_stay_under_every_optimiser(name):
    keeps_singular_values(FAMILIES, of_steepest(name), steps=1000)


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_singular_values_stay_under_other_optimisers(name):
    keeps_singular_values([f for f in FAMILIES if f not in POINTS], of_torch(name), steps=1000)


@pytest.mark.parametrize(
    "make", [of_steepest("adam"), of_steepest("muon"), of_torch("torch AdamW")], ids=["Adam", "Muon", "torch AdamW"]
)
def test_singular_values_stay(make):
    keeps_singular_values(["LOFT cayley", "HRA strict"], make, steps=200)


def test_a_free_rotation_leaves_the_group_under_other_optimisers():
    """As its documentation says."""
    with pytest.raises(AssertionError, match="LOFT free: singular values"):
        keeps_singular_values(["LOFT free"], of_torch("torch AdamW"), steps=20)


@pytest.mark.parametrize(("support", "rotation"), list(itertools.product(["principal", "coordinates"], ROTATIONS)))
def test_merged_is_unmerged(support, rotation):
    model, _ = ours(LOFT(r=6, support=support, rotation=rotation), dtype=torch.float32, init_weights=False)
    x = random(20, IN, seed=4, dtype=torch.float32)
    y = model(x)
    model.merge_adapter()
    torch.testing.assert_close(model(x), y, rtol=1e-5, atol=1e-5)
    model.unmerge_adapter()
    torch.testing.assert_close(model(x), y, rtol=1e-5, atol=1e-5)
