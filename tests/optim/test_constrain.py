"""`constrain`: what it accepts, what it refuses by name, and that a refusal changes nothing."""

import copy

import pytest
import torch
from torch import nn

from steepest import SGD, SPD, Adam, Euclidean, FixedRank, Muon, Oblique, Sphere, Stiefel, constrain, param_groups
from steepest.optim import constraints

ROWS = "o i -> i o"


def orthonormality(w: torch.Tensor) -> float:
    """Largest entry of |W W^T - I| for orthonormal rows, of a matrix or a batch of them."""
    return (w @ w.mT - torch.eye(w.shape[-2], dtype=w.dtype)).abs().max().item()


def snapshot(module: nn.Module) -> tuple[dict, dict]:
    state = {k: v.clone() for k, v in module.state_dict().items()}
    return state, {name: dict(constraints(m)) for name, m in module.named_modules()}


def same(a: tuple[dict, dict], b: tuple[dict, dict]) -> bool:
    equal = [torch.equal(v.nan_to_num(7.0), b[0][k].nan_to_num(7.0)) for k, v in a[0].items()]
    return all(equal) and a[1] == b[1]


def train(module: nn.Module, shape: tuple[int, ...], steps: int = 5) -> None:
    """A few steps of the optimisers that need nothing but `parameters()` and of one that needs groups."""
    for optimizer in (Adam(module.parameters(), lr=0.1), Muon(param_groups(module), lr=0.1)):
        for _ in range(steps):
            optimizer.zero_grad()
            module(torch.randn(shape)).square().mean().backward()
            optimizer.step()
        assert optimizer.residual() < 1e-5


# What it accepts. -----------------------------------------------------------------------------------------------------


def test_projects_onto_the_nearest_point():
    layer = nn.Linear(7, 3).double()
    u, _, vh = torch.linalg.svd(layer.weight.detach(), full_matrices=False)
    bias = layer.bias.detach().clone()
    assert constrain(layer, "weight", Stiefel(), matrix=ROWS) is layer
    torch.testing.assert_close(layer.weight, u @ vh, rtol=0, atol=1e-12)
    assert torch.equal(layer.bias, bias)


def test_a_point_is_left_as_it_is():
    layer = constrain(nn.Linear(7, 3), "weight", Stiefel(), matrix=ROWS)
    before = layer.weight.detach().clone()
    constrain(layer, "weight", Stiefel(), matrix=ROWS)
    assert torch.equal(layer.weight, before)


def test_transpose_keeps_rows_orthonormal_through_training():
    layer = constrain(nn.Linear(7, 3), "weight", Stiefel(), matrix=ROWS)
    before = layer.weight.detach().clone()
    train(layer, (4, 7))
    assert orthonormality(layer.weight) < 1e-5
    assert (layer.weight - before).abs().max() > 1e-2


def test_convolution_filters_are_orthonormal_through_training():
    layer = constrain(nn.Conv2d(2, 5, 3), "weight", Stiefel(), matrix="o i h w -> (i h w) o")
    assert orthonormality(layer.weight.flatten(1)) < 1e-5
    train(layer, (2, 2, 5, 5))
    assert orthonormality(layer.weight.flatten(1)) < 1e-5
    assert layer.weight.shape == (5, 2, 3, 3)


def test_one_by_one_convolution_with_axes_of_length_one_in_the_pattern():
    layer = constrain(nn.Conv2d(6, 3, 1), "weight", Stiefel(), matrix="o i 1 1 -> i o")
    train(layer, (2, 6, 3, 3))
    assert orthonormality(layer.weight[..., 0, 0]) < 1e-5


def test_fused_query_key_value_are_three_matrices():
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    constrain(attention, "in_proj_weight", Stiefel(), matrix="(s o) i -> s o i", s=3)
    for part in attention.in_proj_weight.chunk(3):
        assert orthonormality(part) < 1e-5
    optimizer = Adam(attention.parameters(), lr=0.1)
    for _ in range(3):
        x = torch.randn(2, 4, 8)
        optimizer.zero_grad()
        attention(x, x, x)[0].square().mean().backward()
        optimizer.step()
    for part in attention.in_proj_weight.chunk(3):
        assert orthonormality(part) < 1e-5
    whole = attention.in_proj_weight
    assert (whole.T @ whole - torch.eye(8)).abs().max() > 0.5  # not one tall matrix


