"""Gradients for adapters: they are those of the task, and nothing else is touched. What adapters add to the loss."""

import copy
import types

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

peft = pytest.importorskip("peft")
from transformers.pytorch_utils import Conv1D  # noqa: E402

from steepest.adapters import HRAConfig, LOFTConfig, RiemannLoRAConfig, calibrate, penalty  # noqa: E402
from steepest.adapters.base import GRADIENT  # noqa: E402

DOUBLE = torch.float64


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


class Net(nn.Module):
    """A layer in torch's layout, one in GPT-2's, one that the output does not depend on, an embedding, a head."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(9, 6)
        self.a, self.b, self.idle, self.head = nn.Linear(6, 8), Conv1D(7, 8), nn.Linear(6, 6), nn.Linear(7, 3)
        self.double()
        for i, p in enumerate(self.parameters()):
            p.data = randn(*p.shape, seed=i) / 2

    def forward(self, x):
        return self.head(torch.tanh(self.b(torch.tanh(self.a(self.words(x))))))


BATCHES = [torch.arange(20) % 9, torch.arange(3, 15) % 9]


def run(net, batches=BATCHES):
    for x in batches:
        net(x).square().mean().backward()


def true_gradients(net, names, batches=BATCHES):
    copy = Net()
    copy.load_state_dict(net.state_dict())
    run(copy, batches)
    return {n: copy.get_submodule(n).weight.grad for n in names}


def config(targets=("a", "b"), **options):
    return RiemannLoRAConfig(r=2, target_modules=targets if isinstance(targets, str) else list(targets), **options)


def kept(net):
    return {n: m.__dict__[GRADIENT] for n, m in net.named_modules() if GRADIENT in m.__dict__}


def settings(net):
    return [(p.requires_grad, p.grad, None if p.grad is None else p.grad.clone()) for p in net.parameters()]


def same(before, after):
    return all(
        a[0] == b[0] and a[1] is b[1] and (a[1] is None or torch.equal(a[2], b[2]))
        for a, b in zip(before, after, strict=True)
    )


@pytest.mark.parametrize("batches", [BATCHES, BATCHES[:1]])
def test_gradients_of_all_batches(batches):
    net = Net()
    settled = calibrate(net, config(), lambda: run(net, batches))
    assert settled.calibrated
    found = kept(net)
    assert sorted(found) == ["a", "b"]
    for name, g in true_gradients(net, "ab", batches).items():
        torch.testing.assert_close(found[name], g, rtol=0, atol=1e-15)
    assert found["b"].shape == (8, 7)  # GPT-2's layout, as the weight; the adapter turns it
    model = peft.get_peft_model(net, settled)
    assert not kept(model)
    u, _, vh = torch.linalg.svd(true_gradients(Net(), "b", batches)["b"].mT)
    t = model.base_model.model.b.tensors("default")
    torch.testing.assert_close(2 * t["U"] @ t["U"].mT, u[:, :2] @ u[:, :2].mT, rtol=0, atol=1e-8)
    torch.testing.assert_close(t["V"] @ t["V"].mT, vh[2:4].mT @ vh[2:4], rtol=0, atol=1e-8)


def test_nothing_else_is_touched():
    net = Net()
    net.a.weight.requires_grad_(False)
    net.head.requires_grad_(False)
    net.b.weight.grad = randn(8, 7, seed=30)
    net.words.weight.grad = randn(9, 6, seed=31)
    before, weights = settings(net), {n: p.clone() for n, p in net.named_parameters()}
    seen = []

    def step():
        seen.extend(n for n, p in net.named_parameters() if p.requires_grad)
        run(net)

    calibrate(net, config(), step)
    assert seen == ["a.weight", "b.weight"]
    assert same(before, settings(net))
    assert all(torch.equal(p, weights[n]) for n, p in net.named_parameters())
    torch.testing.assert_close(kept(net)["b"], true_gradients(net, "b")["b"], rtol=0, atol=1e-15)


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_step_that_fails_leaves_no_trace(when):
    net = Net()
    net.a.weight.requires_grad_(False)
    net.b.weight.grad = randn(8, 7, seed=30)
    before, wanted = settings(net), config()

    def step():
        if when == "after":
            run(net)
        raise KeyError("no more data")

    with pytest.raises(KeyError, match="no more data"):
        calibrate(net, wanted, step)
    assert same(before, settings(net))
    assert not kept(net)
    assert not wanted.calibrated


def test_a_forward_pass_without_gradients_around_it():
    net = Net()
    with torch.no_grad():
        calibrate(net, config(), lambda: run(net))
    assert sorted(kept(net)) == ["a", "b"]


def forget(net):
    net(BATCHES[0])


def overflow(net):
    (net(BATCHES[0]).mean() * float("inf")).backward()


@pytest.mark.parametrize(
    ("targets", "step", "words"),
    [
        (["a", "idle"], run, "step: of the gradient of idle, there is none; it has to run the model"),
        (["a"], forget, "step: of the gradient of a, there is none"),
        (["a"], overflow, "step: of the gradient of a, it has NaN or infinite entries"),
        (["c"], run, "config: no layer of the model is named by target_modules={'c'}"),
        (None, run, "config: no layer of the model is named by target_modules=None"),
    ],
)
def test_a_step_or_a_config_that_does_nothing(targets, step, words):
    net = Net()
    wanted = RiemannLoRAConfig(r=2, target_modules=targets)
    before = settings(net)
    with pytest.raises(ValueError, match=words):
        calibrate(net, wanted, lambda: step(net))
    assert same(before, settings(net))
    assert not kept(net)
    assert not wanted.calibrated


def test_without_targets_those_of_the_model_type():
    """As the tuner chooses them."""
    net = nn.ModuleDict({name: nn.Linear(3, 3) for name in ("query", "key", "value")})
    net.config = types.SimpleNamespace(model_type="bert")
    calibrate(net, RiemannLoRAConfig(r=2), lambda: sum(m.weight.sum() for m in net.values()).backward())
    assert kept(net).keys() == {"query", "value"}


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (RiemannLoRAConfig(r=2, init="orthonormal"), "RiemannLoRA.*orthonormal.* does not start from gradients"),
        (LOFTConfig(r=2), "LOFT.* does not start from gradients"),
        (peft.LoraConfig(r=2), "LoraConfig does not start from gradients"),
    ],
)
def test_configs_that_want_none(wrong, words):
    wrong.target_modules = {"a"}
    with pytest.raises(ValueError, match=words):
        calibrate(Net(), wrong, lambda: pytest.fail("ran all the same"))


@pytest.mark.parametrize(
    ("targets", "options", "expected"),
    [
        ("all-linear", {}, ["a", "b", "head", "idle"]),
        ("a|head", {}, ["a", "head"]),
        ("all-linear", {"exclude_modules": ["idle", "head"]}, ["a", "b"]),
        (["a", "b"], {"modules_to_save": ["b"]}, ["a"]),
    ],
)
def test_layers_are_named_as_for_peft(targets, options, expected):
    net = Net()

    def step():
        run(net)
        net.idle(randn(4, 6)).square().sum().backward() if "idle" in expected else None

    wanted = calibrate(net, config(targets, **options), step)
    assert sorted(kept(net)) == expected
    assert wanted.target_modules == (targets if isinstance(targets, str) else set(targets))
    model = peft.get_peft_model(net, wanted)
    adapted = [n for n, m in model.base_model.model.named_modules() if hasattr(m, "get_base_layer")]
    assert sorted(adapted) == expected


def test_a_layer_of_blocks():
    net = nn.ModuleDict({"layers": nn.ModuleList(nn.ModuleDict({"q": nn.Linear(4, 4)}) for _ in range(3))})
    wanted = config(["q"], layers_to_transform=[1], layers_pattern="layers")
    calibrate(net, wanted, lambda: sum(m["q"](torch.ones(4)).sum() for m in net["layers"]).backward())
    assert sorted(kept(net)) == ["layers.1.q"]


def test_a_second_adapter():
    net = Net()
    model = peft.get_peft_model(net, calibrate(net, config(), lambda: run(net)))
    for p in model.parameters():
        if p.requires_grad:
            p.data += 0.1 * randn(*p.shape, seed=8)
    second = config("(a|b|a.*)")  # PEFT does not look inside its layers
    before = settings(model)
    calibrate(model, second, lambda: run(model))
    assert same(before, settings(model))
    found = kept(model)
    assert sorted(n.removeprefix("base_model.model.") for n in found) == ["a.base_layer", "b.base_layer"]
    for name in "ab":  # the gradient with the first adapter at work
        layer = model.base_model.model.get_submodule(name)
        moved = Net()
        for other in "ab":
            there = model.base_model.model.get_submodule(other)
            moved.get_submodule(other).weight.data += there.get_delta_weight("default")
        torch.testing.assert_close(getattr(layer.base_layer, GRADIENT), true_gradients(moved, name)[name])
    model.add_adapter("second", second)
    assert not kept(model)
    model.set_adapter("second")
    torch.testing.assert_close(model(BATCHES[0]), Net()(BATCHES[0]))


def test_weights_that_are_made_by_something():
    net = Net()
    parametrizations.weight_norm(net.a)
    with pytest.raises(ValueError, match="model: the weight of a is made by a parametrisation"):
        calibrate(net, config(), lambda: run(net))
    net = Net()
    net.a.weight = nn.Parameter(torch.zeros(8, 3, dtype=torch.int8), requires_grad=False)
    with pytest.raises(ValueError, match=r"model: the weight of a is quantised \(torch.int8\)"):
        calibrate(net, config(), lambda: run(net))


def test_tied_weights_have_one_gradient():
    net = nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 5)).double()
    net[1].weight = net[0].weight
    x = randn(7, 5)
    calibrate(net, config(["0", "1"]), lambda: net(x).square().sum().backward())
    w = net[0].weight.detach().requires_grad_()
    y = nn.functional.linear(nn.functional.linear(x, w, net[0].bias), w, net[1].bias)
    (g,) = torch.autograd.grad(y.square().sum(), w)
    torch.testing.assert_close(kept(net)["0"], g)
    torch.testing.assert_close(kept(net)["1"], g)


# Penalties. -----------------------------------------------------------------------------------------------------------


def test_penalty_is_the_sum_over_active_adapters():
    net = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 4)).double()
    model = peft.get_peft_model(net, HRAConfig(r=2, regularizer=0.5, target_modules=["0", "2"]))
    one = 0.5 * 2**0.5  # two equal unit vectors: |I - [[1, 1], [1, 1]]| is sqrt 2
    assert float(penalty(model)) == pytest.approx(2 * one)
    model.add_adapter("second", HRAConfig(r=4, regularizer=0.1, target_modules=["2"]))
    assert float(penalty(model)) == pytest.approx(2 * one)
    model.base_model.set_adapter(["default", "second"])
    u = model.base_model.model[2].tensors("second")["u"]
    gram = (u.mT @ u - torch.eye(4, dtype=DOUBLE)).detach()
    assert float(penalty(model)) == pytest.approx(2 * one + 0.1 * gram.norm().item())
    penalty(model).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_penalty_of_nothing():
    assert penalty(nn.Linear(3, 3)) == 0.0
    lora = peft.get_peft_model(nn.Sequential(nn.Linear(3, 3)), peft.LoraConfig(r=2, target_modules=["0"]))
    assert penalty(lora) == 0.0
    free = peft.get_peft_model(nn.Sequential(nn.Linear(4, 4)), HRAConfig(r=2, target_modules=["0"]))
    assert penalty(free) == 0.0


def test_a_config_that_is_used_again_has_to_be_calibrated_again():
    def fresh():
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Linear(8, 8))

    model, x = fresh(), torch.randn(20, 8)
    config = LOFTConfig(r=4, support="gradient", target_modules=["0"])
    calibrate(model, config, lambda: model(x).square().mean().backward())
    peft.get_peft_model(model, config)
    with pytest.raises(ValueError, match="each time"):
        peft.get_peft_model(fresh(), config)


def test_a_saved_config_without_its_weights_is_no_start(tmp_path):
    torch.manual_seed(0)
    base, x = torch.nn.Sequential(torch.nn.Linear(8, 8)), torch.randn(20, 8)
    fresh = copy.deepcopy(base)
    config = LOFTConfig(r=4, support="gradient", target_modules=["0"])
    calibrate(base, config, lambda: base(x).square().mean().backward())
    model = peft.get_peft_model(base, config)
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="weights have not been loaded"):
        peft.get_peft_model(copy.deepcopy(fresh), peft.PeftConfig.from_pretrained(tmp_path))(x)
    loaded = peft.PeftModel.from_pretrained(fresh, tmp_path)
    torch.testing.assert_close(loaded(x), model(x))
