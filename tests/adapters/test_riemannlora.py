"""RiemannLoRA: where it starts, against dense projections; how it moves; that stock LoRA can take its place."""

import pytest
import torch
from torch import nn

from steepest import SGD, Adam, FixedRank, FixedRankEmbedded, Muon, param_groups
from steepest.adapters import RiemannLoRA, Source

peft = pytest.importorskip("peft")
from steepest.adapters import RiemannLoRAConfig, calibrate  # noqa: E402

DOUBLE = torch.float64
OUT, IN, RANK = 14, 20, 3


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def with_spectrum(m, n, values, seed=0):
    (u, _), (v, _) = (torch.linalg.qr(randn(k, len(values), seed=seed + k)) for k in (m, n))
    return u * torch.tensor(values, dtype=DOUBLE) @ v.mT


def started(adapter, weight, gradient):
    source = Source(weight, gradient, seed=1)
    bases = adapter.bases(source)
    return bases | adapter.start(source, bases)


def held(g, x):
    """What of g the tangent space at x, of rank r, holds: g - (I - Pu) g (I - Pv), as one dense projection."""
    u, s, vh = torch.linalg.svd(x)
    r = int((s > 1e-9 * s[0]).sum())
    off_u, off_v = u[:, r:] @ u[:, r:].mT, vh[r:].mT @ vh[r:]
    return g - off_u @ g @ off_v


def best(g, rank):
    u, s, vh = torch.linalg.svd(g)
    k = min(2 * rank, len(s))
    return u[:, :k] * s[:k] @ vh[:k]


# The start. -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("m", "n", "rank", "of_g"),
    [
        (14, 20, 3, 14),
        (20, 14, 3, 14),
        (5, 20, 4, 5),  # 2 r exceeds the outputs
        (20, 5, 4, 5),  # 2 r exceeds the inputs
        (6, 6, 6, 6),
        (9, 7, 1, 7),
        (14, 20, 3, 4),  # G has a lower rank than 2 r
        (14, 20, 3, 2),  # and than r
        (14, 20, 3, 0),
    ],
)
def test_no_tangent_space_holds_more_of_the_gradient(m, n, rank, of_g):
    g = with_spectrum(m, n, [2.0**-i for i in range(of_g)]) if of_g else torch.zeros(m, n, dtype=DOUBLE)
    t = started(RiemannLoRA(r=rank), randn(m, n), g)
    x = t["U"] @ t["V"].mT
    assert torch.linalg.matrix_rank(x) == rank
    optimum = (torch.linalg.svdvals(g)[: 2 * rank] ** 2).sum()
    torch.testing.assert_close(held(g, x).square().sum(), optimum, rtol=1e-12, atol=0)
    torch.testing.assert_close(held(g, x), best(g, rank), rtol=0, atol=1e-7)  # of singular vectors, by a Gram matrix
    for seed in range(50):
        other = randn(m, rank, seed=seed) @ randn(rank, n, seed=seed + 100)
        assert held(g, other).square().sum() <= optimum * (1 + 1e-12)
        near = x + 0.1 * other * x.norm() / other.norm()
        u, s, vh = torch.linalg.svd(near)
        assert held(g, u[:, :rank] * s[:rank] @ vh[:rank]).square().sum() <= optimum * (1 + 1e-12)


def test_leading_pairs_on_both_sides_are_no_optimum():
    g = with_spectrum(OUT, IN, [2.0**-i for i in range(OUT)])
    u, _, vh = torch.linalg.svd(g)
    x = u[:, :RANK] @ vh[:RANK]  # LoRA-GA's and PiSSA's way: the spaces hold the same r triples twice
    share = held(g, x).square().sum() / (torch.linalg.svdvals(g)[: 2 * RANK] ** 2).sum()
    assert share < 0.99


def test_both_geometries_take_the_best_step_of_rank_2r_first():
    g = with_spectrum(OUT, IN, [2.0**-i for i in range(OUT)])
    t = started(RiemannLoRA(r=RANK, alpha=5.0), randn(OUT, IN), g)
    pair, s = (t["B"], t["A"]), 5.0 / RANK
    flat = FixedRank()
    db, da = flat.push(pair, flat.pull(pair, (s * g @ t["A"].mT, s * t["B"].mT @ g)))
    torch.testing.assert_close(db @ t["A"] + t["B"] @ da, s * best(g, RANK), rtol=0, atol=1e-8)
    embedded = FixedRankEmbedded()
    x = embedded.from_factors(pair)
    u, core, v = x
    pulled = embedded.pull(x, (g @ v @ core.mT, u.mT @ g @ v, g.mT @ u @ core))
    optimum = (torch.linalg.svdvals(g)[: 2 * RANK] ** 2).sum()
    torch.testing.assert_close(sum(h.square().sum() for h in pulled), optimum, rtol=1e-10, atol=0)


