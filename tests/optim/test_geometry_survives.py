"""What a constraint outlives: every way in which parameters are copied, cast, replaced or wrapped.

After each, `Adam(model.parameters())`, which is told nothing, keeps the weights on their manifolds.
"""

import copy
import gc
import io
import pickle
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from steepest import SPD, Adam, FixedRank, Muon, Stiefel, constrain, param_groups
from steepest.optim import constraints


class Net(nn.Module):
    """One constraint of each kind: on a submodule, by a dotted name with a pattern, a pair, and a plain weight."""

    def __init__(self):
        super().__init__()
        self.rows = nn.Linear(6, 4)
        self.conv = nn.Sequential(nn.Conv1d(1, 4, 3))
        self.b, self.a = nn.Parameter(torch.randn(4, 2)), nn.Parameter(torch.randn(2, 4))
        self.cov = nn.Parameter(torch.eye(4) + 0.1)
        constrain(self.rows, "weight", Stiefel(), matrix="o i -> i o")
        constrain(self, "conv.0.weight", Stiefel(), matrix="o i w -> o (i w)")
        constrain(self, ("b", "a"), FixedRank())
        constrain(self, "cov", SPD())

    def forward(self, x):
        y = self.rows(x)
        return self.conv(y[:, None]).mean((1, 2)) + (y @ self.b @ self.a @ self.cov).sum(-1)


def infeasibility(model: nn.Module) -> float:
    """How far the weights are from what was asked for, without the library."""
    p = {name.split("_orig_mod.")[-1].split("module.")[-1]: t.detach().double() for name, t in model.named_parameters()}
    rows, conv, cov = p["rows.weight"], p["conv.0.weight"].flatten(1), p["cov"]
    gaps = [(rows @ rows.T - torch.eye(4)).abs().max(), (conv.T @ conv - torch.eye(3)).abs().max()]
    gaps.append((cov - cov.T).abs().max() - torch.linalg.eigvalsh(cov).min().clamp_max(0))
    return max(g.item() for g in gaps)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, forward=None, steps: int = 5) -> None:
    dtype = next(model.parameters()).dtype
    for _ in range(steps):
        optimizer.zero_grad()
        (forward or model)(torch.randn(5, 6, dtype=dtype)).float().square().mean().backward()
        optimizer.step()


def moved(model: nn.Module, before: dict[str, torch.Tensor]) -> bool:
    return all(not torch.equal(t, before[name]) for name, t in model.state_dict().items())


def check(model: nn.Module, tolerance: float = 1e-5, forward=None) -> None:
    assert infeasibility(model) < tolerance
    before = {name: t.clone() for name, t in model.state_dict().items()}
    train(model, Adam(model.parameters(), lr=0.05), forward)
    assert infeasibility(model) < tolerance
    assert moved(model, before)
    train(model, Muon(param_groups(model), lr=0.05), forward)
    assert infeasibility(model) < tolerance


def test_the_net_leaves_its_manifolds_under_an_optimiser_that_does_not_look():
    net = Net()
    train(net, torch.optim.Adam(net.parameters(), lr=0.05))
    assert infeasibility(net) > 0.05  # so that the tests below say something


# Copies. --------------------------------------------------------------------------------------------------------------


def test_deepcopy():
    net = Net()
    twin = copy.deepcopy(net)
    del net
    check(twin)


def test_both_original_and_copy_in_one_optimiser():
    net = Net()
    both = nn.ModuleList([net, copy.deepcopy(net)])
    optimizer = Adam(both.parameters(), lr=0.05)
    for part in both:
        train(part, optimizer, steps=2)
    assert max(infeasibility(part) for part in both) < 1e-5


def test_save_and_load_of_the_whole_module():
    file = io.BytesIO()
    torch.save(Net(), file)
    file.seek(0)
    check(torch.load(file, weights_only=False))


def test_pickle():
    check(pickle.loads(pickle.dumps(Net())))


def test_averaged_model():
    average = torch.optim.swa_utils.AveragedModel(Net())
    check(average.module)


def test_frozen_garbage_collector():
    net = Net()
    gc.freeze()
    try:
        check(net)
        assert gc.get_freeze_count() > 0  # left as it was found
    finally:
        gc.unfreeze()


