"""LoRA adapters of PEFT: pairs are found, each once, and train as products from B = 0 on."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from torch import nn

from steepest import SGD, Adam, AdamW, FixedRank, Muon, param_groups
from steepest.optim import OPTIMIZERS

peft = pytest.importorskip("peft")
from adaptable import Net  # noqa: E402

TARGETS = ["embed", "conv", "signal", "lin", "old", "attention"]
CONFIGS = {
    "linear": {"target_modules": ["lin", "old"]},
    "embedding": {"target_modules": ["embed"]},
    "convolution": {"target_modules": ["conv", "signal"]},
    "attention": {"target_modules": ["attention"]},
    "everything": {"target_modules": TARGETS},
    "all layers": {"target_modules": TARGETS[:-1]},  # attention is merged and unmerged in each pass, with rounding
    "head saved": {"target_modules": ["lin"], "modules_to_save": ["head"]},
    "dora": {"target_modules": ["lin", "conv"], "use_dora": True},
    "rslora": {"target_modules": ["lin"], "use_rslora": True},
    "biases": {"target_modules": ["lin"], "bias": "lora_only", "lora_bias": True},
}
EACH = pytest.mark.parametrize("case", CONFIGS)


def adapted(case="everything", r=2, seed=0, **options):
    torch.manual_seed(seed)
    config = peft.LoraConfig(r=r, lora_alpha=4, **CONFIGS[case], **options)
    return peft.get_peft_model(Net(), config)


def batch():
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 11, (12, 5), generator=generator), torch.randint(0, 3, (12,), generator=generator)


def train(model, optimizer, steps) -> list[float]:
    x, y = batch()
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
    return losses


def pairs(model, **options) -> list[tuple[str, str]]:
    names = [g["param_names"] for g in param_groups(model, **options) if g["role"] == "point"]
    return [(ns[i], ns[i + 1]) for ns in names for i in range(0, len(ns), 2)]


def is_partition(model, **options) -> bool:
    """Every trainable parameter in one group, once, under its own name."""
    listed = [
        (n, p) for g in param_groups(model, **options) for n, p in zip(g["param_names"], g["params"], strict=True)
    ]
    wanted = sorted(id(p) for p in model.parameters() if p.requires_grad)
    return sorted(id(p) for _, p in listed) == wanted and all(model.get_parameter(n) is p for n, p in listed)


# Finding. -------------------------------------------------------------------------------------------------------------


@EACH
def test_every_trainable_parameter_once_and_pairs_belong_together(case):
    model = adapted(case)
    assert is_partition(model)
    assert is_partition(model, lora=None)
    found = pairs(model)
    for b, a in found:
        assert b.replace("lora_B", "lora_A").replace("embedding_B", "embedding_A") == a
    adapters = [n for n, p in model.named_parameters() if p.requires_grad and ("lora_B" in n or "embedding_B" in n)]
    weights = [n for n in adapters if not n.endswith("bias")]
    assert sorted(b for b, _ in found) == sorted(weights)
    assert weights or case == "attention"


def test_as_two_matrices_on_request():
    model = adapted("linear")
    groups = param_groups(model, lora=None)
    assert [(g["role"], len(g["params"])) for g in groups] == [("matrix", 4)]


def test_another_manifold_for_the_pairs_is_a_spec_in_the_groups():
    assert param_groups(adapted("linear"))[0]["geometry"] == FixedRank(turn=0.03).to_spec()


def test_what_goes_with_the_adapter_goes_to_the_rest():
    model = adapted("dora")
    rest = [g for g in param_groups(model) if g["role"] == "other"]
    assert {n.split("lora_")[1] for g in rest for n in g["param_names"]} == {"magnitude_vector.default.weight"}
    assert all(g["weight_decay"] == 0.0 for g in rest)  # gains, even those of shape (1, n, 1, 1)


def test_modules_to_save_train_and_their_originals_do_not():
    model = adapted("head saved")
    found = {n: g["role"] for g in param_groups(model) for n in g["param_names"]}
    assert found["base_model.model.head.modules_to_save.default.weight"] == "matrix"
    assert found["base_model.model.head.modules_to_save.default.bias"] == "other"
    assert not any("original_module" in n for n in found)


def test_two_adapters_and_only_the_active_one():
    model = adapted("linear")
    model.add_adapter("second", peft.LoraConfig(r=3, target_modules=["lin"]))
    assert {b.split("lora_B.")[1] for b, _ in pairs(model)} == {"default.weight"}
    assert is_partition(model)
    model.set_adapter("second")
    assert pairs(model) == [
        ("base_model.model.lin.lora_B.second.weight", "base_model.model.lin.lora_A.second.weight"),
    ]
    model.base_model.set_adapter(["default", "second"])
    assert len(pairs(model)) == 3
    assert is_partition(model)


@pytest.mark.parametrize("case", ["linear", "embedding", "convolution"])
def test_rank_larger_than_a_side_is_no_point_but_trains(case):
    model = adapted(case, r=30)
    found = {n: g["role"] for g in param_groups(model) for n in g["param_names"]}
    assert set(found.values()) <= {"matrix", "other"}
    assert is_partition(model)
    losses = train(model, Muon(param_groups(model), lr=0.02, adamw_lr=0.02), 5)
    assert losses[-1] < losses[0]


def test_grouped_convolutions_are_no_single_product_but_train():
    torch.manual_seed(0)
    model = peft.get_peft_model(Net(), peft.LoraConfig(r=2, target_modules=["grouped"]))
    assert pairs(model) == []
    assert is_partition(model)
    train(model, Muon(param_groups(model)), 2)


def test_one_frozen_factor_leaves_the_other_a_matrix():
    model = adapted("linear")
    for name, p in model.named_parameters():
        if "lora_A" in name:
            p.requires_grad_(False)
    assert [(g["role"], len(g["params"])) for g in param_groups(model)] == [("matrix", 2)]


def test_other_takes_pairs_out():
    model = adapted("everything")
    groups = param_groups(model, other=["*lora_embedding*"])
    names = {g["role"]: g["param_names"] for g in groups}
    assert len(names["other"]) == 2
    assert not any("embedding" in n for n in names["point"])
    assert is_partition(model, other=["*lora_embedding*"])


def test_experts_are_one_pair_each():
    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.randn(3, 6, 5) / 3)

        def forward(self, x):
            return torch.einsum("bi,eio->beo", x, self.w)

    torch.manual_seed(0)
    config = peft.LoraConfig(r=2, target_modules=[], target_parameters=["experts.w"])
    model = peft.get_peft_model(nn.ModuleDict({"experts": Experts()}), config)
    groups = param_groups(model)
    assert [g["role"] for g in groups] == ["point"]
    optimizer = SGD(groups, lr=0.1)
    (point,) = optimizer._points(optimizer.param_groups[0])
    wrapper = model.base_model.model["experts"]
    b, a = wrapper.lora_B["default"].weight, wrapper.lora_A["default"].weight
    with torch.no_grad():
        b.copy_(torch.randn_like(b))
    delta = wrapper.get_delta_weight("default") / wrapper.scaling["default"]
    mine = point.constraint.manifold.represent(point.value())
    assert mine.shape[0] == 3
    assert any(torch.allclose(mine, d, atol=1e-6) for d in (delta, delta.mT))
    (model.base_model.model["experts"](torch.randn(4, 6))).square().sum().backward()
    optimizer.step()
    assert all(t.isfinite().all() for t in (b, a))


# Training. ------------------------------------------------------------------------------------------------------------

RATES = {"sgd": 0.3, "adam": 0.01, "adamw": 0.01, "amsgrad": 0.01, "adagrad": 0.03, "muon": 0.03, "shampoo": 0.1}
EACH_RATE = pytest.mark.parametrize("name", RATES)


@EACH_RATE
def test_the_first_step_from_b_zero_moves_b_alone(name):
    model = adapted("everything")
    options = {"weight_decay": 0.0} if name == "adamw" else {}
    optimizer = OPTIMIZERS[name](param_groups(model), lr=RATES[name], **options)
    before = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    train(model, optimizer, 1)
    for n, p in model.named_parameters():
        if p.requires_grad:
            assert p.isfinite().all(), n
            zero_start = not before[n].any()
            assert torch.equal(p, before[n]) != zero_start, n
    train(model, optimizer, 1)
    moved = [not torch.equal(p, before[n]) for n, p in model.named_parameters() if p.requires_grad]
    assert all(moved)


@EACH_RATE
@pytest.mark.parametrize("case", ["everything", "dora"])
def test_the_loss_falls_over_thirty_steps(name, case):
    model = adapted(case)
    groups = param_groups(model)
    losses = train(model, OPTIMIZERS[name](groups, lr=RATES[name]), 30)
    assert losses[-1] < (0.6 if case == "everything" else 1.0) * losses[0]
    assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("family", [Adam, Muon], ids=lambda f: f.__name__)
@pytest.mark.parametrize("case", ["linear", "embedding", "convolution", "dora", "head saved"])
def test_merged_equals_unmerged_after_training(case, family):
    model = adapted(case)
    x, _ = batch()
    base = model(x).detach()
    train(model, family(param_groups(model), lr=0.05), 5)
    model.eval()
    unmerged = model(x).detach()
    assert (unmerged - base).abs().max() > 1e-3
    torch.testing.assert_close(model.merge_and_unload()(x), unmerged, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", ["all layers", "head saved", "dora"])
def test_save_and_load_goes_on_training_where_it_was(case, tmp_path):
    model = adapted(case)
    optimizer = AdamW(param_groups(model), lr=0.05)
    train(model, optimizer, 3)
    model.save_pretrained(tmp_path)
    torch.manual_seed(0)
    again = peft.PeftModel.from_pretrained(Net(), tmp_path, is_trainable=True)
    x, _ = batch()
    model.eval(), again.eval()
    assert torch.equal(model(x), again(x))
    model.train(), again.train()
    resumed = AdamW(param_groups(again), lr=9.0)
    resumed.load_state_dict(optimizer.state_dict())
    assert train(model, optimizer, 3) == train(again, resumed, 3)


def test_a_bfloat16_model_has_float32_adapters_whose_tensors_were_replaced():
    torch.manual_seed(0)
    model = peft.get_peft_model(Net().bfloat16(), peft.LoraConfig(r=2, target_modules=["lin"]))
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    losses = train(model, Muon(param_groups(model), lr=0.3), 10)
    assert losses[-1] < losses[0]


def test_a_constraint_survives_peft_around_its_module():
    from steepest import Stiefel, constrain

    torch.manual_seed(0)
    net = Net()
    constrain(net.head, "weight", Stiefel(), matrix="o i -> i o")
    model = peft.get_peft_model(net, peft.LoraConfig(r=2, target_modules=["lin"], modules_to_save=["head"]))
    optimizer = Muon(param_groups(model), lr=0.1)
    assert len([g for g in optimizer.param_groups if g["geometry"]]) == 2
    train(model, optimizer, 5)
    weight = model.base_model.model.head.modules_to_save["default"].weight
    assert (weight @ weight.T - torch.eye(3)).abs().max() < 1e-5


def test_scaling_of_the_factors_does_not_matter_once_trained():
    """(B M, M^-1 A) trains as (B, A) does: the products after a few steps agree."""

    def trained(scale):
        model = adapted("linear").double()
        for n, p in model.named_parameters():
            if "lora_B" in n:
                generator = torch.Generator().manual_seed(len(n))
                p.data = scale * torch.randn(p.shape, generator=generator, dtype=p.dtype)
            elif "lora_A" in n:
                p.data /= scale
        losses = train(model, Adam(param_groups(model), lr=0.05), 10)
        return torch.tensor(losses, dtype=torch.float64)

    torch.testing.assert_close(trained(1.0), trained(100.0), rtol=1e-8, atol=0)