def test_only_directions_of_the_gradient_matter():
    w, g = randn(OUT, IN), with_spectrum(OUT, IN, [2.0**-i for i in range(OUT)])
    start = {k: v for k, v in started(RiemannLoRA(r=RANK), w, g).items() if k in "UV"}
    for factor in (1e6, 1e-6, -3.0):
        for k, v in started(RiemannLoRA(r=RANK), w, factor * g).items():
            if k in "UV":  # the sign of a start is as arbitrary as that of singular vectors
                torch.testing.assert_close(v, start[k], rtol=0, atol=1e-7)
    p, q = torch.linalg.qr(randn(OUT, OUT, seed=3))[0], torch.linalg.qr(randn(IN, IN, seed=4))[0]
    turned = started(RiemannLoRA(r=RANK), w, p @ g @ q)
    for k, here in (("U", p @ start["U"]), ("V", q.mT @ start["V"])):
        torch.testing.assert_close(turned[k] @ turned[k].mT, here @ here.mT, rtol=0, atol=1e-7)


@pytest.mark.parametrize("options", [{}, {"alpha": 6.0}, {"alpha": 6.0, "rslora": True}, {"scale": 0.01}])
@pytest.mark.parametrize("init", ["gradient", "orthonormal"])
def test_size_and_balance(init, options):
    adapter = RiemannLoRA(r=RANK, init=init, **options)
    t = started(adapter, randn(OUT, IN), randn(OUT, IN, seed=1))
    x = t["U"] @ t["V"].mT
    s = {"alpha": 6.0 / RANK, "rslora": 6.0 / RANK**0.5}.get(list(options)[-1] if options else "", 1.0)
    assert adapter.factor() == pytest.approx(s)
    torch.testing.assert_close(s * t["B"] @ t["A"], x, rtol=0, atol=1e-15)
    values = torch.linalg.svdvals(x)[:RANK]
    torch.testing.assert_close(values, torch.full_like(values, options.get("scale", 1.0) / RANK**0.5))
    torch.testing.assert_close(t["B"].norm(dim=0), t["A"].norm(dim=1))