# Other tensors, other dtypes. -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("assign", [False, True])
def test_load_state_dict(assign):
    net, other = Net(), Net()
    net.load_state_dict(other.state_dict(), assign=assign)
    check(net)


def test_bfloat16():
    check(Net().to(torch.bfloat16), tolerance=0.05)


def test_double_is_projected_again_or_taken_at_float32_precision():
    net = Net().double()
    check(net, tolerance=1e-6)  # the rounding of the float32 weights, mended by the first step or so


def test_reassigned_parameters():
    net = Net()
    for module in net.modules():
        for name, p in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(p.detach().clone()))
    check(net)


@contextmanager
def swapping():
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        yield
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


def test_swapped_tensors():
    net = Net()
    with swapping():
        net.double()
    check(net, tolerance=1e-6)


def test_meta_then_materialised():
    values = Net().state_dict()
    with torch.device("meta"):
        net = Net()
    assert len(constraints(net)) == 3
    net.to_empty(device="cpu")
    net.load_state_dict(values)
    check(net)


def test_an_optimiser_built_on_meta_steps_what_takes_the_place():
    values = Net().state_dict()
    with torch.device("meta"):
        net = Net()
    optimizer = Adam(net.parameters(), lr=0.05)
    with swapping():
        net.to_empty(device="cpu")
    net.load_state_dict(values)
    train(net, optimizer)
    assert infeasibility(net) < 1e-5
    assert moved(net, values)


# Wrappers. ------------------------------------------------------------------------------------------------------------


def test_functional_call():
    net = Net()
    check(net, forward=lambda x: torch.func.functional_call(net, dict(net.named_parameters()), (x,)))


def test_compiled_module_under_its_own_names():
    net = Net()
    names = [g["param_names"] for g in param_groups(net)]
    compiled = torch.compile(net, backend="eager")
    assert [g["param_names"] for g in param_groups(compiled)] == names
    check(compiled)


def test_checkpoint_of_a_compiled_module_resumes_on_the_plain_one():
    net = Net()
    compiled = Adam(param_groups(torch.compile(net, backend="eager")), lr=0.05)
    train(net, compiled, steps=1)
    plain = Adam(param_groups(net), lr=1.0)
    plain.load_state_dict(compiled.state_dict())
    assert plain.param_groups[0]["lr"] == 0.05


def test_submodule_called_module_keeps_its_name():
    outer = nn.Module()
    outer.module = nn.Linear(2, 2)
    assert [n for g in param_groups(outer) for n in g["param_names"]] == ["module.weight", "module.bias"]


def test_distributed_data_parallel(gloo):
    net = Net()
    names = [g["param_names"] for g in param_groups(net)]
    wrapped = nn.parallel.DistributedDataParallel(net)
    assert [g["param_names"] for g in param_groups(wrapped)] == names
    check(wrapped)


def sharded(module: nn.Module) -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    fully_shard(module, mesh=init_device_mesh("cpu", (1,)))
    return module


def test_fully_sharded_points_and_matrices_are_refused_by_name(gloo):
    net = sharded(Net())
    assert len(constraints(net)) == 3  # the entry is still there
    for build in (lambda: Adam(param_groups(net)), lambda: Adam(net.parameters())):
        with pytest.raises(ValueError, match=r"(weight|parameter 0): is sharded"):
            build()
    with pytest.raises(ValueError, match=r"weight: is sharded .* Muon needs"):
        Muon(param_groups(sharded(nn.Linear(3, 2))))


def test_an_optimiser_whose_points_are_sharded_later_says_so_at_its_next_step(gloo):
    net = Net()
    optimizer = Adam([net.rows.weight], lr=0.05)
    train(net, optimizer, steps=1)
    sharded(net)
    optimizer.param_groups[0]["params"][:] = [net.rows.weight]  # as accelerate does
    with pytest.raises(ValueError, match="is sharded"):
        optimizer.step()


def test_plain_parameters_may_be_sharded(gloo):
    def trained(wrap):
        torch.manual_seed(0)
        net = wrap(nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 1)))
        optimizer = Adam(param_groups(net), lr=0.05)
        train(net, optimizer, forward=lambda x: net(x).squeeze(-1), steps=3)
        return [p.detach() for p in net.parameters()]

    for whole, part in zip(trained(lambda net: net), trained(sharded), strict=True):
        assert torch.equal(whole, part.full_tensor())