def test_a_stack_of_experts_is_a_batch():
    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.randn(4, 6, 3))

        def forward(self, x):
            return torch.einsum("bi,eio->beo", x, self.w)

    experts = constrain(Experts(), "w", Stiefel())
    train(experts, (5, 6))
    for w in experts.w:
        assert orthonormality(w.T) < 1e-5


def test_a_pair_of_factors_over_a_submodule():
    class LowRank(nn.Module):
        def __init__(self):
            super().__init__()
            self.down, self.up = nn.Linear(6, 2, bias=False), nn.Linear(2, 5, bias=False)

        def forward(self, x):
            return self.up(self.down(x))

    def trained(scale: float) -> torch.Tensor:
        torch.manual_seed(0)
        net = LowRank().double()
        net.up.weight.data.mul_(scale)
        net.down.weight.data.div_(scale)
        constrain(net, ("up.weight", "down.weight"), FixedRank())
        optimizer = SGD(net.parameters(), lr=0.1)
        x = torch.randn(16, 6, dtype=torch.float64)
        for _ in range(10):
            optimizer.zero_grad()
            (net(x) - x[:, :5]).square().mean().backward()
            optimizer.step()
        return net.up.weight @ net.down.weight

    torch.testing.assert_close(trained(1.0), trained(1000.0), rtol=0, atol=1e-10)


@pytest.mark.parametrize("manifold", [Sphere(), Oblique()], ids=str)
def test_other_manifolds_project_by_default(manifold):
    layer = constrain(nn.Linear(4, 6), "weight", manifold)
    assert manifold.residual(layer.weight).max() < 1e-6
    train(layer, (3, 4))


def test_a_dotted_name_reaches_into_a_submodule():
    net = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 3)))
    constrain(net, "1.0.weight", Stiefel(), matrix=ROWS)
    assert orthonormality(net[1][0].weight) < 1e-5
    assert [g["param_names"] for g in param_groups(net) if g["role"] == "point"] == [["1.0.weight"]]
    train(net, (5, 4))


def test_euclidean_only_says_which_axes_form_the_matrix():
    layer = nn.Conv2d(2, 4, 3)
    before = layer.weight.detach().clone()
    constrain(layer, "weight", Euclidean(), matrix="o i h w -> o (i h w)")
    assert torch.equal(layer.weight, before)
    groups = Muon(layer.parameters()).param_groups
    assert [(g["role"], g["geometry"], g["matrix"]) for g in groups] == [
        ("matrix", None, ["o i h w -> o (i h w)"]),
        ("other", None, None),
    ]


def test_half_precision_projects_and_is_taken_as_it_is_stored():
    layer = constrain(nn.Linear(16, 8).bfloat16(), "weight", Stiefel(), matrix=ROWS)
    assert layer.weight.dtype == torch.bfloat16
    assert orthonormality(layer.weight.float()) < 0.02  # 16 products of entries rounded to 2^-9
    before = layer.weight.detach().clone()
    constrain(layer, "weight", Stiefel(), matrix=ROWS, project=False)
    assert torch.equal(layer.weight, before)


def test_frozen_parameters_may_be_constrained():
    layer = nn.Linear(5, 3)
    layer.weight.requires_grad_(False)
    constrain(layer, "weight", Stiefel(), matrix=ROWS)
    assert orthonormality(layer.weight) < 1e-5
    assert [n for g in param_groups(layer) for n in g["param_names"]] == ["bias"]


# Re-constraining. -----------------------------------------------------------------------------------------------------


def test_again_replaces():
    layer = constrain(nn.Linear(4, 4), "weight", Stiefel())
    constrain(layer, "weight", Oblique())
    assert [c.manifold for c in constraints(layer).values()] == [Oblique()]
    assert Adam(layer.parameters()).param_groups[0]["geometry"] == Oblique().to_spec()