def test_principal_start_is_pissas():
    w = randn(OUT, IN)
    u, s, vh = torch.linalg.svd(w)
    t = started(RiemannLoRA(r=RANK, init="principal"), w, None)
    leading = u[:, :RANK] * s[:RANK] @ vh[:RANK]
    torch.testing.assert_close(t["B"] @ t["A"], leading, rtol=0, atol=1e-12)
    torch.testing.assert_close(t["B"].mT @ t["B"], torch.diag(s[:RANK]), rtol=0, atol=1e-12)
    torch.testing.assert_close(t["A"] @ t["A"].mT, torch.diag(s[:RANK]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("known", [0, 2])
def test_a_weight_of_lower_rank_has_no_principal_start(known):
    w = with_spectrum(OUT, IN, [2.0, 1.0][:known]) if known else torch.zeros(OUT, IN, dtype=DOUBLE)
    with pytest.raises(ValueError, match=f"r: got 3, but the weight of a layer has only {known} singular values"):
        started(RiemannLoRA(r=RANK, init="principal"), w, None)
    t = started(RiemannLoRA(r=RANK), w, randn(OUT, IN))
    assert torch.linalg.matrix_rank(t["B"] @ t["A"]) == RANK


# Inside PEFT. ---------------------------------------------------------------------------------------------------------


class Net(nn.Module):
    def __init__(self, seed=0):
        super().__init__()
        self.a, self.b = nn.Linear(IN, OUT, dtype=DOUBLE), nn.Linear(OUT, 5, dtype=DOUBLE)
        for i, p in enumerate(self.parameters()):
            p.data = randn(*p.shape, seed=seed + i) / p.shape[-1] ** 0.5

    def forward(self, x):
        return self.b(torch.tanh(self.a(x)))


X, Y = randn(40, IN, seed=50), randn(40, 5, seed=51)


def loss_of(model):
    return (model(X) - Y).square().mean()


def adapted(net=None, **options):
    net = Net() if net is None else net
    config = RiemannLoRAConfig(**{"r": RANK, "alpha": 4.0, "target_modules": ["a"]} | options)
    if config.method().wants_gradient():
        calibrate(net, config, lambda: loss_of(net).backward())
    return peft.get_peft_model(net, config)


def change(model):
    return model.base_model.model.a.get_delta_weight("default")


def steps(model, optimizer, number):
    changes = []
    for _ in range(number):
        optimizer.zero_grad()
        loss_of(model).backward()
        optimizer.step()
        changes.append(change(model))
    return changes


@pytest.mark.parametrize("init", ["gradient", "principal", "orthonormal"])
def test_nothing_changes_at_the_start(init):
    torch.testing.assert_close(adapted(init=init)(X), Net()(X), rtol=0, atol=1e-13)


def test_the_first_step_is_the_best_of_rank_2r():
    net = Net()
    loss_of(net).backward()
    g, s = net.a.weight.grad, 4.0 / RANK
    errors = []
    for lr in (1e-3, 5e-4):
        model = adapted()
        (step,) = steps(model, SGD(param_groups(model), lr=lr), 1)
        errors.append((step / (-lr * s * s) - best(g, RANK)).norm() / best(g, RANK).norm())
    assert errors[0] < 0.01
    assert 1.9 < errors[0] / errors[1] < 2.1  # of first order in lr: the term dB dA, and nothing else


MIX = randn(RANK, RANK, seed=9) + torch.diag(torch.tensor([30.0, 1.0, 0.03], dtype=DOUBLE))
OPTIMIZERS = {
    "SGD": (lambda g: SGD(g, lr=0.05), MIX),
    "momentum": (lambda g: SGD(g, lr=0.05, momentum=0.9, nesterov=True), MIX),
    "Muon": (lambda g: Muon(g, lr=0.02), MIX),
    "Adam": (lambda g: Adam(g, lr=0.01), MIX.diag().diag()),
}


def mixed(model, c):
    layer = model.base_model.model.a
    for name, value in (("B", lambda b: b @ c), ("A", lambda a: torch.linalg.solve(c, a))):
        p = layer.tensors_of(name)["default"]
        p.data = value(p.data)
    return model


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps_do_not_see_the_choice_of_factors(name):
    make, c = OPTIMIZERS[name]
    plain, other = adapted(), mixed(adapted(), c)
    torch.testing.assert_close(change(other), change(plain), rtol=0, atol=1e-13)
    paths = [steps(model, make(param_groups(model)), 10) for model in (plain, other)]
    # Rounding, times squares of condition numbers of some 1e3; ten steps of Adam divide small gradients as well.
    tolerance = 1e-6 * paths[0][-1].norm().item()
    assert paths[0][-1].norm() > 0.01
    for here, there in zip(*paths, strict=True):
        torch.testing.assert_close(there, here, rtol=0, atol=tolerance)


def test_without_its_geometry_steps_do_see_it():
    paths = [
        steps(model, torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01), 3)
        for model in (adapted(), mixed(adapted(), MIX))
    ]
    assert (paths[0][-1] - paths[1][-1]).norm() > 0.1 * paths[0][-1].norm()


def test_a_short_start_overshoots_where_the_default_does_not():
    base = loss_of(Net()).item()
    first = []
    for scale in (1e-3, 1.0):
        model = adapted(scale=scale)
        steps(model, SGD(param_groups(model), lr=1.0), 1)
        first.append(loss_of(model).item())
    assert first[1] < base < first[0]


@pytest.mark.parametrize("init", ["gradient", "orthonormal"])
def test_stock_lora_of_twice_the_rank_takes_its_place(init):
    model = adapted(init=init)
    steps(model, Muon(param_groups(model), lr=0.02), 5)
    config, weights = peft.convert_to_lora(model, rank=2 * RANK)
    lora = peft.get_peft_model(Net(), config)
    peft.set_peft_model_state_dict(lora, weights)
    assert config.r == 2 * RANK
    torch.testing.assert_close(lora(X), model(X), rtol=0, atol=1e-6)  # PEFT converts in float32
    config, weights = peft.convert_to_lora(model, rank=RANK)
    lora = peft.get_peft_model(Net(), config)
    peft.set_peft_model_state_dict(lora, weights)
    assert (lora(X) - model(X)).abs().max() > 1e-3  # of rank r it could not


def test_calibration(tmp_path):
    with pytest.raises(ValueError, match="calibrate"):
        peft.get_peft_model(Net(), RiemannLoRAConfig(r=RANK, target_modules=["a"]))
    model = adapted()
    assert not any("_steepest_gradient" in m.__dict__ for m in model.modules())
    steps(model, Muon(param_groups(model), lr=0.02), 5)
    model.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(Net(), tmp_path)  # with the bases from the file, without a gradient
    assert loaded.peft_config["default"].calibrated
    torch.testing.assert_close(loaded(X), model(X), rtol=0, atol=1e-14)
    with pytest.raises(ValueError, match="calibrate"):
        model.add_adapter("second", RiemannLoRAConfig(r=2, target_modules=["a"]))


def test_a_transposed_layer_starts_at_the_same_point():
    from transformers.pytorch_utils import Conv1D

    plain, other = Net(), Net()
    turned = Conv1D(OUT, IN).double()
    turned.weight.data, turned.bias.data = plain.a.weight.data.mT.contiguous(), plain.a.bias.data.clone()
    other.a = turned
    one, two = (adapted(net).base_model.model.a.tensors("default") for net in (plain, other))
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"init": "lora"}, "init: got 'lora', expected one of 'gradient', 'principal', 'orthonormal'"),
        ({"r": 0}, "r: got 0"),
        ({"r": 2.0}, "r: got 2.0"),
        ({"scale": 0.0}, "scale: got 0.0"),
        ({"scale": float("nan")}, "scale: got nan"),
        ({"alpha": -1.0}, "alpha: got -1.0"),
        ({"rslora": True}, "rslora: .* alpha is None"),
        ({"rslora": "yes", "alpha": 1.0}, "rslora: got 'yes'"),
    ],
)
def test_options_that_are_wrong(options, words):
    with pytest.raises(ValueError, match=words):
        RiemannLoRAConfig(**options)


def test_a_rank_that_no_layer_has():
    with pytest.raises(ValueError, match=f"r: got 15, .* {IN} inputs and {OUT} outputs"):
        adapted(init="orthonormal", r=OUT + 1)
