"""PEFT's own adapters: what is normalised by definition is found, moved without changing the model, and kept."""

import contextlib
import os
import subprocess
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
import torch.distributed as dist
from torch import nn

from steepest import SGD, Adam, Muon, param_groups

peft = pytest.importorskip("peft")
from steepest.adapters import HRAConfig, LOFTConfig, RiemannLoRAConfig  # noqa: E402


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Linear(12, 16), nn.Linear(16, 12), nn.Linear(12, 3)

    def forward(self, x):
        return self.head(self.b(torch.tanh(self.a(x))))


class Conv(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.head = nn.Conv2d(2, 4, 3, padding=1), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.a(x.view(-1, 2, 2, 3)).mean((2, 3)))


BOTH = {"target_modules": ["a", "b"]}
PARA = {"para": True, "decomposition_method": "qr"}
ADALORA = {"init_r": 4, "target_r": 2, "tinit": 3, "tfinal": 3, "total_step": 16, "deltaT": 1, "orth_reg_weight": 0.0}
ON_MANIFOLDS = {
    "HRA": lambda: peft.HRAConfig(r=4, **BOTH),
    "HRA, odd": lambda: peft.HRAConfig(r=3, **BOTH),
    "HRA, Gram-Schmidt": lambda: peft.HRAConfig(r=3, apply_GS=True, init_weights=False, **BOTH),
    "DeLoRA": lambda: peft.DeloraConfig(r=4, init_weights=False, **BOTH),
    "AdaLoRA": lambda: peft.AdaLoraConfig(**ADALORA, **BOTH),
    "PaRa": lambda: peft.DeftConfig(r=4, **PARA, **BOTH),
}
EACH = pytest.mark.parametrize("case", ON_MANIFOLDS)
OURS = {
    "LOFT": lambda: LOFTConfig(r=4, rotation="free", **BOTH),
    "our HRA": lambda: HRAConfig(r=4, **BOTH),
    "RiemannLoRA": lambda: RiemannLoRAConfig(r=2, init="orthonormal", scale=0.5, **BOTH),
}
"""Adapters of this library, which declare their points themselves."""
EACH_OF_OURS = pytest.mark.parametrize("case", OURS)


def adapted(case, dtype=torch.float32, net=Net):
    torch.manual_seed(0)
    config = (ON_MANIFOLDS | OURS)[case]() if isinstance(case, str) else case
    return peft.get_peft_model(net().to(dtype), config)


def batch(dtype=torch.float32):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(24, 12, generator=generator).to(dtype)
    return x, (x[:, :3] + x[:, 3:6].abs()).argmax(1)


def train(model, optimizer, steps, after=None) -> list[float]:
    x, y = batch()
    losses = []
    for i in range(steps):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if after:
            after(i)
    return losses


def geometry(model, **options) -> dict[str, str]:
    """Kind of manifold, or role, by name."""
    return {
        n.replace("base_model.model.", ""): (g["geometry"] or {"kind": g["role"]})["kind"]
        for g in param_groups(model, **options)
        for n in g["param_names"]
    }


def infeasibility(model) -> float:
    """How far the adapters are from what their methods say, without the library."""
    gaps = [torch.zeros(())]
    for name, p in model.named_parameters():
        v = p.detach().double()
        v = v.mT if ".lora_A" in name or "delora_A" in name else v
        v = v.reshape(v.shape[-2:]) if "loft_theta" in name else v  # one block
        gram = v.mT @ v if v.ndim == 2 else None
        if any(key in name for key in ("hra_u", "delora_A")):
            gaps.append((gram.diagonal() - 1).abs().max())
        if any(key in name for key in (".lora_A", ".lora_B", "deft_P", "loft_theta")):
            gaps.append((gram - torch.eye(len(gram))).abs().max())
    assert len(gaps) > 1
    return max(gaps).item()


# Finding. -------------------------------------------------------------------------------------------------------------

