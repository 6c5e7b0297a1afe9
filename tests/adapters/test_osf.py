"""OSF: what an optimiser changes stays out of the protected subspaces, to rounding."""

import copy
import os
import subprocess
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
import torch.distributed as dist
from torch import nn

from steepest import SGD, AdamW, Muon, param_groups
from steepest.adapters import keep_protected
from steepest.optim import OPTIMIZERS as STEEPEST

peft = pytest.importorskip("peft")

RANK = 5
PROTECTED = {}


class Net(nn.Module):
    """A wide layer, a tall one and a square one: PEFT keeps other bases for each."""

    def __init__(self):
        super().__init__()
        self.wide, self.tall, self.square = nn.Linear(20, 12), nn.Linear(12, 16), nn.Linear(16, 16)

    def forward(self, x):
        return self.square(torch.tanh(self.tall(torch.tanh(self.wide(x)))))


TARGETS = ["wide", "tall", "square"]


def adapted(dtype=torch.float32, **options):
    torch.manual_seed(0)
    config = peft.OSFConfig(target_modules=TARGETS, effective_rank=RANK, **options)
    return peft.get_peft_model(Net().to(dtype), config)


def trained(model):
    return [p for p in model.parameters() if p.requires_grad]


def train(model, optimizer, steps=100, forward=None, rows=slice(None)):
    generator = torch.Generator().manual_seed(3)
    x, y = torch.randn(24, 20, generator=generator)[rows], torch.randn(24, 16, generator=generator)[rows]
    dtype = next(model.parameters()).dtype
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = ((forward or model)(x.to(dtype)).float() - y).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def backward(model):
    x = torch.randn(24, 20, generator=torch.Generator().manual_seed(3))
    model.zero_grad()
    loss = model(x).square().mean()
    loss.backward()
    return loss


def leaks(model, of="change") -> dict[str, tuple[float, float]]:
    """What of each layer's change of weight lies in the leading left and right singular directions of the weight, as a
    share of the change or of the weight; by its decomposition in float32, as PEFT's, and products in float64."""
    found = {}
    for name in TARGETS:
        layer = getattr(model.base_model.model, name)
        u, s, vh = torch.linalg.svd(layer.base_layer.weight.detach().float(), full_matrices=False)
        factors = {k: v.detach().double() for k, v in layer.osf_svd_params["default"].items()}
        start = [getattr(layer, f"_osf_{k}_low_init")["default"].double() for k in "USV"]
        change = (factors["U_low"] * factors["S_low"]) @ factors["V_low"] - (start[0] * start[1]) @ start[2]
        left, right = u[:, :RANK].double().mT @ change, change @ vh[:RANK].double().mT
        whole = change.norm() if of == "change" else s.norm()
        found[name] = tuple((part.norm() / whole).item() for part in (left, right))
    return found


def worst(model, of="change") -> float:
    return max(max(pair) for pair in leaks(model, of).values())


OPTIMIZERS = {
    "torch AdamW": lambda m: torch.optim.AdamW(trained(m), lr=0.01, weight_decay=0.1),
    "torch SGD": lambda m: torch.optim.SGD(trained(m), lr=0.3, momentum=0.9, weight_decay=0.01),
    "AdamW": lambda m: AdamW(param_groups(m), lr=0.01, weight_decay=0.1),
    "Muon": lambda m: Muon(trained(m), lr=0.01, weight_decay=0.1),  # of bare tensors every matrix is one
    "SGD": lambda m: SGD(param_groups(m), lr=0.3, momentum=0.9, weight_decay=0.01),
}
TOLERANCE = 1e-6
"""What is left are the rounding errors of one projection, and of PEFT's bases, in float32: shares of the weight, which
are shares of its change as well where that is about as large."""


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_nothing_leaks(name):
    model = adapted()
    optimizer = OPTIMIZERS[name](model)
    keep_protected(optimizer, model)
    losses = train(model, optimizer)
    assert losses[-1] < 0.8 * losses[0]
    assert worst(model) <= TOLERANCE