def test_a_pair_replaces_what_its_members_were_and_the_other_way_round():
    module = nn.ParameterDict({"b": torch.randn(5, 2), "a": torch.randn(2, 4)})
    constrain(module, "b", Stiefel())
    constrain(module, ("b", "a"), FixedRank())
    assert list(constraints(module)) == [("b", "a")]
    constrain(module, "b", Stiefel())
    assert list(constraints(module)) == [("b",)]


def test_from_above_replaces_what_the_owner_said():
    net = nn.Sequential(nn.Linear(4, 4))
    constrain(net[0], "weight", Stiefel())
    constrain(net, "0.weight", Oblique())
    assert [g["geometry"] for g in param_groups(net)] == [Oblique().to_spec(), None]
    assert [g["geometry"] for g in Adam(net.parameters()).param_groups] == [Oblique().to_spec(), None]


def test_two_modules_that_contradict_each_other_are_refused():
    net = nn.Sequential(nn.Linear(4, 4))
    constrain(net, "0.weight", Oblique())
    constrain(net[0], "weight", Stiefel())  # cannot see the module around it
    for build in (lambda: param_groups(net), lambda: Adam(net.parameters())):
        with pytest.raises(ValueError, match=r"weight of (Linear|Sequential) is constrained to .* and to .*"):
            build()


def test_a_tied_weight_may_be_constrained_at_both_ends():
    net = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    net[1].weight = net[0].weight
    for layer in net:
        constrain(layer, "weight", Stiefel())
    assert [len(g["params"]) for g in param_groups(net)] == [1]
    train(net, (3, 4))
    assert orthonormality(net[0].weight) < 1e-5


# Refusals. ------------------------------------------------------------------------------------------------------------


