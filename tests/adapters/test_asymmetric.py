"""Asymmetric LoRA: what is frozen is orthonormal and stays, what is trained is a matrix; PEFT does the rest."""

import copy
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from torch import nn

from steepest import Adam, AdamW, Muon, param_groups
from steepest.adapters import asymmetric_

peft = pytest.importorskip("peft")
from adaptable import Net  # noqa: E402

CASES = {
    "linear": {"target_modules": ["lin", "old"]},
    "convolution": {"target_modules": ["conv"]},
    "embedding": {"target_modules": ["embed"]},
    "attention": {"target_modules": ["attention"]},
    "dora": {"target_modules": ["lin"], "use_dora": True},
    "rslora, biases, a head": {
        "target_modules": ["lin"], "use_rslora": True, "lora_bias": True, "modules_to_save": ["head"]
    },
    "gaussian": {"target_modules": ["lin"], "init_lora_weights": "gaussian"},
}  # fmt: skip
EACH = pytest.mark.parametrize("case", CASES)
BOTH = pytest.mark.parametrize("train", ["A", "B"])
OTHER = {"A": "B", "B": "A"}


def adapted(case="linear", net=Net, **options):
    torch.manual_seed(0)
    return peft.get_peft_model(net(), peft.LoraConfig(**{"r": 3, "lora_alpha": 6, **CASES[case], **options}))


def batch():
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 11, (16, 5), generator=generator), torch.randint(0, 3, (16,), generator=generator)


def fit(model, optimizer, steps=5):
    x, y = batch()
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def factors(model, which, adapter="default") -> dict[str, torch.Tensor]:
    keys = (f"lora_{which}.{adapter}.weight", f"lora_embedding_{which}.{adapter}")
    return {n: p for n, p in model.named_parameters() if n.endswith(keys)}


def gap(p, which) -> float:
    """How far a factor's rows (of A) or columns (of B) are from orthonormal."""
    v = p.detach().double()
    v = v.flatten(1) if which == "A" else v.flatten(1).mT
    return (v @ v.mT - torch.eye(3)).abs().max().item()


# The start. -----------------------------------------------------------------------------------------------------------


@EACH
@BOTH
def test_one_factor_is_orthonormal_and_frozen_and_the_other_one_zero(case, train):
    model = adapted(case)
    plain = model.get_base_model()
    x, _ = batch()
    with model.disable_adapter():
        before = plain(x)
    rest = {n: p.requires_grad for n, p in model.named_parameters() if ".lora_A." not in n and ".lora_B." not in n}
    assert asymmetric_(model, train=train) is model
    frozen, trained = factors(model, OTHER[train]), factors(model, train)
    assert len(frozen) == len(trained) > 0
    for p in frozen.values():
        assert not p.requires_grad
        assert gap(p, OTHER[train]) < 1e-6  # float32
    for p in trained.values():
        assert p.requires_grad
        assert not p.any()
    for n, p in model.named_parameters():
        assert "embedding" in n or p.requires_grad == rest.get(n, p.requires_grad), n
    torch.testing.assert_close(model(x), before, rtol=1e-5, atol=1e-6)


def test_the_seed_decides_and_nothing_else():
    first, again = adapted(), adapted()
    state = torch.get_rng_state()
    asymmetric_(first)
    assert torch.equal(torch.get_rng_state(), state)
    torch.randn(5)
    asymmetric_(again, seed=0)
    other = asymmetric_(adapted(), seed=1)
    for a, b, c in zip(*(factors(m, "A").values() for m in (first, again, other)), strict=True):
        assert torch.equal(a, b)
        assert (a - c).abs().max() > 0.1
    a, b = factors(asymmetric_(adapted(r=3, target_modules=["attention.out_proj", "head"])), "A").values()
    assert a.shape == b.shape
    assert (a - b).abs().max() > 0.1  # layers of one shape have each its own
    for p in factors(first, "A").values():  # signs that no LAPACK chooses
        assert (p.gather(1, p.abs().argmax(1, keepdim=True)) > 0).all()


