"""The engine as a `torch.optim.Optimizer`: state, checkpoints, groups, hooks, memory, refusals that change nothing."""

import copy
import io
import math
import pickle

import pytest
import torch
from torch import nn

from steepest import (
    SGD,
    SPD,
    Adagrad,
    Adam,
    AdamW,
    AMSGrad,
    Composed,
    FixedRank,
    Grassmann,
    Muon,
    Oblique,
    Shampoo,
    Sphere,
    Stiefel,
    constrain,
    param_groups,
)
from steepest.norms import Spectral
from steepest.optim import OPTIMIZERS
from steepest.transforms import Momentum

ALL = {name: family for name, family in OPTIMIZERS.items() if name != "composed" and "steepest" in family.__module__}


class Mixed(nn.Module):
    """Plain and constrained parameters of several kinds, alike ones among them."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 4), nn.Linear(6, 4)
        self.head = nn.Linear(4, 4)
        self.b, self.a = nn.Parameter(torch.randn(4, 2)), nn.Parameter(torch.randn(2, 4))
        for layer in (self.first, self.second):
            constrain(layer, "weight", Stiefel(), matrix="o i -> i o")
        constrain(self, ("b", "a"), FixedRank())

    def forward(self, x):
        return self.head((self.first(x) - self.second(x)).tanh() + self.first(x) @ self.b @ self.a)


def loss(model: nn.Module, seed: int = 0) -> torch.Tensor:
    x = torch.randn(8, 6, generator=torch.Generator().manual_seed(seed))
    dtype = next(model.parameters()).dtype
    return (model(x.to(dtype)) - x[:, :4]).float().square().mean()


def step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int = 0) -> float:
    optimizer.zero_grad()
    value = loss(model, seed)
    value.backward()
    optimizer.step()
    return value.item()


def snapshot(optimizer: torch.optim.Optimizer) -> bytes:
    """Parameters, state and options, to the last bit."""
    file = io.BytesIO()
    params = [p.detach() for g in optimizer.param_groups for p in g["params"]]
    torch.save((params, optimizer.state_dict(), [p.grad for g in optimizer.param_groups for p in g["params"]]), file)
    file.seek(0)
    return repr(_bits(torch.load(file, weights_only=True))).encode()


def _bits(value):
    if isinstance(value, torch.Tensor):
        return tuple(value.shape), str(value.dtype), value.reshape(-1).contiguous().view(torch.uint8).tolist()
    if isinstance(value, dict):
        return {k: _bits(v) for k, v in value.items()}
    return [_bits(v) for v in value] if isinstance(value, list | tuple) else value


def weights(model: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def equal(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# Checkpoints. ---------------------------------------------------------------------------------------------------------


@pytest.mark.of_each_kind
@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("named", [False, True])
def test_resume_bit_for_bit_in_a_new_process_so_to_speak(name, named):
    def build(model, lr=0.05):
        return ALL[name](param_groups(model) if named else model.parameters(), lr=lr)

    torch.manual_seed(0)
    model = Mixed()
    optimizer = build(model)
    for i in range(3):
        step(model, optimizer, i)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    for i in range(3, 6):
        step(model, optimizer, i)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    torch.manual_seed(1)
    again = Mixed()
    again.load_state_dict(saved["model"])
    resumed = build(again, lr=9.0)
    resumed.load_state_dict(saved["optimizer"])
    for i in range(3, 6):
        step(again, resumed, i)
    assert equal(weights(model), weights(again))


@pytest.mark.parametrize(
    "copier", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))], ids=["deepcopy", "pickle"]
)
def test_a_copy_of_model_and_optimiser_goes_on_alike_and_apart(copier):
    model = Mixed()
    optimizer = Adam(model.parameters(), lr=0.05)
    step(model, optimizer)
    twin, other = copier((model, optimizer))
    before = weights(model)
    step(twin, other)
    assert equal(before, weights(model))
    step(model, optimizer)
    assert equal(weights(model), weights(twin))


def test_loading_does_not_share_memory_with_the_checkpoint():
    model = Mixed()
    optimizer = Adam(model.parameters(), lr=0.05)
    step(model, optimizer)
    state = optimizer.state_dict()
    before = repr(_bits(state))
    other = Adam(model.parameters())
    other.load_state_dict(state)
    step(model, other)
    assert repr(_bits(state)) == before


def test_float32_state_of_bfloat16_parameters_stays_float32_when_loaded():
    model = nn.Linear(6, 4).bfloat16()
    optimizer = Adam(model.parameters(), lr=0.05)
    step(model, optimizer)
    other = Adam(model.parameters())
    other.load_state_dict(optimizer.state_dict())
    for p in model.parameters():
        for key in ("adam_scale.first", "adam_scale.second"):
            assert other.state[p][key].dtype == torch.float32
            assert torch.equal(other.state[p][key], optimizer.state[p][key])


def test_loading_between_optimisers_with_and_without_names():
    model = nn.Linear(6, 4)
    named, bare = Adam(model.named_parameters(), lr=0.05), Adam(model.parameters(), lr=0.05)
    step(model, named)
    step(model, bare)
    for source, target in ((named, Adam(model.parameters())), (bare, Adam(model.named_parameters()))):
        target.load_state_dict(source.state_dict())
        step(model, target)


def swapped(order):
    """Optimisers over layers of different shapes, and names of the same, in a given order."""
    torch.manual_seed(0)
    layers = nn.ModuleDict({"x": nn.Linear(3, 4), "y": nn.Linear(4, 3), "z": nn.Linear(4, 3)})
    for layer in layers.values():
        for p in layer.parameters():
            p.grad = torch.ones_like(p)
    return [(f"{n}.{k}", p) for n in order for k, p in layers[n].named_parameters()]


REFUSED_STATES = {
    "permuted names": (lambda: Adam(swapped("xyz")), lambda: Adam(swapped("xzy")), "param_names of group 0"),
    "permuted shapes": (
        lambda: Adam([p for _, p in swapped("xyz")]),
        lambda: Adam([p for _, p in swapped("yxz")]),
        "shapes of group 0",
    ),
    "another manifold": (
        lambda: SGD([{"params": [nn.Parameter(torch.eye(3))], "geometry": Stiefel()}]),
        lambda: SGD([{"params": [nn.Parameter(torch.eye(3))], "geometry": Grassmann()}]),
        "geometry of group 0",
    ),
    "another metric": (
        lambda: SGD([{"params": [nn.Parameter(torch.eye(3))], "geometry": Stiefel()}]),
        lambda: SGD([{"params": [nn.Parameter(torch.eye(3))], "geometry": Stiefel("canonical")}]),
        "canonical",
    ),
    "no manifold": (
        lambda: SGD([nn.Parameter(torch.eye(3))]),
        lambda: SGD([{"params": [nn.Parameter(torch.eye(3))], "geometry": Stiefel()}]),
        "geometry of group 0",
    ),
    "another pattern": (
        lambda: SGD([{"params": [nn.Parameter(torch.eye(3))], "geometry": Stiefel(), "matrix": "i o -> o i"}]),
        lambda: SGD([{"params": [nn.Parameter(torch.eye(3))], "geometry": Stiefel()}]),
        "matrix of group 0",
    ),
    "torch's own AdamW": (
        lambda: torch.optim.AdamW([nn.Parameter(torch.eye(3))]),
        lambda: AdamW([nn.Parameter(torch.eye(3))]),
        "exp_avg.*another method",
    ),
    "another method": (
        lambda: SGD([nn.Parameter(torch.eye(3))], momentum=0.9),
        lambda: Adam([nn.Parameter(torch.eye(3))]),
        "momentum.buffer.*another method",
    ),
    "too little state": (
        lambda: Adam([nn.Parameter(torch.eye(3))]),
        lambda: AMSGrad([nn.Parameter(torch.eye(3))]),
        "largest.*another method",
    ),
    "another number of groups": (
        lambda: Adam([{"params": [nn.Parameter(torch.eye(3))]}, {"params": [nn.Parameter(torch.eye(3))]}]),
        lambda: Adam([nn.Parameter(torch.eye(3))]),
        "number of parameter groups",
    ),
}


@pytest.mark.parametrize("case", REFUSED_STATES)
def test_states_of_something_else_are_refused_and_change_nothing(case):
    source, target, message = REFUSED_STATES[case]
    optimizers = source(), target()
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.grad = torch.randn_like(p)
        optimizer.step()
    before = snapshot(optimizers[1])
    with pytest.raises(ValueError, match=message):
        optimizers[1].load_state_dict(optimizers[0].state_dict())
    assert snapshot(optimizers[1]) == before
    optimizers[1].step()


def test_a_checkpoint_from_before_an_option_existed_takes_the_value_given_here():
    model = nn.Linear(6, 4)
    optimizer = Adam(model.parameters(), lr=0.05)
    step(model, optimizer)
    state = optimizer.state_dict()
    for group in state["param_groups"]:
        del group["eps"]
    other = Adam(model.parameters(), eps=1e-3)
    other.load_state_dict(state)
    assert (other.param_groups[0]["eps"], other.param_groups[0]["lr"]) == (1e-3, 0.05)
    step(model, other)


def test_values_in_groups_are_plain_whatever_came_in():
    weight = nn.Parameter(torch.eye(3))
    group = {"params": [weight], "geometry": Stiefel("canonical"), "norm": Spectral("exact")}
    optimizer = Muon([group])
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    assert torch.load(file, weights_only=True)["param_groups"][0]["norm"]["kind"] == "Spectral"
    assert set(group) == {"params", "geometry", "norm"}  # the user's dictionary is not written into


def test_composed_keeps_its_chain_in_the_checkpoint():
    weight = nn.Parameter(torch.ones(2, 2))
    weight.grad = torch.ones(2, 2)
    optimizer = Composed([weight], Momentum(0.5), lr=1.0)
    optimizer.step()
    other = Composed([weight], Momentum(0.9), lr=1.0)
    other.load_state_dict(optimizer.state_dict())
    assert other.chain(other.param_groups[0]).links == (Momentum(0.5),)


# Groups. --------------------------------------------------------------------------------------------------------------


@pytest.mark.of_each_kind
@pytest.mark.parametrize("name", ALL)
def test_a_group_added_later_is_stepped_and_saved(name):
    model = Mixed()
    head, rest = list(model.head.parameters()), [p for n, p in model.named_parameters() if "head" not in n]
    optimizer = ALL[name](head, lr=0.05)
    before = weights(model)
    step(model, optimizer)
    assert sum(torch.equal(a, b) for a, b in zip(before, weights(model), strict=True)) == len(rest)
    optimizer.add_param_group({"params": rest, "lr": 0.01})
    before = weights(model)
    step(model, optimizer)
    assert not any(torch.equal(a, b) for a, b in zip(before, weights(model), strict=True))
    assert optimizer.residual() < 1e-5
    assert {g["lr"] for g in optimizer.param_groups if g.get("geometry")} == {0.01}
    other = ALL[name](head, lr=0.05)
    other.add_param_group({"params": rest, "lr": 0.01})
    other.load_state_dict(optimizer.state_dict())
    assert snapshot(other) == snapshot(optimizer)


class Bad(nn.Module):
    def __init__(self):
        super().__init__()
        self.good, self.off = (constrain(nn.Linear(3, 3), "weight", Stiefel()) for _ in range(2))
        self.off.weight.data.mul_(3)
        self.b, self.a = nn.Parameter(torch.randn(4, 2)), nn.Parameter(torch.randn(2, 4))
        constrain(self, ("b", "a"), FixedRank())
        self.plain, self.known = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))
        self.z = nn.Parameter(torch.ones(2, dtype=torch.complex32))


BAD_GROUPS = {
    "off its manifold": (lambda m: [m.good.weight, m.off.weight, m.plain], ValueError, "is not a point of Stiefel"),
    "half a point": (lambda m: [m.plain, m.a], ValueError, r"1 tensor\(s\) of a point of FixedRank"),
    "one that is in it already": (lambda m: [m.good.weight, m.known], ValueError, "more than one parameter group"),
    "one twice": (lambda m: [m.plain, m.plain], ValueError, "twice"),
    "a set": (lambda m: {m.plain}, TypeError, "set"),
    "nothing": (lambda m: [], ValueError, "empty"),
    "no tensor": (lambda m: [m.good.weight, 3.0], TypeError, "float"),
    "integers": (lambda m: [m.plain, torch.ones(2, dtype=torch.int64)], ValueError, "int64"),
    "half complex": (lambda m: [m.plain, m.z], ValueError, "complex32"),
    "not a leaf": (lambda m: [m.plain, m.plain * 2], ValueError, "leaf"),
    "some with names": (lambda m: [("w", m.good.weight), m.plain], ValueError, "1 named and 1 unnamed"),
    "names where there were none": (lambda m: [("p", m.plain)], ValueError, "names"),
}


@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize("case", BAD_GROUPS)
def test_a_refused_group_leaves_the_optimiser_as_it_was(case, name):
    choose, error, message = BAD_GROUPS[case]
    model = Bad()
    optimizer = ALL[name]([model.known], lr=0.1)
    before = snapshot(optimizer)
    with pytest.raises(error, match=message):
        optimizer.add_param_group({"params": choose(model)})
    assert snapshot(optimizer) == before


OPTIONS = [("lr", -0.1), ("lr", math.nan), ("nonfinite", "skp")]


@pytest.mark.usefixtures("unconstrained")
@pytest.mark.parametrize(
    ("name", "option", "value"),
    [*((name, "weight_decay", -1.0) for name in ALL), *((name, *o) for name in ("adam", "muon") for o in OPTIONS)],
)
def test_options_out_of_range_are_refused_by_name(name, option, value):
    group = {"params": [nn.Parameter(torch.ones(2, 2))], "geometry": None, "matrix": None, "sizes": {}}
    with pytest.raises(ValueError, match=option):
        ALL[name]([group], **{option: value})
    optimizer = ALL[name]([group])
    with pytest.raises(ValueError, match=option):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2, 2))], option: value})
    assert len(optimizer.param_groups) == 1


def test_a_generator_and_a_single_tensor():
    model = Mixed()
    optimizer = Adam((p for p in model.parameters()), lr=0.05)
    assert sum(len(g["params"]) for g in optimizer.param_groups) == 8
    optimizer.add_param_group({"params": nn.Parameter(torch.ones(2))})
    assert len(optimizer.param_groups[-1]["params"]) == 1


def test_a_set_has_no_order():
    with pytest.raises(TypeError, match="set"):
        Adam(set(Mixed().parameters()))


def test_a_group_is_told_its_manifold_in_three_ways():
    for geometry in (Stiefel(), "Stiefel", {"kind": "Stiefel", "metric": "euclidean"}):
        optimizer = Adam([{"params": [nn.Parameter(torch.eye(3))], "geometry": geometry}])
        assert optimizer.param_groups[0]["geometry"] == Stiefel().to_spec()
    with pytest.raises(ValueError, match=r"known are.*Stiefel"):
        Adam([{"params": [nn.Parameter(torch.eye(3))], "geometry": "Stiffel"}])


def test_group_of_pairs_of_the_wrong_number():
    with pytest.raises(ValueError, match="2 tensors, got 3"):
        Adam([{"params": [nn.Parameter(torch.ones(2, 2)) for _ in range(3)], "geometry": FixedRank()}])


# Gradients of all kinds. ----------------------------------------------------------------------------------------------


@pytest.mark.of_each_kind
@pytest.mark.parametrize("name", ALL)
def test_frozen_missing_scalar_and_empty_parameters(name):
    scalar, empty, vector = (
        nn.Parameter(torch.tensor(2.0)),
        nn.Parameter(torch.empty(0, 3)),
        nn.Parameter(torch.ones(3)),
    )
    nothing, frozen = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2), requires_grad=False)
    thin = nn.Parameter(torch.empty(3, 0))
    params = [scalar, empty, vector, nothing, frozen, thin]
    optimizer = ALL[name](params, lr=0.1, **({"weight_decay": 0.0} if name != "adagrad" else {}))
    for _ in range(3):
        optimizer.zero_grad()
        (scalar**2 + empty.sum() + vector.square().sum() + thin.sum()).backward()
        optimizer.step()
    assert scalar.item() < 2.0
    assert (vector < 1.0).all()
    assert torch.equal(nothing, torch.ones(2, 2))
    assert torch.equal(frozen, torch.ones(2, 2))
    other = ALL[name](params, lr=0.1)
    other.load_state_dict(optimizer.state_dict())
    assert snapshot(other) == snapshot(optimizer)


@pytest.mark.parametrize("nonfinite", ["raise", "ignore"])
def test_sparse_gradients_are_refused_before_anything_moves(nonfinite):
    linear, table = nn.Linear(3, 3), nn.Embedding(5, 3, sparse=True)
    optimizer = Adam([*linear.parameters(), *table.parameters()], nonfinite=nonfinite)
    linear(table(torch.tensor([1, 2]))).sum().backward()
    before = weights(linear)
    with pytest.raises(ValueError, match=r"parameter 2: has a sparse gradient.*sparse=False"):
        optimizer.step()
    assert equal(before, weights(linear))
    assert not optimizer.state


def test_half_a_gradient_is_refused_before_anything_moves():
    model = Mixed()
    optimizer = Adam(model.named_parameters(), lr=0.05)
    loss(model).backward()
    model.a.grad = None
    before = snapshot(optimizer)
    with pytest.raises(ValueError, match=r"^a has no gradient, but the rest of its point \(b, a\)"):
        optimizer.step()
    assert snapshot(optimizer) == before


def test_two_groups_and_one_bad_gradient_change_neither():
    model = Mixed()
    optimizer = Muon(param_groups(model), lr=0.05)
    step(model, optimizer)
    loss(model).backward()
    model.head.bias.grad[1] = math.inf
    before = snapshot(optimizer)
    with pytest.raises(ValueError, match=r"gradient of head.bias has NaN or infinite entries; nothing was changed"):
        optimizer.step()
    assert snapshot(optimizer) == before


def test_skip_in_one_group_and_raise_in_the_other():
    x, y = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = SGD([{"params": [x], "nonfinite": "skip"}, {"params": [y]}], lr=0.5)
    x.grad, y.grad = torch.tensor([math.nan, 1.0]), torch.ones(2)
    optimizer.step()
    assert (x.tolist(), y.tolist()) == ([1.0, 1.0], [0.5, 0.5])
    y.grad[0] = math.nan
    with pytest.raises(ValueError, match="gradient of parameter 0"):
        optimizer.step()


def test_a_step_that_is_too_long_to_compute_names_its_point_and_leaves_it():
    weight = nn.Parameter(torch.eye(3))
    optimizer = SGD([{"params": [weight], "geometry": SPD(), "param_names": ["cov"]}], lr=1.0)
    weight.grad = torch.randn(3, 3)
    optimizer.step()
    before = weight.detach().clone()
    optimizer.param_groups[0]["lr"] = math.inf
    with pytest.raises(ValueError, match="step of cov is too large to compute with; lower lr"):
        optimizer.step()
    assert torch.equal(weight, before)


# The rest of torch's interface. ---------------------------------------------------------------------------------------


def test_closure_that_backpropagates():
    model = Mixed()
    optimizer = Adam(model.parameters(), lr=0.02)

    def closure():
        optimizer.zero_grad()
        value = loss(model)
        value.backward()
        return value

    values = [optimizer.step(closure).item() for _ in range(20)]
    assert values[-1] < 0.8 * values[0]


def test_hooks_around_the_step_and_the_state():
    model, calls = nn.Linear(6, 4), []
    optimizer = Adam(model.parameters(), lr=0.05)
    handles = [
        optimizer.register_step_pre_hook(lambda *_: calls.append("before")),
        optimizer.register_step_post_hook(lambda *_: calls.append("after")),
        optimizer.register_state_dict_post_hook(lambda o, state: calls.append("saved")),
        optimizer.register_load_state_dict_post_hook(lambda o: calls.append("loaded")),
    ]
    step(model, optimizer)
    optimizer.load_state_dict(optimizer.state_dict())
    for handle in handles:
        handle.remove()
    step(model, optimizer)
    assert calls == ["before", "after", "saved", "loaded"]


def test_a_hook_may_change_the_state_that_is_loaded():
    model = nn.Linear(6, 4)
    optimizer = Adam(model.parameters(), lr=0.05)
    step(model, optimizer)

    def doubled(optimizer, state_dict):
        state = {i: {k: 2 * v if "first" in k else v for k, v in s.items()} for i, s in state_dict["state"].items()}
        return {**state_dict, "state": state}

    other = Adam(model.parameters())
    other.register_load_state_dict_pre_hook(doubled)
    other.load_state_dict(optimizer.state_dict())
    p = model.weight
    assert torch.equal(other.state[p]["adam_scale.first"], 2 * optimizer.state[p]["adam_scale.first"])


@pytest.mark.of_each_kind
@pytest.mark.parametrize("name", ALL)
def test_lr_as_a_tensor_equals_lr_as_a_number(name):
    def trained(lr):
        torch.manual_seed(0)
        model = Mixed().double()
        optimizer = ALL[name](model.parameters(), lr=lr)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        for i in range(3):
            step(model, optimizer, i)
            schedule.step()
        return weights(model)

    number, tensor = trained(0.125), trained(torch.tensor(0.125, dtype=torch.float64))
    for a, b in zip(number, tensor, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_grad_scaler_leaves_out_a_step_that_overflowed():
    model = Mixed()
    optimizer = Adam(model.parameters(), lr=0.05)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for overflow in (False, True, False):
        optimizer.zero_grad()
        scaler.scale(loss(model)).backward()
        if overflow:
            model.first.weight.grad[0, 0] = math.inf
        before = weights(model)
        scaler.step(optimizer)
        scaler.update()
        assert equal(before, weights(model)) == overflow
    assert scaler.get_scale() == 2.0**9
    assert optimizer.residual() < 1e-5


def test_zero_grad_and_repr_and_defaults():
    model = Mixed()
    optimizer = Adam(model.parameters(), lr=0.05)
    loss(model).backward()
    optimizer.zero_grad(set_to_none=False)
    assert all(not p.grad.any() for p in model.parameters())
    assert "Stiefel" in repr(optimizer)
    assert "Parameter containing" not in repr(optimizer)
    assert optimizer.defaults["lr"] == 0.05


def test_parameters_swapped_in_the_groups_are_the_ones_that_step():
    """As accelerate does for FSDP2: the groups' lists are refilled in place, everything else stays."""
    model = Mixed()
    optimizer = Adam(model.parameters(), lr=0.05)
    twin = copy.deepcopy(model)
    place = {id(p): q for p, q in zip(model.parameters(), twin.parameters(), strict=True)}
    for group in optimizer.param_groups:
        group["params"] = [place[id(p)] for p in group["params"]]
    before = weights(model), weights(twin)
    step(twin, optimizer)
    assert equal(before[0], weights(model))
    assert not any(torch.equal(a, b) for a, b in zip(before[1], weights(twin), strict=True))
    assert optimizer.residual() < 1e-5


