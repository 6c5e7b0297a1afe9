"""MoE-LoRA against a loop over tokens and experts, its gradients against autograd on it, and inside PEFT."""

import copy

import pytest
import torch
from torch import nn

from steepest import SGD, Adam, FixedRank, param_groups
from steepest.adapters import MoELoRA, Source

peft = pytest.importorskip("peft")
from steepest.adapters import MoELoRAConfig  # noqa: E402

DOUBLE = torch.float64
OUT, IN = 7, 9
CASES = [(5, 2, 3), (4, 4, 2), (3, 1, 2), (1, 1, 2)]
"""Experts, how many of them a token has, rank."""


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def tensors(experts, r, seed=0):
    shapes = {"A": (experts, r, IN), "B": (experts, OUT, r), "router": (experts, IN)}
    return {name: randn(*shape, seed=seed + i) for i, (name, shape) in enumerate(shapes.items())}


def gates(t, x, top_k):
    """As the authors: the softmax of all scores, cut off and divided by what is left of it."""
    everything = torch.softmax(x @ t["router"].mT, -1)
    kept = torch.zeros_like(everything)
    chosen = everything.topk(top_k, -1).indices
    kept.scatter_(-1, chosen, 1.0)
    return everything * kept / (everything * kept).sum(-1, keepdim=True)


def by_hand(t, x, top_k, factor, expert=lambda g, out: g * out):
    """One token and one expert after the other."""
    g = gates(t, x, top_k)
    tokens = []
    for i in range(len(x)):
        parts = [expert(g[i, e], factor * t["B"][e] @ (t["A"][e] @ x[i])) for e in range(len(t["A"]))]
        tokens.append(sum(parts))
    return torch.stack(tokens)


def scaled(g, out):
    """g out, which sends sqrt(g) back to the expert, and to g what belongs to it."""
    root = g.sqrt().detach()
    return root * out + (g - root) * out.detach()


def gradients(function, t, x, dy):
    leaves = {n: v.clone().requires_grad_() for n, v in (t | {"x": x}).items()}
    x = leaves.pop("x")
    (function(leaves, x) * dy).sum().backward()
    return {n: v.grad for n, v in leaves.items()} | {"x": x.grad}