def test_the_start_is_that_of_the_official_code_in_its_lengths_and_its_distribution():
    """Theirs: rows V_rand[:, :r]^T of an orthogonal matrix, from the SVD of uniform numbers. Of both the mean of A^T A
    is r/n I: entries of the mean of 150 draws have a standard error of about sqrt(2 r) / (n sqrt(150)) = 0.017."""
    n, r, draws = 12, 3, 150
    mean = {"theirs": torch.zeros(n, n), "ours": torch.zeros(n, n)}
    model = adapted(target_modules=["lin"])
    (a,) = factors(model, "A").values()
    generator = torch.Generator().manual_seed(0)
    for seed in range(draws):
        theirs = torch.linalg.svd(torch.rand(10, n, generator=generator) - 0.5)[2][:, :r].mT
        asymmetric_(model, seed=seed)
        torch.testing.assert_close(theirs @ theirs.mT, torch.eye(r), rtol=0, atol=1e-5)
        torch.testing.assert_close(a @ a.mT, torch.eye(r), rtol=0, atol=1e-5)
        mean["theirs"] += theirs.mT @ theirs / draws
        mean["ours"] += (a.mT @ a).detach() / draws
    for value in mean.values():
        assert (value - r / n * torch.eye(n)).abs().max() < 0.08
    assert model.base_model.model.lin.scaling["default"] == 6 / 3  # alpha / r


# Training. ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("which", "side"), [("B", "right"), ("A", "left")])
def test_a_step_of_gradient_descent_is_one_of_the_weight_that_is_projected(which, side):
    """dW = -lr s^2 G A^T A, or -lr s^2 B B^T G, with G from a dense layer."""
    torch.manual_seed(0)
    layer, x, y = nn.Linear(12, 10).double(), torch.randn(20, 12).double(), torch.randn(20, 10).double()
    dense = copy.deepcopy(layer)
    (dense(x) - y).square().sum().backward()
    model = peft.get_peft_model(nn.Sequential(layer), peft.LoraConfig(r=3, lora_alpha=6, target_modules=["0"])).double()
    asymmetric_(model, train=which)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    (model(x) - y).square().sum().backward()
    assert all(p.grad is None for p in factors(model, OTHER[which]).values())
    optimizer.step()
    adapter = model.base_model.model[0]
    a, b = adapter.lora_A["default"].weight, adapter.lora_B["default"].weight
    projected = dense.weight.grad @ a.mT @ a if side == "right" else b @ b.mT @ dense.weight.grad
    torch.testing.assert_close(adapter.get_delta_weight("default"), -1e-2 * 2**2 * projected, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("train", ["A", "B"])
def test_gradients_agree_with_differences(train):
    model = asymmetric_(adapted("linear").double(), train=train)
    with torch.no_grad():
        for i, p in enumerate(factors(model, train).values()):
            p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(i)))
    x, y = batch()

    def loss(*tensors):
        given = dict(zip(factors(model, train), tensors, strict=True))
        return nn.functional.cross_entropy(torch.func.functional_call(model, given, (x,)), y)

    assert torch.autograd.gradcheck(loss, tuple(factors(model, train).values()))


@EACH
@BOTH
def test_groups_hold_the_trained_factor_as_a_matrix_and_never_the_frozen_one(case, train):
    model = asymmetric_(adapted(case), train=train)
    groups = param_groups(model)
    roles = {n: g["role"] for g in groups for n in g["param_names"]}
    assert not roles.keys() & factors(model, OTHER[train]).keys()
    for name in factors(model, train):
        assert roles[name] == ("other" if "embedding" in name else "matrix")
    assert all(g["geometry"] is None for g in groups)
    assert sorted(roles) == sorted(n for n, p in model.named_parameters() if p.requires_grad)


@pytest.mark.parametrize("family", [Adam, Muon], ids=lambda f: f.__name__)
@pytest.mark.parametrize("case", ["linear", "convolution", "dora", "rslora, biases, a head"])
def test_training_leaves_the_frozen_factor_and_merges(case, family):
    model = asymmetric_(adapted(case))
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    losses = fit(model, family(param_groups(model), lr=0.05), 15)
    assert losses[-1] < losses[0]
    for n, p in model.named_parameters():
        assert torch.equal(p, before[n]) != p.requires_grad, n
    model.eval()
    x, _ = batch()
    unmerged = model(x).detach()
    torch.testing.assert_close(model.merge_and_unload()(x), unmerged, rtol=1e-4, atol=1e-5)