@pytest.mark.parametrize("name", ["torch AdamW", "AdamW"])
def test_gradients_that_are_projected_are_not_enough_entry_by_entry(name):
    model = adapted()
    train(model, OPTIMIZERS[name](model))
    assert all(max(pair) > 0.1 for pair in leaks(model).values())


@pytest.mark.slow
def test_what_acts_on_singular_values_stays_in_the_span_of_its_gradients():
    model = adapted()
    train(model, OPTIMIZERS["Muon"](model))
    assert worst(model) < 1e-5  # rounding, which gradients without full rank would see amplified


def torch_optimizers():
    left_out = {"Optimizer", "SparseAdam", "Muon"}  # the one wants sparse gradients, the other matrices alone
    names = sorted(n for n, c in vars(torch.optim).items() if isinstance(c, type) and n not in left_out)
    quick = {"Adam", "Adafactor", "LBFGS"}
    return [n if n in quick else pytest.param(n, marks=pytest.mark.slow) for n in names]


@pytest.mark.parametrize("name", torch_optimizers())
def test_every_optimiser_of_torch(name):
    model = adapted()
    optimizer = getattr(torch.optim, name)(trained(model), lr=1e-2)
    keep_protected(optimizer, model)
    before = [p.detach().clone() for p in trained(model)]
    if name == "LBFGS":
        optimizer.step(lambda: backward(model))
    else:
        train(model, optimizer, 5)
    assert worst(model, of="weight") <= TOLERANCE
    assert all(not torch.equal(p, old) for p, old in zip(trained(model), before, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(STEEPEST.keys() - {"composed"}))
def test_every_optimiser_of_steepest(name):
    model = adapted()
    family = STEEPEST[name]
    optimizer = family(trained(model), lr=1e-2, **family.in_suite)  # every matrix is one
    keep_protected(optimizer, model)
    train(model, optimizer, 5)
    assert worst(model, of="weight") <= TOLERANCE


def test_the_projection_is_of_the_update():
    # With plain gradient descent the update is in the allowed subspaces by PEFT's hooks: nothing is there to do.
    results = []
    for keep in (False, True):
        model = adapted()
        optimizer = torch.optim.SGD(trained(model), lr=0.3)
        if keep:
            keep_protected(optimizer, model)
        train(model, optimizer, 20)
        results.append([p.detach().clone() for p in trained(model)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_thousands_of_projections_do_not_drift():
    model = adapted()
    optimizer = torch.optim.SGD(trained(model), lr=0.0)
    keep_protected(optimizer, model)
    for p in trained(model):
        p.grad = torch.zeros_like(p)
    before = [p.detach().clone() for p in trained(model)]
    for _ in range(1500):
        optimizer.step()
    for p, old in zip(trained(model), before, strict=True):
        # I - (I - Q Q^T)^2 leaves what is allowed alone up to (1e-7)^2 a step; Q Q^T alone would lose 1e-4 here
        torch.testing.assert_close(p, old, rtol=0, atol=2e-6)


def test_taken_off_again():
    model = adapted()
    optimizer = torch.optim.AdamW(trained(model), lr=0.01)
    with keep_protected(optimizer, model):
        train(model, optimizer, 5)
        assert worst(model) <= TOLERANCE
    train(model, optimizer, 20)
    assert worst(model) > 0.05


def test_state_and_checkpoints_know_nothing_of_it(tmp_path):
    plain, kept = adapted(), adapted()
    optimizers = [torch.optim.AdamW(trained(m), lr=0.01) for m in (plain, kept)]
    keep_protected(optimizers[1], kept)
    assert plain.state_dict().keys() == kept.state_dict().keys()
    train(kept, optimizers[1], 5)
    optimizers[0].load_state_dict(optimizers[1].state_dict())
    kept.save_pretrained(tmp_path)
    torch.manual_seed(0)
    again = peft.PeftModel.from_pretrained(Net(), tmp_path, is_trainable=True)
    resumed = torch.optim.AdamW(trained(again), lr=0.01)
    resumed.load_state_dict(copy.deepcopy(optimizers[1].state_dict()))
    keep_protected(resumed, again)
    assert train(again, resumed, 5) == train(kept, optimizers[1], 5)
    assert worst(again) <= TOLERANCE


def test_an_adapter_that_is_off_is_refused_by_name_or_moved():
    model = adapted()
    optimizer = torch.optim.AdamW(trained(model), lr=0.01)
    train(model, optimizer, 20)
    with pytest.raises(ValueError, match=r"base_model\.model\.wide: .* project=True"):
        keep_protected(optimizer, model)
    assert not optimizer._optimizer_step_post_hooks
    assert not optimizer._optimizer_step_pre_hooks
    keep_protected(optimizer, model, project=True)
    assert worst(model) <= TOLERANCE
    with pytest.raises(ValueError, match="no OSF layers"):
        keep_protected(optimizer, nn.Linear(2, 2))
    with torch.no_grad():
        model.base_model.model.tall.osf_svd_params["default"]["U_low"][0, 0] = torch.nan
    for project in (False, True):
        with pytest.raises(ValueError, match=r"tall: .* NaN"):
            keep_protected(optimizer, model, project=project)


def test_frozen_adapters_are_left_alone():
    model = adapted()
    model.add_adapter("second", peft.OSFConfig(target_modules=TARGETS, effective_rank=3))
    before = {n: p.detach().clone() for n, p in model.named_parameters() if "second" in n}
    optimizer = torch.optim.AdamW(trained(model), lr=0.01)
    keep_protected(optimizer, model)
    train(model, optimizer, 3)
    assert before
    assert all(torch.equal(model.get_parameter(n), p) for n, p in before.items())


def test_an_adapter_that_becomes_active_later_is_kept_as_well():
    model = adapted()
    model.add_adapter("second", peft.OSFConfig(target_modules=TARGETS, effective_rank=RANK))
    factors = [p for n, p in model.named_parameters() if "osf_svd_params" in n]
    optimizer = torch.optim.AdamW(factors, lr=0.01)
    keep_protected(optimizer, model)
    train(model, optimizer, 5)
    model.set_adapter("second")
    train(model, optimizer, 5)
    for layer in (getattr(model.base_model.model, name) for name in TARGETS):
        u = torch.linalg.svd(layer.base_layer.weight.detach())[0][:, :RANK]
        for adapter in ("default", "second"):
            change = layer.get_delta_weight(adapter).detach()
            assert change.norm() > 0.01
            assert (u.mT @ change).norm() < 1e-5 * change.norm()  # a share of what five steps have changed


def test_with_a_scheduler_and_a_whole_weight_that_is_protected():
    model = peft.get_peft_model(
        Net(), peft.OSFConfig(target_modules=TARGETS, effective_rank=RANK, rank_pattern={"wide": 12})
    )
    optimizer = torch.optim.AdamW(trained(model), lr=0.01)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.02, total_steps=30)
    keep_protected(optimizer, model)
    for _ in range(30):
        train(model, optimizer, 1)
        scheduler.step()
    found = leaks(model)
    assert not model.base_model.model.wide.get_delta_weight("default").any()
    assert max(max(found[name]) for name in ("tall", "square")) <= TOLERANCE


def test_flattened_factors_are_refused_by_name():
    model = adapted()
    factors = model.base_model.model.tall.osf_svd_params["default"]
    factors["V_low"] = nn.Parameter(factors["V_low"].detach().flatten())
    with pytest.raises(ValueError, match=r"tall: V_low of 'default' has shape .* FSDP1"):
        keep_protected(torch.optim.AdamW(trained(model)), model)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_whose_gradient_hooks_are_lost(dtype):
    # PEFT casts the factors to float32 and loses its hooks. Its bases are rounded, to relative errors of eps / 2, so
    # that what is frozen, U0 S0 V0 of three such factors, is itself off by up to 3/2 eps |W|.
    for keep in (False, True):
        model = adapted(dtype)
        assert {p.dtype for p in trained(model)} == {torch.float32}
        optimizer = torch.optim.SGD(trained(model), lr=0.05)
        if keep:
            keep_protected(optimizer, model)
        train(model, optimizer, 30, forward=lambda x, m=model: _in_float(m, x))
        if keep:
            assert worst(model, of="weight") < 1.5 * torch.finfo(dtype).eps
        else:
            assert worst(model) > 0.1


def _in_float(model, x):
    """The model in float32 with the factors that it has, as not every half precision has CPU kernels."""
    net, x = model.base_model.model, x.float()
    for name in TARGETS:
        layer = getattr(net, name)
        f, base = layer.osf_svd_params["default"], layer.base_layer
        start = [getattr(layer, f"_osf_{k}_low_init")["default"].float() for k in "USV"]
        change = (f["U_low"] * f["S_low"]) @ f["V_low"] - (start[0] * start[1]) @ start[2]
        x = nn.functional.linear(x, base.weight.float() + change, base.bias.float())
        x = torch.tanh(x) if name != "square" else x
    return x


# Hosts. ---------------------------------------------------------------------------------------------------------------


def sharded_run(processes, keep):
    """The leak of ten steps with every process's own half, or all, of the batch, and the factors."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = adapted()
    fully_shard(model, mesh=init_device_mesh("cpu", (processes,)))
    optimizer = torch.optim.AdamW(trained(model), lr=0.01)
    if keep:
        keep_protected(optimizer, model)
    train(model, optimizer, 10, rows=slice(dist.get_rank(), None, processes))
    whole = adapted()
    with torch.no_grad():
        for p, q in zip(trained(whole), trained(model), strict=True):
            p.copy_(q.full_tensor())
    return worst(whole), trained(whole)


def check_sharded(processes):
    leak, factors = sharded_run(processes, keep=True)
    assert sharded_run(processes, keep=False)[0] > 0.1
    assert leak <= TOLERANCE
    alone = adapted()
    optimizer = torch.optim.AdamW(trained(alone), lr=0.01)
    keep_protected(optimizer, alone)
    train(alone, optimizer, 10)
    for p, q in zip(trained(alone), factors, strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-5)  # ten steps of 1e-2, in float32


def test_fully_sharded(gloo):
    check_sharded(processes=1)


@pytest.mark.slow
def test_fully_sharded_over_two_processes(tmp_path):
    here = {**os.environ, "OMP_NUM_THREADS": "1"}
    runs = [subprocess.Popen([sys.executable, __file__, str(rank), f"{tmp_path}/store"], env=here) for rank in range(2)]
    assert [run.wait(timeout=300) for run in runs] == [0, 0]


def test_accelerate_before_or_after_it_wraps():
    accelerate = pytest.importorskip("accelerate")
    for after in (False, True):
        model = adapted()
        optimizer = torch.optim.AdamW(trained(model), lr=0.01)
        if not after:
            keep_protected(optimizer, model)
        try:
            wrapped, prepared = accelerate.Accelerator(cpu=True).prepare(model, optimizer)
            if after:
                keep_protected(prepared, wrapped)
            train(wrapped, prepared, 10)
        finally:
            accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
            accelerate.state.GradientState._reset_state()
        assert worst(model) <= TOLERANCE


@pytest.mark.slow
def test_trainer(tmp_path):
    transformers = pytest.importorskip("transformers")
    accelerate = pytest.importorskip("accelerate")

    class Regression(Net):
        def forward(self, x, labels=None):
            y = super().forward(x)
            return {"loss": (y - labels).square().mean(), "logits": y}

    torch.manual_seed(0)
    model = peft.get_peft_model(Regression(), peft.OSFConfig(target_modules=TARGETS, effective_rank=RANK))
    optimizer = torch.optim.AdamW(trained(model), lr=0.01)
    keep_protected(optimizer, model)
    arguments = transformers.TrainingArguments(
        str(tmp_path), num_train_epochs=3, per_device_train_batch_size=8, report_to=[], save_strategy="no",
        use_cpu=True, disable_tqdm=True, dataloader_pin_memory=False, remove_unused_columns=False,
    )  # fmt: skip
    data = [{"x": torch.randn(20), "labels": torch.randn(16)} for _ in range(24)]
    try:
        transformers.Trainer(model, arguments, train_dataset=data, optimizers=(optimizer, None)).train()
    finally:
        accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
        accelerate.state.GradientState._reset_state()
    assert worst(model, of="weight") <= TOLERANCE


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=int(sys.argv[1]), world_size=2)
    check_sharded(processes=2)
    dist.destroy_process_group()