@pytest.mark.parametrize(("experts", "top_k", "r"), CASES)
@pytest.mark.parametrize("scaling", [False, True])
def test_formula(experts, top_k, r, scaling):
    adapter = MoELoRA(r=r, experts=experts, top_k=top_k, alpha=3.0, gate_scaling=scaling)
    t, x = tensors(experts, r), randn(8, IN, seed=5)
    expected = by_hand(t, x, top_k, 3.0 / r)
    torch.testing.assert_close(adapter.add(t, x), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(adapter.add(t, x.view(2, 4, IN)), expected.view(2, 4, OUT), rtol=0, atol=1e-12)
    torch.testing.assert_close(adapter.add(t, x[3]), expected[3], rtol=0, atol=1e-12)
    assert adapter.add(t, x[:0]).shape == (0, OUT)
    g = adapter.gates(t, x)
    torch.testing.assert_close(g, gates(t, x, top_k), rtol=0, atol=1e-14)
    assert ((g > 0).sum(-1) == top_k).all()


@pytest.mark.parametrize(("experts", "top_k", "r"), CASES)
def test_scaled_gradients(experts, top_k, r):
    adapter = MoELoRA(r=r, experts=experts, top_k=top_k, alpha=3.0)
    t, x, dy = tensors(experts, r), randn(8, IN, seed=5), randn(8, OUT, seed=6)
    found = gradients(adapter.add, t, x, dy)
    weighted = gradients(lambda t, x: by_hand(t, x, top_k, 3.0 / r, scaled), t, x, dy)
    plain = gradients(lambda t, x: by_hand(t, x, top_k, 3.0 / r), t, x, dy)
    for name in ("A", "B"):
        torch.testing.assert_close(found[name], weighted[name], rtol=0, atol=1e-12)
    for name in ("router", "x"):
        torch.testing.assert_close(found[name], plain[name], rtol=0, atol=1e-12)
    if top_k > 1:
        assert (found["A"] - plain["A"]).norm() > 0.1 * plain["A"].norm()
        assert (weighted["x"] - plain["x"]).norm() > 0.1 * plain["x"].norm()  # of the authors' code


@pytest.mark.parametrize("name", ["router", "x"])
def test_router_and_input_have_the_gradients_of_the_output(name):
    adapter = MoELoRA(r=2, experts=5, top_k=3)
    t, x, dy = tensors(5, 2), randn(4, IN, seed=5), randn(4, OUT, seed=6)
    all_of = t | {"x": x}
    found = gradients(adapter.add, t, x, dy)[name]

    def value(shift):
        moved = all_of | {name: all_of[name] + shift}
        return (adapter.add({k: moved[k] for k in t}, moved["x"]) * dy).sum()

    h = 1e-6  # no choice of experts changes within it
    for seed in range(5):
        direction = randn(*all_of[name].shape, seed=seed)
        slope = (value(h * direction) - value(-h * direction)) / (2 * h)
        torch.testing.assert_close((found * direction).sum(), slope, rtol=1e-7, atol=1e-7)  # h^2, 1e-16 / h


def test_gradients_without_scaling():
    adapter = MoELoRA(r=2, experts=4, top_k=2, gate_scaling=False)
    t, x = tensors(4, 2), randn(3, IN, seed=5)
    leaves = [v.clone().requires_grad_() for v in (x, t["A"], t["B"], t["router"])]
    torch.autograd.gradcheck(
        lambda x, a, b, router: adapter.add({"A": a, "B": b, "router": router}, x), leaves, fast_mode=True
    )


def test_gradients_of_each_example():
    adapter = MoELoRA(r=2, experts=4, top_k=2)
    t, x, dy = tensors(4, 2), randn(6, IN, seed=5), randn(6, OUT, seed=6)

    def loss(t, x, dy):
        return (adapter.add(t, x) * dy).sum()

    each = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(t, x, dy)
    whole = gradients(adapter.add, t, x, dy)
    for name, g in each.items():
        torch.testing.assert_close(g.sum(0), whole[name], rtol=0, atol=1e-12)
    third = gradients(adapter.add, t, x[2:3], dy[2:3])
    torch.testing.assert_close(each["A"][2], third["A"], rtol=0, atol=1e-12)


# Inside PEFT. ---------------------------------------------------------------------------------------------------------


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(IN, IN), nn.Linear(IN, OUT)
        for i, p in enumerate(self.parameters()):
            p.data = randn(*p.shape, seed=30 + i).float() / 3

    def forward(self, x):
        return self.b(torch.tanh(self.a(x)))


X, Y = randn(24, IN, seed=1).float(), randn(24, OUT, seed=2).float()
OPTIONS = {"r": 2, "experts": 4, "top_k": 2, "alpha": 4.0}


def adapted(**options):
    return peft.get_peft_model(Net(), MoELoRAConfig(**(OPTIONS | {"target_modules": ["a", "b"]} | options)))


def loss_of(model, x=X):
    return (model(x).float() - Y).square().mean()


def layer_of(model, name="b"):
    return getattr(model.base_model.model, name)


def test_a_single_expert_is_lora():
    model = adapted(experts=1, top_k=1)
    lora = peft.get_peft_model(Net(), peft.LoraConfig(r=2, lora_alpha=4, target_modules=["a", "b"]))
    for name in "ab":
        t, stock = layer_of(model, name).tensors("default"), layer_of(lora, name)
        t["B"].data = randn(*t["B"].shape, seed=7).float()
        stock.lora_A["default"].weight.data, stock.lora_B["default"].weight.data = t["A"].data[0], t["B"].data[0]
    torch.testing.assert_close(model(X), lora(X))
    for net in (model, lora):
        loss_of(net).backward()
    for name in "ab":
        t, stock = layer_of(model, name).tensors("default"), layer_of(lora, name)
        torch.testing.assert_close(t["A"].grad[0], stock.lora_A["default"].weight.grad)
        torch.testing.assert_close(t["B"].grad[0], stock.lora_B["default"].weight.grad)
        assert not t["router"].grad.any()  # the one gate is 1, whatever it says


def test_start():
    t = layer_of(adapted(experts=50, top_k=3)).tensors("default")
    bound = IN**-0.5
    for name in ("A", "router"):
        assert t[name].abs().max() <= bound
        assert t[name].std().item() == pytest.approx(bound / 3**0.5, rel=0.1)  # of a uniform one; 900 and 450 numbers
    assert not t["B"].any()
    assert len({tuple(a.flatten().tolist()) for a in t["A"]}) == 50  # experts that start alike would stay so


def test_each_layers_experts_are_one_batch_of_points():
    model = adapted()
    groups = param_groups(model)
    points = [g for g in groups if g["role"] == "point"]
    assert sorted(tuple(p.shape) for g in points for p in g["params"]) == sorted(
        [(4, IN, 2), (4, 2, IN), (4, OUT, 2), (4, 2, IN)]
    )
    others = [n for g in groups if g["role"] == "other" for n in g["param_names"]]
    assert others == [f"base_model.model.{n}.steepest_moelora_router.default" for n in "ab"]
    optimizer = Adam(groups, lr=0.02)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = loss_of(model)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    moments = [tuple(t.shape) for s in optimizer.state.values() for t in s.values() if torch.is_tensor(t) and t.ndim]
    assert (4, OUT, 2) in moments  # one state for a layer's experts


def test_each_expert_has_its_own_preconditioner():
    adapter = MoELoRA(**OPTIONS)
    model = adapted()
    layer = layer_of(model)
    with torch.no_grad():
        layer.tensors("default")["B"].copy_(randn(4, OUT, 2, seed=3))
    loss_of(model).backward()
    before = {n: p.clone() for n, p in layer.tensors("default").items()}
    grads = {n: p.grad.double() for n, p in layer.tensors("default").items()}
    lr = 1e-3
    SGD(param_groups(model), lr=lr).step()
    after = layer.tensors("default")
    assert adapter.points() == {("B", "A"): FixedRank(turn=0.03)}
    for e in range(4):
        b, a = before["B"][e].double(), before["A"][e].double()
        step_b = grads["B"][e] @ torch.linalg.inv(a @ a.mT)
        step_a = torch.linalg.inv(b.mT @ b) @ grads["A"][e]
        assert lr * (b @ step_a).norm() < 0.03 * (b @ a).norm()  # not bounded
        for name, step in (("B", step_b), ("A", step_a)):
            moved = (after[name][e] - before[name][e]).double()
            torch.testing.assert_close(moved, -lr * step, rtol=0, atol=3e-7)  # rounding of entries of some 2


def test_nothing_takes_its_place():
    model = adapted(init_weights=False)
    y = model(X)
    for act in (
        model.merge_adapter,
        model.merge_and_unload,
        lambda: layer_of(model).get_delta_weight("default"),
    ):
        with pytest.raises(ValueError, match="MoELoRA is not linear in the layer's input"):
            act()
        torch.testing.assert_close(model(X), y, rtol=0, atol=0)
    with pytest.raises(TypeError, match=r"do not support LoRA conversion.*MoELoRA"):
        peft.convert_to_lora(model, rank=4)
    with pytest.raises(ValueError, match="depends on the token"):
        MoELoRA(**OPTIONS).shift({})
    assert isinstance(model.unload(), Net)


def test_saved_and_loaded(tmp_path):
    model = adapted(init_weights=False)
    model.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(Net(), tmp_path)
    torch.testing.assert_close(loaded(X), model(X), rtol=0, atol=0)
    assert loaded.peft_config["default"].method() == MoELoRA(**OPTIONS)


def trained_grads(model):
    return {n: p.grad for n, p in model.named_parameters() if p.requires_grad}


def shaken(**options):
    model = adapted(**options)
    for name in "ab":
        layer_of(model, name).tensors("default")["B"].data += 0.3 * randn(4, *layer_of(model, name).weight.shape[:1], 2)
    return model


@pytest.mark.parametrize("scaling", [False, True])
def test_autocast(scaling):
    exact, model = shaken(gate_scaling=scaling), shaken(gate_scaling=scaling)
    loss_of(exact).backward()
    with torch.autocast("cpu", torch.bfloat16):
        y = model(X)
        loss = loss_of(model)
    loss.backward()
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), exact(X), rtol=0, atol=0.05)
    for name, g in trained_grads(model).items():
        expected = trained_grads(exact)[name]
        assert g.dtype == torch.float32
        assert (g - expected).norm() < 0.1 * expected.norm(), name  # 2^-8 in each of some products