FOUND = {
    "HRA": {"hra_u": "Oblique"},
    "DeLoRA": {"delora_A": "Oblique", "delora_B": "other", "delora_lambda": "other"},
    "AdaLoRA": {"lora_A": "Stiefel", "lora_B": "Stiefel", "lora_E": "other"},
    "PaRa": {"deft_P": "Grassmann"},
}
PLAIN = {
    "DEFT": (lambda: peft.DeftConfig(r=4, decomposition_method="qr", **BOTH), {"deft_P": "other", "deft_R": "other"}),
    "PaRa, relu": (lambda: peft.DeftConfig(r=4, para=True, decomposition_method="relu", **BOTH), {"deft_P": "other"}),
    "OFT": (lambda: peft.OFTConfig(oft_block_size=4, r=0, **BOTH), {"oft_R": "other"}),
    "BOFT": (lambda: peft.BOFTConfig(boft_block_size=4, **BOTH), {"boft_R": "other", "boft_s": "other"}),
    "PSOFT": (lambda: peft.PsoftConfig(r=4, **BOTH), {"psoft_R": "other"}),
    "RoAd": (lambda: peft.RoadConfig(group_size=4, **BOTH), {"road_theta": "other", "road_alpha": "other"}),
    "OSF": (lambda: peft.OSFConfig(effective_rank=6, **BOTH), {"osf_svd_params": "other"}),
    "HiRA": (lambda: peft.HiraConfig(r=4, **BOTH), {"hira_A": "other", "hira_B": "other"}),
    "LoHa": (lambda: peft.LoHaConfig(r=4, **BOTH), {"hada_w": "other"}),
    "LoKr": (lambda: peft.LoKrConfig(r=4, **BOTH), {"lokr_w": "other"}),
    "AdaMSS": (lambda: peft.AdamssConfig(r=4, **BOTH), {"adamss_": "other"}),
    "GLoRA": (lambda: peft.GloraConfig(**BOTH), {"glora_": "other"}),
    "MiSS": (lambda: peft.MissConfig(r=4, **BOTH), {"miss_block": "other"}),
    "Lily": (lambda: peft.LilyConfig(r=4, **BOTH), {"lily_": "matrix"}),
    "PEANuT": (lambda: peft.PeanutConfig(**BOTH), {"peanut_": "matrix"}),
    "VeRA": (lambda: peft.VeraConfig(r=4, **BOTH), {"vera_lambda": "other"}),
    "MiCA": (lambda: peft.LoraConfig(r=4, init_lora_weights="mica", **BOTH), {"lora_A": "matrix"}),
    "VB-LoRA": (lambda: peft.VBLoRAConfig(vector_length=4, num_vectors=8, topk=2, **BOTH), {"vblora_": "other"}),
    "LN tuning": (lambda: peft.LNTuningConfig(**BOTH), {"weight": "matrix", "bias": "other"}),
}
SLOWER = {"AdaMSS"}


def check_found(model, expected):
    found = geometry(model)
    wanted = [n.replace("base_model.model.", "") for n, p in model.named_parameters() if p.requires_grad]
    assert sorted(found) == sorted(wanted)
    for name, kind in found.items():
        assert [kind] == [k for key, k in expected.items() if f".{key}" in name], name


@pytest.mark.parametrize("case", FOUND)
def test_what_is_normalised_by_definition_has_its_manifold(case):
    check_found(adapted(case), FOUND[case])


@pytest.mark.parametrize("case", [pytest.param(c, marks=pytest.mark.slow) if c in SLOWER else c for c in PLAIN])
def test_all_else_has_the_role_that_the_table_says(case):
    config, expected = PLAIN[case]
    check_found(adapted(config()), expected)


@EACH
def test_groups_are_made_without_changing_the_model(case):
    # In float64, so that only a change that is no rounding is seen; but DEFT's layer computes in float32 throughout.
    # DeLoRA and PaRa are no identities here.
    model = adapted(case, torch.float64)
    assert {p.dtype for p in model.parameters() if p.requires_grad} <= {torch.float64, torch.float32}
    model.double().eval()
    x, _ = batch(torch.float64)
    before, start = model(x).detach(), infeasibility(model)
    param_groups(model)
    assert start > 0.01
    assert infeasibility(model) < 1e-12
    assert (model(x) - before).abs().max() < (1e-6 if case == "PaRa" else 1e-12)


@EACH
def test_what_is_there_already_is_not_touched(case):
    model = adapted(case)
    param_groups(model)
    train(model, Adam(param_groups(model), lr=0.01), 3)
    param_groups(model)
    before = {n: p.clone() for n, p in model.named_parameters()}
    param_groups(model)
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


def test_left_alone_on_request_and_by_name():
    for options in ({"adapters": False}, {"other": "*hra_u*"}):
        model = adapted("HRA")
        before = {n: p.clone() for n, p in model.named_parameters()}
        assert set(geometry(model, **options).values()) == {"other"}
        assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    lora = adapted(peft.LoraConfig(r=2, **BOTH))
    assert set(geometry(lora, adapters=False).values()) == {"FixedRank"}