# Saving, switching, starting again. -----------------------------------------------------------------------------------


@BOTH
def test_saved_and_loaded_it_goes_on_where_it_was(train, tmp_path):
    model = asymmetric_(adapted(), seed=7, train=train)
    optimizer = AdamW(param_groups(model), lr=0.05)
    fit(model, optimizer, 3)
    model.save_pretrained(tmp_path)
    torch.manual_seed(0)
    again = peft.PeftModel.from_pretrained(Net(), tmp_path, is_trainable=True)
    for which in "AB":
        for p, q in zip(factors(model, which).values(), factors(again, which).values(), strict=True):
            assert torch.equal(p, q)
    assert all(p.requires_grad for p in factors(again, OTHER[train]).values())  # PEFT has not saved what was frozen
    asymmetric_(again, train=train)  # another seed: nothing is drawn
    resumed = AdamW(param_groups(again), lr=9.0)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert fit(model, optimizer, 3) == fit(again, resumed, 3)
    for p, q in zip(factors(model, OTHER[train]).values(), factors(again, OTHER[train]).values(), strict=True):
        assert torch.equal(p, q)


def test_peft_keeps_it_frozen_when_it_switches_adapters():
    model = asymmetric_(adapted())
    model.add_adapter("second", peft.LoraConfig(r=3, target_modules=["lin", "old"]))
    model.set_adapter("second")
    assert all(p.requires_grad for w in "AB" for p in factors(model, w, "second").values())
    model.set_adapter("default")
    assert not any(p.requires_grad for p in factors(model, "A").values())
    assert all(p.requires_grad for p in factors(model, "B").values())
    model.set_adapter("second")
    asymmetric_(model, "second", train="A")
    model.set_adapter("default")
    model.set_adapter("second")
    assert not any(p.requires_grad for p in factors(model, "B", "second").values())
    assert all(p.requires_grad for p in factors(model, "A", "second").values())


def test_called_twice_it_may_train_the_other_factor_while_there_is_nothing_to_lose():
    model = asymmetric_(asymmetric_(adapted()), train="A")
    assert all(p.requires_grad and not p.any() for p in factors(model, "A").values())
    assert all(not p.requires_grad and gap(p, "B") < 1e-6 for p in factors(model, "B").values())


def test_in_bfloat16_as_orthonormal_as_that_can_be_and_known_again():
    model = asymmetric_(adapted().to(torch.bfloat16))
    for p in factors(model, "A").values():
        assert gap(p, "A") < 1e-2
    with torch.no_grad():
        for p in factors(model, "B").values():
            p.fill_(0.5)
    before = {n: p.clone() for n, p in model.named_parameters()}
    asymmetric_(model, seed=3)
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


def test_what_cannot_be_started_is_refused_by_name_and_nothing_is_changed():
    model = adapted(init_lora_weights="pissa", target_modules=["lin"])
    before = {n: (p.clone(), p.requires_grad) for n, p in model.named_parameters()}
    with pytest.raises(ValueError, match=r"model\.lin: B A is not zero, and A not orthonormal"):
        asymmetric_(model)
    assert all(torch.equal(p, before[n][0]) and p.requires_grad == before[n][1] for n, p in model.named_parameters())
    with pytest.raises(ValueError, match="no LoRA layers with an adapter 'x'"):
        asymmetric_(adapted(), "x")
    with pytest.raises(ValueError, match=r"model\.head: the rank .* smaller r"):
        asymmetric_(adapted(target_modules=["head"], r=6))
    with pytest.raises(ValueError, match="train: got 'C', expected one of 'B', 'A'"):
        asymmetric_(adapted(), train="C")
    with pytest.raises(ValueError, match=r"seed: got 0\.5"):
        asymmetric_(adapted(), seed=0.5)
    with torch.device("meta"):
        empty = peft.get_peft_model(Net(), peft.LoraConfig(r=3, target_modules=["lin"]), low_cpu_mem_usage=True)
    with pytest.raises(ValueError, match=r"model\.lin: .* no memory yet"):
        asymmetric_(empty)
    model = adapted()
    with torch.no_grad():
        for which in "AB":
            next(iter(factors(model, which).values())).fill_(torch.nan)
    with pytest.raises(ValueError, match="not orthonormal"):
        asymmetric_(model)