@pytest.mark.slow
@pytest.mark.parametrize("scaling", [False, True])
def test_compiled(scaling):
    eager = shaken(gate_scaling=scaling)
    model = copy.deepcopy(eager)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager")
    for net in (eager, compiled):
        loss_of(net).backward()
    torch.testing.assert_close(compiled(X), eager(X), rtol=1e-5, atol=1e-5)
    for name, g in trained_grads(model).items():
        torch.testing.assert_close(g, trained_grads(eager)[name], rtol=1e-4, atol=1e-6)


def test_checkpointed_layers_have_the_same_gradients():
    plain, saving = shaken(), shaken()
    loss_of(plain).backward()
    y = torch.utils.checkpoint.checkpoint(saving, X, use_reentrant=False)
    (y - Y).square().mean().backward()
    for name, g in trained_grads(saving).items():
        torch.testing.assert_close(g, trained_grads(plain)[name], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"top_k": 5}, "top_k: got 5, expected a whole number from 1 to 4, the number of experts"),
        ({"experts": 0, "top_k": 1}, "experts: got 0"),
        ({"r": -1}, "r: got -1"),
        ({"alpha": 0.0}, "alpha: got 0.0"),
        ({"gate_scaling": "yes"}, "gate_scaling: got 'yes'"),
    ],
)
def test_options_that_are_wrong(options, words):
    with pytest.raises(ValueError, match=words):
        MoELoRAConfig(**(OPTIONS | options))


def test_a_rank_that_no_layer_has():
    source = Source(randn(OUT, IN))
    with pytest.raises(ValueError, match=f"r: got 8, .* {IN} inputs and {OUT} outputs"):
        MoELoRA(r=8, experts=2, top_k=1).start(source, {})