def test_only_adapters_that_train():
    model = adapted("HRA")
    model.add_adapter("second", peft.HRAConfig(r=2, **BOTH))
    second = model.base_model.model.a.hra_u["second"].clone()
    assert {n.rpartition(".")[2] for n in geometry(model)} == {"default"}
    assert torch.equal(model.base_model.model.a.hra_u["second"], second)
    model.set_adapter("second")
    assert {n.rpartition(".")[2] for n in geometry(model)} == {"second"}


def test_convolutions():
    model = adapted(peft.HRAConfig(r=4, target_modules=["a"]), net=Conv)
    x, _ = batch()
    before = model(x).detach()
    optimizer = Muon(param_groups(model), lr=0.05)
    assert (model(x) - before).abs().max() < 1e-5
    losses = train(model, optimizer, 20)
    assert losses[-1] < losses[0]
    assert infeasibility(model) < 1e-5
    adalora = peft.AdaLoraConfig(**ADALORA, target_modules=["a"])
    assert sorted(geometry(adapted(adalora, net=Conv)).values()) == ["Stiefel", "Stiefel", "other"]


def test_a_rank_beyond_a_side_and_a_column_without_direction_stay_plain():
    wide = {"init_r": 14, **{k: v for k, v in ADALORA.items() if k != "init_r"}}
    found = geometry(adapted(peft.AdaLoraConfig(**wide, **BOTH)))
    assert found["a.lora_A.default"] == found["b.lora_B.default"] == "other"  # 14 vectors of 12 numbers
    assert found["a.lora_B.default"] == found["b.lora_A.default"] == "Stiefel"
    model = adapted("HRA")
    with torch.no_grad():
        model.base_model.model.a.hra_u["default"][:, 1] = 0
    assert geometry(model) == {"a.hra_u.default": "other", "b.hra_u.default": "Oblique"}


def test_before_there_is_memory():
    with torch.device("meta"):
        model = peft.get_peft_model(Net(), ON_MANIFOLDS["HRA"](), low_cpu_mem_usage=True)
    assert set(geometry(model).values()) == {"Oblique"}


# Training. ------------------------------------------------------------------------------------------------------------

RATES = {SGD: 0.3, Adam: 0.03, Muon: 0.05}


@pytest.mark.parametrize("family", RATES, ids=lambda f: f.__name__)
@EACH
def test_training_stays_there_and_learns(case, family):
    model = adapted(case)
    others = {"adamw_lr": 0.03} if family is Muon else {}
    losses = train(model, family(param_groups(model), lr=RATES[family], **others), 30)
    assert losses[-1] < losses[0] - 0.02
    assert infeasibility(model) < 1e-5  # float32, a few ulps a step
    model.eval()
    x, _ = batch()
    unmerged = model(x).detach()
    torch.testing.assert_close(model.merge_and_unload()(x), unmerged, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", ["HRA", "AdaLoRA", "PaRa"])
def test_an_optimiser_that_does_not_look_leaves(case):
    model = adapted(case)
    param_groups(model)
    train(model, torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.03), 10)
    assert infeasibility(model) > 0.01  # so that the tests here say something


@pytest.mark.parametrize("case", ["HRA", "AdaLoRA", "DeLoRA"])
def test_save_and_load_goes_on_where_it_was(case, tmp_path):
    model = adapted(case)
    optimizer = Adam(param_groups(model), lr=0.03)
    train(model, optimizer, 3)
    model.save_pretrained(tmp_path)
    torch.manual_seed(0)
    again = peft.PeftModel.from_pretrained(Net(), tmp_path, is_trainable=True)
    resumed = Adam(param_groups(again), lr=9.0)
    resumed.load_state_dict(optimizer.state_dict())
    assert geometry(again) == geometry(model)
    losses = train(model, optimizer, 3), train(again, resumed, 3)
    # groups move what steps have left off by an ulp or so
    torch.testing.assert_close(torch.tensor(losses[0]), torch.tensor(losses[1]), rtol=1e-5, atol=1e-6)


def test_adalora_masks_ranks_and_its_vectors_stay_orthonormal(tmp_path):
    model = adapted("AdaLoRA")
    optimizer = Adam(param_groups(model), lr=0.03)
    step = iter(range(16))
    losses = train(model, optimizer, 16, after=lambda _: model.base_model.update_and_allocate(next(step)))
    assert losses[-1] < losses[0] - 0.02
    assert infeasibility(model) < 1e-5
    kept = {n: (p != 0).sum().item() for n, p in model.named_parameters() if "lora_E" in n}
    assert sum(kept.values()) == 4 == sum(sum(mask) for mask in model.peft_config["default"].rank_pattern.values())
    model.eval()
    x, _ = batch()
    expected = model(x).detach()
    model.save_pretrained(tmp_path)
    torch.manual_seed(0)
    again = peft.PeftModel.from_pretrained(Net(), tmp_path, is_trainable=True)
    again.eval()
    torch.testing.assert_close(again(x), expected, rtol=1e-5, atol=1e-6)
    assert sorted({*geometry(again).values()}) == ["Stiefel", "other"]  # rows and columns that are left


