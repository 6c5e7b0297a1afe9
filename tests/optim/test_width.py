"""Learning rates and initial weights over widths: against the published tables, and on networks."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import steepest
from steepest import SGD, AdamW, Muon, Shampoo, Stiefel, constrain, param_groups, testing, width_transfer


class Net(nn.Module):
    """Tokens to tokens through two hidden layers of a given width."""

    def __init__(self, width, tied=False, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.embedding = nn.Embedding(11, width)
        self.first, self.second = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 11, bias=False)
        for module in (self.first, self.second, self.head):
            module.weight.data.normal_(0, module.in_features**-0.5)
        self.embedding.weight.data.normal_(0, 1)
        if tied:
            self.head.weight = self.embedding.weight

    def forward(self, tokens):
        x = self.embedding(tokens)
        return self.head(self.norm(x + self.second(torch.tanh(self.first(x)))))


def rates(optimizer):
    return {n.removesuffix(".weight"): g["lr"] for g in optimizer.param_groups for n in g["param_names"]}


# Yang et al. 2022, table 3, and for the spectral methods the sizes of their steps: powers of the ratio of widths.
TABLE = {
    "sgd": {"embedding": 1, "first": 0, "head": -1, "norm": 1, "first.bias": 1},
    "adam": {"embedding": 0, "first": -1, "head": -1, "norm": 0, "first.bias": 0},
    "adamw": {"embedding": 0, "first": -1, "head": -1, "norm": 0, "first.bias": 0},
    "lion": {"embedding": 0, "first": -1, "head": -1, "norm": 0, "first.bias": 0},
    "signsgd": {"embedding": 0, "first": -1, "head": -1, "norm": 0, "first.bias": 0},
    "muon": {"embedding": 0, "first": 0, "second": 0, "head": -1, "norm": 0},
    "shampoo": {"embedding": 0, "first": 0, "second": 0, "head": -1, "norm": 0},
    "scale": {"embedding": 0, "first": -1, "head": -1, "norm": 0},
    "adamuon": {"embedding": 0, "first": -1, "head": -1, "norm": 0},
}


@pytest.mark.parametrize("name", TABLE)
def test_learning_rates_are_those_of_the_published_tables(name):
    optimizer = width_transfer(testing.optimizers()[name], Net(32), Net(8), lr=0.1, **adamw(name))
    found = rates(optimizer)
    for weight, power in TABLE[name].items():
        assert found[weight] == pytest.approx(0.1 * 4.0**power, rel=1e-3), weight


def adamw(name):
    return {"adamw_lr": 0.1} if issubclass(testing.optimizers()[name], steepest.optim.MatrixOptimizer) else {}


@pytest.mark.of_each_kind
@pytest.mark.parametrize("name", testing.optimizers())
def test_the_base_width_is_left_alone(name):
    model, base = Net(8), Net(8)
    optimizer = width_transfer(testing.optimizers()[name], model, base, lr=0.1)
    plain = testing.optimizers()[name](param_groups(base), lr=0.1)
    assert rates(optimizer) == pytest.approx(rates(plain))
    for p, q in zip(model.parameters(), base.parameters(), strict=True):
        torch.testing.assert_close(p, q)


def test_initial_weights_have_the_spectral_size_of_the_base():
    base, model = Net(32), Net(256)
    model.first.weight.data.mul_(7.0)
    width_transfer(AdamW, model, base, lr=0.1)

    def size(layer):
        m, n = layer.weight.shape
        return torch.linalg.matrix_norm(layer.weight, 2).item() / (m / n) ** 0.5

    for name in ("first", "second", "head"):  # random matrices: sizes agree to the fluctuation of a narrow one
        assert size(getattr(model, name)) == pytest.approx(size(getattr(base, name)), rel=0.15), name
    assert model.embedding.weight.std().item() == pytest.approx(base.embedding.weight.std().item(), rel=0.01)
    assert torch.equal(model.norm.weight, torch.ones(256))


def test_decay_keeps_lr_times_weight_decay():
    optimizer = width_transfer(AdamW, Net(32), Net(8), lr=0.1, weight_decay=0.5)
    products = {round(g["lr"] * g["weight_decay"], 9) for g in optimizer.param_groups}
    assert products == {0.05, 0.0}


def change(family, width, parametrization, tied=False, **options):
    """Root mean square of what five steps change in the hidden features and in the logits."""
    model = Net(width, tied)
    base = Net(16, tied) if parametrization == "mup" else None
    if parametrization == "standard":
        optimizer = family(param_groups(model), **options)
    else:
        optimizer = width_transfer(family, model, base, parametrization=parametrization, **options)
    tokens = torch.arange(11)

    def features():
        with torch.no_grad():
            return model.second(torch.tanh(model.first(model.embedding(tokens)))), model(tokens)

    before = features()
    for _ in range(5):
        optimizer.zero_grad()
        F.cross_entropy(model(tokens), tokens.flip(0)).backward()
        optimizer.step()
    return [(a - b).square().mean().sqrt().item() for a, b in zip(features(), before, strict=True)]


WIDE = {
    "sgd": (SGD, {"lr": 0.3}),
    "adamw": (AdamW, {"lr": 0.02}),
    "muon": (Muon, {"lr": 0.05, "adamw_lr": 0.02}),
    "shampoo": (Shampoo, {"lr": 0.05, "adamw_lr": 0.02}),
}


@pytest.mark.parametrize("tied", [False, True], ids=["own head", "tied head"])
@pytest.mark.parametrize("name", WIDE)
def test_features_and_logits_move_alike_at_all_widths(name, tied):
    """The coordinate check of Yang et al. 2022: under muP the change does not depend on width, in the limit; from 32 to
    512 it stays within a factor 1.7, where one learning rate for all changes the logits of some by more than 3."""
    family, options = WIDE[name]
    moves = [change(family, width, "mup", tied, **options) for width in (32, 128, 512)]
    for narrow, middle, wide in zip(*moves, strict=True):
        assert max(narrow, middle, wide) < 1.7 * min(narrow, middle, wide), moves


@pytest.mark.parametrize("name", ["adamw", "muon", "shampoo"])
def test_without_transfer_they_do_not(name):
    family, options = WIDE[name]
    moves = [change(family, width, "standard", **options) for width in (32, 512)]
    assert any(wide > 2.5 * narrow for narrow, wide in zip(*moves, strict=True)), moves


@pytest.mark.parametrize("name", ["adamw", "muon", "shampoo"])
def test_unit_scale(name):
    family, _ = WIDE[name]
    model = Net(64)
    options = {"adamw_lr": 0.5} if name != "adamw" else {}
    optimizer = width_transfer(family, model, parametrization="u-mup", lr=0.5, **options)
    for layer in (model.first, model.second, model.head, model.embedding):
        assert layer.weight.square().mean().sqrt().item() == pytest.approx(1, rel=1e-5)
    if name == "adamw":  # Blake et al. 2025, table 2
        expected = {"embedding": 0.5 / 8, "first": 0.5 / 8, "second": 0.5 / 128**0.5, "head": 0.5, "norm": 0.5}
        assert {k: v for k, v in rates(optimizer).items() if k in expected} == pytest.approx(expected, rel=1e-4)
    moves = [change(family, w, "u-mup", lr=0.1, **({"adamw_lr": 0.1} if options else {})) for w in (128, 512)]
    logits = [m[1] for m in moves]
    assert max(logits) < 1.5 * min(logits), moves


def test_copies_and_the_base_on_meta():
    with torch.device("meta"):
        base = Net(8)
    model = Net(32, tied=True)
    with torch.device("meta"):
        tied = Net(8, tied=True)
    width_transfer(Muon, model, tied, init=False)
    tokens = torch.arange(11)
    torch.testing.assert_close(copy.deepcopy(model)(tokens), model(tokens))
    fresh = Net(32, tied=True)
    torch.testing.assert_close(model(tokens), fresh(tokens) / 4)  # the tied head's input over the ratio of widths
    assert rates(width_transfer(AdamW, Net(32), base, init=False, lr=1.0))["first"] == pytest.approx(0.25)


def test_points_keep_their_rate():
    models = [nn.Sequential(nn.Linear(n, n, bias=False), nn.Linear(n, n)) for n in (8, 32)]
    for model in models:
        constrain(model[0], "weight", Stiefel())
    before = models[1][0].weight.detach().clone()
    optimizer = width_transfer(Muon, models[1], models[0], lr=0.1)
    assert rates(optimizer)["0"] == 0.1
    assert torch.equal(before, models[1][0].weight)


def test_points_of_two_tensors_stay_together():
    class Pair(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.B, self.A = nn.Parameter(torch.randn(width, 2)), nn.Parameter(torch.randn(2, width))
            self.rest = nn.Linear(width, width)
            constrain(self, ("B", "A"), steepest.FixedRank())

    optimizer = width_transfer(AdamW, Pair(16), Pair(8), lr=0.1)
    assert [(g["role"], g["param_names"], g["lr"]) for g in optimizer.param_groups] == [
        ("point", ["B", "A"], 0.1),
        ("matrix", ["rest.weight"], pytest.approx(0.05)),
        ("other", ["rest.bias"], pytest.approx(0.1)),
    ]


def test_schedulers_and_state_go_on():
    model = Net(32)
    optimizer = width_transfer(Muon, model, Net(8), lr=0.1)
    before = rates(optimizer)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    model(torch.arange(11)).square().sum().backward()
    optimizer.step()
    scheduler.step()
    assert rates(optimizer) == pytest.approx({k: v / 2 for k, v in before.items()})
    again = width_transfer(Muon, Net(32), Net(8), lr=0.3)
    again.load_state_dict(optimizer.state_dict())
    assert rates(again) == rates(optimizer)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"base": None}, "base: 'mup' needs a model"),
        ({"base": Net(8), "parametrization": "u-mup"}, "base: 'u-mup' takes no model"),
        ({"base": Net(8), "parametrization": "ntk"}, "parametrization: unknown 'ntk', expected one of mup, u-mup"),
        ({"base": nn.Linear(2, 2)}, "base: has no parameter like"),
    ],
)
def test_errors_teach(arguments, words):
    with pytest.raises(ValueError, match=words):
        width_transfer(AdamW, Net(32), **arguments)


def test_once_on_a_model():
    model = Net(32)
    width_transfer(AdamW, model, parametrization="u-mup")
    with pytest.raises(ValueError, match="scaled already"):
        width_transfer(AdamW, model, parametrization="u-mup")
    with pytest.raises(ValueError, match=r"in_proj_weight: is no layer's `weight`.*use 'mup'"):
        width_transfer(AdamW, nn.MultiheadAttention(8, 2), parametrization="u-mup")