# Memory. --------------------------------------------------------------------------------------------------------------


def held(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of all memory that the optimiser keeps alive for its state, whether by the state or by its buckets."""
    found = [t for s in optimizer.state.values() for k, t in s.items() if isinstance(t, torch.Tensor) and k != "step"]
    for bucket in optimizer._buckets._of.values():
        found += [t for block in bucket.storage for t in block.values()]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in found}.values())


BYTES = {SGD: 0, Adam: 8, AdamW: 8, AMSGrad: 12, Adagrad: 4, Muon: 4}


@pytest.mark.parametrize("family", BYTES, ids=lambda f: f.__name__)
@pytest.mark.parametrize("side", [8, 160])
def test_state_bytes_per_parameter(family, side):
    """Small matrices, which step as a batch, and large ones, which step alone."""
    weights = [nn.Parameter(torch.randn(side, side)) for _ in range(4)]
    optimizer = family(weights)
    for _ in range(2):
        for w in weights:
            w.grad = torch.randn_like(w)
        optimizer.step()
    assert held(optimizer) == BYTES[family] * 4 * side**2


def test_state_of_shampoo_is_two_statistics_and_their_roots():
    weight = nn.Parameter(torch.randn(6, 4))
    weight.grad = torch.randn_like(weight)
    optimizer = Shampoo([weight])
    optimizer.step()
    assert held(optimizer) == 4 * (2 * 36 + 2 * 16 + 24)  # and momentum


def test_state_on_stiefel_is_that_of_its_coordinates():
    weight = nn.Parameter(torch.linalg.qr(torch.randn(6, 4))[0])
    weight.grad = torch.randn_like(weight)
    optimizer = Adam([{"params": [weight], "geometry": Stiefel()}])
    optimizer.step()
    assert held(optimizer) == 8 * (16 + 24)


@pytest.mark.parametrize(("family", "size"), [(Adam, 8), (Muon, 4)])
@pytest.mark.parametrize("pattern", ["alternating", "random", "growing"])
def test_memory_does_not_grow_when_the_parameters_with_gradients_change(pattern, family, size):
    generator = torch.Generator().manual_seed(0)
    weights = [nn.Parameter(torch.randn(8, 8)) for _ in range(12)]
    optimizer = family(weights)
    chosen = {
        "alternating": lambda step: range(8) if step % 2 else range(4, 12),
        "random": lambda step: [i for i in range(12) if torch.rand((), generator=generator) < 0.5],
        "growing": lambda step: range(12 - step % 12),
    }[pattern]
    sizes = []
    for i in range(60):
        optimizer.zero_grad()
        for j in chosen(i):
            weights[j].grad = torch.randn_like(weights[j])
        optimizer.step()
        sizes.append(held(optimizer))
    state = size * sum(w.numel() for w in weights)
    assert max(sizes) <= 3 * state
    assert max(sizes[40:]) <= max(sizes[:40])


def test_dropped_optimisers_do_not_keep_parameters_alive():
    import gc
    import weakref

    model = Mixed()
    optimizer = Adam(model.parameters())
    step(model, optimizer)
    there = weakref.ref(model.first.weight)
    del model, optimizer
    gc.collect()
    assert there() is None


@pytest.mark.parametrize("manifold", [Sphere(), Oblique(), Grassmann()], ids=str)
def test_bare_constrained_parameters_stay(manifold):
    layer = constrain(nn.Linear(3, 6), "weight", manifold)
    optimizer = Adam(layer.parameters(), lr=0.1)
    for _ in range(10):
        optimizer.zero_grad()
        layer(torch.randn(4, 3)).square().mean().backward()
        optimizer.step()
    assert manifold.residual(layer.weight).max() < 1e-5


def test_momentum_may_be_turned_on_in_mid_run():
    p = nn.Parameter(torch.ones(3))
    optimizer = SGD([p], lr=0.1)
    for momentum in (0.0, 0.9, 0.9):
        optimizer.param_groups[0]["momentum"] = momentum
        p.grad = torch.ones(3)
        optimizer.step()
    # steps of 1, then sums of 1 and of 1 + 0.9
    assert torch.allclose(p.detach(), torch.full((3,), 1 - 0.1 * (1 + 1 + 1.9)))