class Everything(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin = constrain(nn.Linear(6, 4), "weight", Oblique())
        self.conv = nn.Conv2d(2, 4, 3)
        self.b, self.a = nn.Parameter(torch.randn(5, 2)), nn.Parameter(torch.randn(3, 4))
        self.square, self.wide = nn.Parameter(torch.randn(3, 3)), nn.Parameter(torch.randn(2, 3))
        self.nan = nn.Parameter(torch.full((4, 2), float("nan")))
        self.zero = nn.Parameter(torch.zeros(4, 2))
        self.count = nn.Parameter(torch.ones(4, 2, dtype=torch.int64), requires_grad=False)
        self.register_buffer("table", torch.randn(4, 2))


REFUSALS = {
    "wide": (("lin.weight", Stiefel()), {}, ValueError, ["Everything.lin.weight", "(4, 6)", "matrix='o i -> i o'"]),
    "not square": (("lin.weight", SPD()), {}, ValueError, ["lin.weight", "(4, 6)"]),
    "does not multiply": ((("b", "a"), FixedRank()), {}, ValueError, ["b, a", "(5, 2)", "(3, 4)", "multiply"]),
    "rank too large": ((("wide", "a"), FixedRank()), {}, ValueError, ["wide, a", "rank r = 3", "2 x 4"]),
    "unknown name": (("lin.wieght", Stiefel()), {}, ValueError, ["lin.wieght", "lin.weight", "square"]),
    "unknown module": (("linn.weight", Stiefel()), {}, ValueError, ["linn.weight", "lin.weight"]),
    "a buffer": (("table", Stiefel()), {}, ValueError, ["table"]),
    "a module": (("lin", Stiefel()), {}, ValueError, ["'lin'"]),
    "NaN": (("nan", Stiefel()), {}, ValueError, ["Everything.nan", "NaN"]),
    "no nearest point": (("zero", Stiefel()), {}, ValueError, ["Everything.zero", "nothing was changed"]),
    "integers": (("count", Stiefel()), {}, ValueError, ["count", "int64"]),
    "off the manifold": (
        ("square", Stiefel()),
        {"project": False},
        ValueError,
        ["Everything.square", "residual is", "project=True"],
    ),
    "too few names": (("b", FixedRank()), {}, ValueError, ["2 tensor", "('b',)"]),
    "too many names": ((("b", "a"), Stiefel()), {}, ValueError, ["1 tensor", "('b', 'a')"]),
    "one twice": ((("square", "square"), FixedRank()), {}, ValueError, ["('square', 'square')", "different"]),
    "a class": (("square", Stiefel), {}, TypeError, ["manifold", "Stiefel()"]),
    "a name of a manifold": (("square", "Stiefel"), {}, TypeError, ["manifold", "'Stiefel'"]),
    "pattern with an axis too many": (
        ("lin.weight", Stiefel()),
        {"matrix": "o i h w -> o (i h w)"},
        ValueError,
        ["Everything.lin.weight", "o i h w", "(4, 6)"],
    ),
    "pattern that forgets an axis": (
        ("conv.weight", Stiefel()),
        {"matrix": "o i h w -> (i h) o"},
        ValueError,
        ["conv.weight", "w"],
    ),
    "pattern to a vector": (("square", Stiefel()), {"matrix": "o i -> (o i)"}, ValueError, ["square", "(9,)"]),
    "pattern without arrow": (("square", Stiefel()), {"matrix": "o i"}, ValueError, ["square", "'o i'"]),
    "size that does not divide": (
        ("lin.weight", Stiefel()),
        {"matrix": "(s o) i -> s i o", "s": 3},
        ValueError,
        ["lin.weight", "(4, 6)", "3"],
    ),
    "size left out": (("lin.weight", Stiefel()), {"matrix": "(s o) i -> s i o"}, ValueError, ["lin.weight", "s"]),
    "patterns of another number": (
        (("b", "a"), FixedRank()),
        {"matrix": ["o i -> o i"]},
        ValueError,
        ["1 patterns", "2 names"],
    ),
    "misspelt argument": (("square", Stiefel()), {"projct": False}, TypeError, ["projct"]),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals_name_the_fault_and_change_nothing(case):
    arguments, options, error, words = REFUSALS[case]
    module = Everything()
    before = snapshot(module)
    with pytest.raises(error) as caught:
        constrain(module, *arguments, **options)
    for word in words:
        assert word in str(caught.value)
    assert same(before, snapshot(module))


def test_a_refused_change_keeps_the_old_constraint_working():
    module = Everything()
    with pytest.raises(ValueError, match="multiply"):
        constrain(module, ("lin.weight", "a"), FixedRank())
    groups = Adam([module.lin.weight]).param_groups
    assert groups[0]["geometry"] == Oblique().to_spec()


def test_the_residual_in_the_message_is_the_residual():
    layer = nn.Linear(3, 3)
    layer.weight.data = 2 * torch.eye(3)
    with pytest.raises(ValueError, match="residual is 3,"):
        constrain(layer, "weight", Stiefel(), project=False)


# Later. ---------------------------------------------------------------------------------------------------------------


def test_weights_that_left_the_manifold_are_refused_when_the_optimiser_is_built():
    layer = constrain(nn.Linear(3, 3), "weight", Stiefel())
    layer.weight.data.mul_(2)
    with pytest.raises(ValueError, match="residual is 3"):
        Adam(layer.parameters())
    with pytest.raises(ValueError, match=r"^weight is not a point of Stiefel"):
        Adam(param_groups(layer))


def test_what_replaced_a_parameter_is_asked_about_and_concerns_nobody_else():
    layer = constrain(nn.Linear(3, 3), "weight", Stiefel())
    nn.utils.parametrizations.weight_norm(layer)
    with pytest.raises(ValueError, match=r"weight: was constrained to Stiefel.* parameter no more"):
        param_groups(layer)
    Adam(nn.Linear(2, 2).parameters())  # another model's optimiser does not stumble over it


def test_half_of_a_point_frozen_is_refused():
    module = nn.ParameterDict({"b": torch.randn(5, 2), "a": torch.randn(2, 4)})
    constrain(module, ("b", "a"), FixedRank())
    module["a"].requires_grad_(False)
    with pytest.raises(ValueError, match="frozen"):
        param_groups(module)
    with pytest.raises(ValueError, match=r"1 tensor\(s\) of a point"):
        Adam(p for p in module.parameters() if p.requires_grad)


def test_a_copy_is_constrained_on_its_own():
    layer = constrain(nn.Linear(4, 4), "weight", Stiefel())
    twin = copy.deepcopy(layer)
    constrain(twin, "weight", Oblique())
    assert [c.manifold for c in constraints(layer).values()] == [Stiefel()]