def test_adalora_that_was_trained_without_a_constraint_is_left_as_it_is():
    model = adapted("AdaLoRA")
    train(model, torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.03), 5)
    before = {n: p.clone() for n, p in model.named_parameters()}
    assert set(geometry(model).values()) == {"other"}
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


def test_adaloras_penalty_pulls_nobody_off():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = peft.get_peft_model(tiny(transformers), peft.AdaLoraConfig(**{**ADALORA, "orth_reg_weight": 0.5}))
    optimizer = SGD(param_groups(model), lr=0.1)
    tokens = torch.randint(0, 30, (4, 6))
    for _ in range(5):
        optimizer.zero_grad()
        model(input_ids=tokens, labels=tokens[:, 0] % 2).loss.backward()
        optimizer.step()
    assert infeasibility(model) < 1e-5


# Hosts. ---------------------------------------------------------------------------------------------------------------


def tiny(transformers):
    config = transformers.BertConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=8, num_labels=2,
    )  # fmt: skip
    return transformers.BertForSequenceClassification(config)


@EACH
def test_distributed_data_parallel(case, gloo):
    model = adapted(case)
    wrapped = nn.parallel.DistributedDataParallel(model)
    assert geometry(wrapped) == geometry(model)
    train(wrapped, Muon(param_groups(wrapped), lr=0.05), 3)
    assert infeasibility(model) < 1e-5


@EACH
def test_compiled(case):
    model = adapted(case)
    wrapped = torch.compile(model, backend="eager")
    assert geometry(wrapped) == geometry(model)
    train(model, Muon(param_groups(wrapped), lr=0.05), 3)  # what is stepped are the model's own parameters
    assert infeasibility(model) < 1e-5


@EACH
def test_fully_sharded_is_found_and_refused_by_name_or_plain_on_request(case, gloo):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = adapted(case)
    found = geometry(model)
    fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
    assert geometry(model) == found
    with pytest.raises(ValueError, match=r"(hra_u|delora_A|lora_A|deft_P)\.default: is sharded"):
        Adam(param_groups(model))
    losses = train(model, Adam(param_groups(model, adapters=False), lr=0.03), 10)
    assert losses[-1] < losses[0]


@contextlib.contextmanager
def accelerated(model, optimizer):
    accelerate = pytest.importorskip("accelerate")
    try:
        yield accelerate.Accelerator(cpu=True).prepare(model, optimizer)
    finally:
        accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
        accelerate.state.GradientState._reset_state()


def test_accelerate():
    model = adapted("HRA")
    with accelerated(model, Muon(param_groups(model), lr=0.05)) as (wrapped, optimizer):
        train(wrapped, optimizer, 5)
    assert infeasibility(model) < 1e-5


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "case",
    [
        "LOFT",
        "RiemannLoRA",
        *(pytest.param(c, marks=SLOW) for c in ("HRA", "DeLoRA", "AdaLoRA", "PaRa", "our HRA")),
    ],
)
def test_trainer(case, tmp_path):
    transformers = pytest.importorskip("transformers")
    accelerate = pytest.importorskip("accelerate")
    torch.manual_seed(0)
    config = (ON_MANIFOLDS | OURS)[case]()
    config.target_modules = {"query", "value"}
    bert = peft.get_peft_model(tiny(transformers), config)
    data = [{"input_ids": torch.randint(0, 30, (6,)), "labels": i % 2} for i in range(12)]
    arguments = transformers.TrainingArguments(
        str(tmp_path), num_train_epochs=2, per_device_train_batch_size=6, report_to=[], save_strategy="no",
        use_cpu=True, disable_tqdm=True, dataloader_pin_memory=False,
    )  # fmt: skip
    way = {"optimizer_cls_and_kwargs": (Muon, {"params": param_groups(bert), "lr": 0.02})}
    before = {n: p.detach().clone() for n, p in bert.named_parameters() if p.requires_grad}
    try:
        transformers.Trainer(bert, arguments, train_dataset=data, **way).train()
    finally:
        accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
        accelerate.state.GradientState._reset_state()
    assert case == "RiemannLoRA" or infeasibility(bert) < 1e-5
    assert any(not torch.equal(p, before[n]) for n, p in bert.named_parameters() if n in before)


# The adapters of this library in the same hosts. ----------------------------------------------------------------------

KIND = {"LOFT": "SpecialOrthogonal", "our HRA": "Oblique", "RiemannLoRA": "FixedRank"}


def adapter_of(model) -> dict[str, torch.Tensor]:
    return {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}


def trained_alone(case, steps=4) -> dict[str, torch.Tensor]:
    model = adapted(case)
    train(model, Muon(param_groups(model), lr=0.05), steps)
    return adapter_of(model)


@pytest.mark.parametrize(
    "host",
    ["DistributedDataParallel", pytest.param("torch.compile", marks=SLOW), "accelerate", "bare tensors"],
)
@EACH_OF_OURS
def test_ours_are_found_in_a_host_and_train_as_without(case, host, request):
    model = adapted(case)
    assert set(geometry(model).values()) == {KIND[case]}
    if host == "accelerate":
        with accelerated(model, Muon(param_groups(model), lr=0.05)) as (wrapped, optimizer):
            train(wrapped, optimizer, 4)
    else:
        if host == "DistributedDataParallel":
            request.getfixturevalue("gloo")
            wrapped = nn.parallel.DistributedDataParallel(model)
        else:
            wrapped = torch.compile(model, backend="eager") if host == "torch.compile" else model
        assert geometry(wrapped) == geometry(model)
        found = [p for p in model.parameters() if p.requires_grad] if host == "bare tensors" else param_groups(wrapped)
        train(wrapped, Muon(found, lr=0.05), 4)
    assert case == "RiemannLoRA" or infeasibility(model) < 1e-5
    for name, expected in trained_alone(case).items():
        assert torch.equal(model.get_parameter(name), expected)


@EACH_OF_OURS
def test_ours_when_sharded_are_refused_by_name_before_or_at_the_next_step(case, gloo):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = adapted(case)
    early = Adam(param_groups(model), lr=0.03)
    fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
    assert set(geometry(model).values()) == {KIND[case]}
    with pytest.raises(ValueError, match=r"steepest_\w+\.default: is sharded"):
        Adam(param_groups(model))
    replaced = dict(model.named_parameters())
    for group in early.param_groups:  # as accelerate does
        group["params"] = [replaced[name] for name in group["param_names"]]
    with pytest.raises(ValueError, match=r"steepest_\w+\.default: is sharded"):
        train(model, early, 1)


def in_two_processes(case, rank):
    """DDP, and a sharded base model whose adapters are whole: each process has one half of the batch."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    x, y = (t.chunk(2)[rank] for t in batch())

    def run(model, after_backward=lambda: None):
        optimizer = Muon(param_groups(model), lr=0.05)
        for _ in range(4):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            after_backward()
            optimizer.step()

    def check(model, tolerance):
        for name, expected in trained_alone(case).items():
            p = model.get_parameter(name).detach()
            both = [torch.empty_like(p) for _ in range(2)]
            dist.all_gather(both, p.contiguous())
            assert torch.equal(*both), name
            torch.testing.assert_close(p, expected, rtol=0, atol=tolerance)

    model = adapted(case)
    run(nn.parallel.DistributedDataParallel(model))
    check(model, 1e-5)  # sums over halves of the batch, in float32

    model = adapted(case)
    mesh = init_device_mesh("cpu", (2,))
    for layer in (model.base_model.model.a, model.base_model.model.b):
        fully_shard(layer.base_layer, mesh=mesh)
    adapters = [p for p in model.parameters() if p.requires_grad]

    def reduce():
        for p in adapters:
            dist.all_reduce(p.grad)
            p.grad /= 2

    run(model, reduce)
    check(model, 1e-5)

    model = adapted(case)
    fully_shard(model, mesh=mesh)
    assert set(geometry(model).values()) == {KIND[case]}
    try:
        Adam(param_groups(model))
    except ValueError as error:
        assert "is sharded" in str(error)  # noqa: PT017  (this runs without pytest)
    else:
        raise AssertionError("a sharded point was taken")


@pytest.mark.slow
def test_ours_in_two_processes(tmp_path):
    here = {**os.environ, "OMP_NUM_THREADS": "1"}
    runs = [subprocess.Popen([sys.executable, __file__, str(rank), f"{tmp_path}/store"], env=here) for rank in range(2)]
    assert [run.wait(timeout=300) for run in runs] == [0, 0]


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=int(sys.argv[1]), world_size=2)
    for name in OURS:
        in_two_processes(name, dist.get_rank())
    dist.destroy_process_group()
