"""What breaks in other libraries, as tests that this one passes.

Each was seen in geoopt 0.5.1, pymanopt 2.2.1 or rieoptax: NaN gradients at coincident points, distances that are zero
or lose digits, transports that are no isometry, projections that are not, geometry lost by deepcopy or a checkpoint,
`maximize` and `no_grad` handled wrongly, gradients changed in place, no half precision.
"""

from __future__ import annotations

import copy
import io
import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from steepest import (
    SGD,
    SPD,
    Adam,
    AdamW,
    Euclidean,
    FixedRank,
    Grassmann,
    Manifold,
    Muon,
    Oblique,
    Optimizer,
    Product,
    Sphere,
    Stiefel,
    constrain,
    param_groups,
)

STIEFEL = [Stiefel(m, r) for m in ("euclidean", "canonical") for r in ("qr", "polar")]
CURVED: list[tuple[Any, tuple[int, ...]]] = [
    (Sphere(), (5,)),
    (Oblique(), (5, 3)),
    (Grassmann(), (6, 2)),
    (Grassmann(), (5, 3)),
    (SPD(), (4, 4)),
]
EMBEDDED = [*CURVED, (SPD(retraction="second_order"), (4, 4)), *((m, (6, 3)) for m in STIEFEL), (Stiefel(), (4, 4))]
curved = pytest.mark.parametrize(("manifold", "shape"), CURVED, ids=str)
embedded = pytest.mark.parametrize(("manifold", "shape"), EMBEDDED, ids=str)


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def point(manifold: Manifold, shape: Any, seed: int = 0, dtype: torch.dtype = torch.float64) -> Any:
    return manifold.random_point(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def special_points(manifold: Manifold, shape: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
    """A random point, and the identity: equal eigenvalues and zeros."""
    eye = torch.eye(*shape, dtype=dtype) if len(shape) == 2 else torch.eye(shape[0], dtype=dtype)[0]
    return [point(manifold, shape, dtype=dtype), eye]


# Derivatives and digits of the geometry. ------------------------------------------------------------------------------


@curved
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("operation", ["dist", "squared dist", "log", "transport"])
def test_gradients_at_coincident_points_are_finite(
    manifold: Any, shape: tuple[int, ...], dtype: torch.dtype, operation: str
) -> None:
    """Of dist at its kink any subgradient (norm at most one) will do; that of its square is zero."""
    for x in special_points(manifold, shape, dtype):
        a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
        if operation == "transport":
            out = (manifold.transport(a, b, manifold.grad(x, randn(*shape, dtype=dtype))) * randn(*shape, seed=1)).sum()
        elif operation == "log":
            out = (manifold.log(a, b) * randn(*shape, seed=1, dtype=dtype)).sum()
        else:
            out = manifold.dist(a, b).sum() ** (2 if operation == "squared dist" else 1)
        grads = torch.autograd.grad(out, (a, b))
        for g in grads:
            assert g.isfinite().all()
            rgrad = manifold.norm(x, manifold.grad(x, g))
            if operation == "dist":
                assert rgrad <= 1 + 1e-4
            if operation == "squared dist":
                assert rgrad <= 100 * torch.finfo(dtype).eps ** 0.5  # the distance from x to x, after rounding


@curved
def test_gradient_of_dist_is_the_unit_log(manifold: Any, shape: tuple[int, ...]) -> None:
    """Away from coincidence, and at the identity: grad_x dist(x, y) = -log_x(y) / dist."""
    for x in special_points(manifold, shape, torch.float64):
        v = manifold.grad(x, randn(*shape, seed=1))
        y = manifold.exp(x, v / manifold.norm(x, v))
        a = x.clone().requires_grad_()
        (g,) = torch.autograd.grad(manifold.dist(a, y).sum(), a)
        torch.testing.assert_close(manifold.grad(x, g), -manifold.log(x, y), rtol=1e-8, atol=1e-8)  # of length one


@embedded
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_gradients_of_exp_are_finite(manifold: Any, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """At the zero vector, where d exp(x, v) / dv is the identity on tangent vectors, and at the identity."""
    for x in special_points(manifold, shape, dtype):
        tangent = manifold.grad(x, randn(*shape, seed=1, dtype=dtype))
        weight = randn(*shape, seed=2, dtype=dtype)
        for v in (torch.zeros_like(x), tangent):
            a, b = x.clone().requires_grad_(), v.clone().requires_grad_()
            out = (manifold.exp(a, b) * weight).sum() + (manifold.retract(a, b) * weight).sum()
            assert all(g.isfinite().all() for g in torch.autograd.grad(out, (a, b)))
        zero = torch.zeros_like(x).requires_grad_()
        (g,) = torch.autograd.grad((manifold.exp(x, zero) * weight).sum(), zero)
        tolerance = 100 * torch.finfo(dtype).eps
        torch.testing.assert_close((g * tangent).sum(), (weight * tangent).sum(), rtol=tolerance, atol=10 * tolerance)


@curved
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_dist_of_a_point_to_itself(manifold: Any, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = point(manifold, (50, *shape), dtype=dtype)
    assert (manifold.dist(x, x) <= 50 * torch.finfo(dtype).eps).all()
    log = manifold.log(x, x)
    assert log.isfinite().all()
    assert (manifold.norm(x, log) <= 50 * torch.finfo(dtype).eps).all()
    assert torch.allclose(manifold.exp(x, torch.zeros_like(x)), x, rtol=0, atol=50 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("angle", [1e-3, 1e-6, 1e-9, 1e-12])
@pytest.mark.parametrize("manifold", [Grassmann(), Sphere(), Oblique()], ids=str)
def test_small_distances_keep_their_digits(manifold: Any, angle: float) -> None:
    """1e-6 relative down to the point where x and y themselves round: eps / angle. (arccos gives zero at 1e-9.)"""
    x = torch.eye(5, dtype=torch.float64)[0] if manifold == Sphere() else torch.eye(5, 2, dtype=torch.float64)
    direction = torch.eye(5, dtype=torch.float64)[2] if manifold == Sphere() else torch.zeros_like(x)
    if manifold != Sphere():
        direction[2, 0] = 1
    y = manifold.exp(x, angle * direction)
    tolerance = max(1e-6, 4 * torch.finfo(torch.float64).eps / angle)
    for found in (manifold.dist(x, y), manifold.norm(x, manifold.log(x, y))):
        assert abs(found.item() / angle - 1) < tolerance


@pytest.mark.parametrize("angle", [1e-9, 1e-6])
def test_distances_of_random_close_subspaces(angle: float) -> None:
    x = point(Grassmann(), (20, 8, 3))
    v = Grassmann().grad(x, randn(20, 8, 3, seed=1))
    v = v / Grassmann().norm(x, v)[:, None, None]
    y = Grassmann().exp(x, angle * v)
    # x and y carry rounding of some eps each
    assert ((Grassmann().dist(x, y) / angle - 1).abs() < max(1e-6, 20 * torch.finfo(torch.float64).eps / angle)).all()


@pytest.mark.parametrize("manifold", [Sphere(), Grassmann()], ids=str)
def test_large_distances_keep_their_digits(manifold: Any) -> None:
    """Nearly antipodal, and nearly orthogonal lines."""
    gap, eye = 1e-7, torch.eye(4, dtype=torch.float64)
    if manifold == Sphere():
        x, y, expected = eye[0], -(eye[0] * math.cos(gap) + eye[1] * math.sin(gap)), math.pi - gap
    else:
        x, y = eye[:, :1], (eye[:, :1] * math.sin(gap) + eye[:, 1:2] * math.cos(gap))
        expected = math.pi / 2 - gap
    assert manifold.dist(x, y).item() == pytest.approx(expected, abs=1e-14)


@pytest.mark.parametrize("first", [True, False], ids=["x", "y"])
@pytest.mark.parametrize("power", [3, 5, 6, 7])
def test_spd_dist_in_float32_at_high_condition(power: int, first: bool) -> None:
    """One point of condition 10^power, against float64 on the same float32 entries: finite wherever these are positive
    definite, and no less accurate than geoopt, up to the factor two between one order of rounding and another."""
    geoopt = pytest.importorskip("geoopt")
    ours, theirs = [], []
    for seed in range(30):
        q = Stiefel().project(randn(6, 6, seed=seed))
        x = ((q * torch.logspace(0, -power, 6, dtype=torch.float64)) @ q.mT).float()
        x, y = (x + x.mT) / 2, point(SPD(), (6, 6), seed, torch.float32)
        x, y = (x, y) if first else (y, x)
        exact = SPD().dist(x.double(), y.double())
        if exact.isfinite():
            for errors, manifold in ((ours, SPD()), (theirs, geoopt.SymmetricPositiveDefinite())):
                found = manifold.dist(x, y).double().squeeze()
                errors.append(abs(found / exact - 1).item() if found.isfinite() else math.inf)
    assert len(ours) > 10
    assert sum(map(math.isinf, ours)) == 0
    ours, theirs = sorted(ours), sorted(theirs)
    assert ours[len(ours) // 2] <= max(2 * theirs[len(ours) // 2], 10 * torch.finfo(torch.float32).eps)


@curved
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_transport_is_an_isometry(manifold: Any, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, y = point(manifold, (20, *shape), 0, dtype), point(manifold, (20, *shape), 1, dtype)
    u, v = (manifold.grad(x, randn(20, *shape, seed=s, dtype=dtype)) for s in (2, 3))
    before = manifold.inner(x, u, v)
    after = manifold.inner(y, manifold.transport(x, y, u), manifold.transport(x, y, v))
    size = manifold.norm(x, u) * manifold.norm(x, v)
    # SPD: times the condition of x and y, 1e2 or so; Sphere: of points that are nearly antipodal
    assert ((after - before).abs() / size < 2000 * torch.finfo(dtype).eps).all()


@embedded
def test_projections_are_projections(manifold: Any, shape: tuple[int, ...]) -> None:
    """P(P(u)) = P(u) for conform on coordinates, push then coords on tangent vectors, and project on points."""
    x = point(manifold, shape)
    h = manifold.pull(x, randn(*shape, seed=1))
    several = isinstance(h, tuple)
    raw = tuple(randn(*b.shape, seed=i) for i, b in enumerate(h if several else (h,)))
    once = manifold.conform(x, raw if several else raw[0])
    close = {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(manifold.conform(x, once), once, **close)
    torch.testing.assert_close(manifold.conform(x, h), h, **close)  # pull's range is what it projects onto
    v = manifold.push(x, raw if several else raw[0])
    torch.testing.assert_close(manifold.push(x, manifold.coords(x, v)), v, **close)
    torch.testing.assert_close(manifold.push(x, once), v, **close)
    y = manifold.project(x + 0.1 * randn(*shape, seed=5))
    torch.testing.assert_close(manifold.project(y), y, **close)


def test_canonical_gradient_is_not_twice_too_long() -> None:
    """<grad, v> in the canonical metric is the Euclidean <g, v>: no factor two on the skew part."""
    manifold, x = Stiefel("canonical"), point(Stiefel(), (6, 3))
    g, v = randn(6, 3, seed=1), Stiefel().grad(x, randn(6, 3, seed=2))
    torch.testing.assert_close(manifold.inner(x, manifold.grad(x, g), v), (g * v).sum(), rtol=1e-12, atol=1e-12)


# Parameters and optimisers. -------------------------------------------------------------------------------------------


class Layer(nn.Module):
    def __init__(self, manifold: Manifold, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        shape = (6, 6) if isinstance(manifold, SPD) else (6,) if isinstance(manifold, Sphere) else (6, 3)
        self.weight = nn.Parameter(point(manifold, shape).to(dtype))
        self.bias = nn.Parameter(torch.zeros(3, dtype=dtype))
        self.manifold = manifold
        constrain(self, "weight", manifold)

    def loss(self) -> Tensor:
        target = randn(*self.weight.shape, seed=3).to(self.weight.dtype)
        return (self.weight - target).square().sum() + (self.bias - 1).square().sum()

    def residual(self) -> float:
        return self.manifold.residual(self.weight.detach().double()).item()


MANIFOLDS = [
    Stiefel(),
    Stiefel("canonical", "polar"),
    Grassmann(),
    Sphere(),
    Oblique(),
    SPD(),
    SPD(retraction="second_order"),
]
every_manifold = pytest.mark.parametrize("manifold", MANIFOLDS, ids=str)


def step(layer: Layer, optimizer: Optimizer, steps: int = 5) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        layer.loss().backward()
        optimizer.step()


def assert_constrained(layer: Layer) -> None:
    """Adam on the bare parameters keeps the weight where it belongs, and moves it."""
    optimizer, before = Adam(layer.parameters(), lr=0.05), layer.weight.detach().clone()
    assert [g["geometry"] for g in optimizer.param_groups if g["geometry"]] == [layer.manifold.to_spec()]
    step(layer, optimizer)
    assert layer.residual() < 1e-12
    assert optimizer.residual() < 1e-12
    assert not torch.allclose(layer.weight, before)
    if not isinstance(layer.manifold, SPD):  # the check is worth something: plain Adam does leave
        plain = copy.deepcopy(layer)
        step(plain, torch.optim.Adam(plain.parameters(), lr=0.05))  # type: ignore[arg-type]
        assert plain.residual() > 1e-3


@every_manifold
def test_deepcopy_keeps_the_geometry(manifold: Manifold) -> None:
    layer = Layer(manifold)
    twin = copy.deepcopy(layer)
    assert_constrained(twin)
    assert_constrained(layer)


@every_manifold
def test_load_state_dict_with_assign_keeps_the_geometry(manifold: Manifold) -> None:
    layer, other = Layer(manifold), Layer(manifold)
    other.weight.data = point(manifold, tuple(layer.weight.shape), seed=9)
    layer.load_state_dict(other.state_dict(), assign=True)
    assert torch.equal(layer.weight, other.weight)
    assert_constrained(layer)


@every_manifold
def test_saved_model_keeps_the_geometry(manifold: Manifold) -> None:
    file = io.BytesIO()
    torch.save(nn.Sequential(Layer(manifold)), file)
    file.seek(0)
    (layer,) = torch.load(file, weights_only=False)
    assert_constrained(layer)


@every_manifold
def test_state_dicts_load_with_weights_only(manifold: Manifold) -> None:
    """Model and optimiser go through the safe loader, and training goes on bit for bit."""
    first, second = Layer(manifold), Layer(manifold)
    optimizer = AdamW(first.parameters(), lr=0.05)
    step(first, optimizer)
    file = io.BytesIO()
    torch.save({"model": first.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    assert type(saved["model"]["weight"]) is Tensor
    second.load_state_dict(saved["model"])
    again = AdamW(second.parameters(), lr=0.01)
    again.load_state_dict(saved["optimizer"])
    step(first, optimizer)
    step(second, again)
    assert torch.equal(first.weight, second.weight)
    assert torch.equal(first.bias, second.bias)


@every_manifold
def test_moving_through_dtypes_and_devices_keeps_the_geometry(manifold: Manifold) -> None:
    assert_constrained(Layer(manifold, torch.float32).double())
    layer = Layer(manifold)
    state = layer.state_dict()
    layer = layer.to("meta").to_empty(device="cpu")
    layer.load_state_dict(state)
    assert_constrained(layer)


@every_manifold
@pytest.mark.parametrize("kind", [SGD, Adam, Muon])
def test_parameter_off_its_manifold_is_refused(manifold: Manifold, kind: type[Optimizer]) -> None:
    layer = Layer(manifold)
    with torch.no_grad():
        layer.weight.copy_(3 * randn(*layer.weight.shape, seed=4))
    with pytest.raises(ValueError, match=r"not a point of .*residual.*project"):
        kind(layer.parameters())
    with pytest.raises(ValueError, match="not a point of"):
        kind([{"params": [layer.weight], "geometry": manifold}])
    with pytest.raises(ValueError, match=r"not a point of .*project=True"):
        constrain(layer, "weight", manifold, project=False)


def test_wide_stiefel_is_refused_with_advice() -> None:
    with pytest.raises(ValueError, match=r"orthonormal rows"):
        constrain(nn.Linear(8, 3), "weight", Stiefel())


@every_manifold
@pytest.mark.parametrize("kind", [SGD, Adam, Muon])
def test_maximize_is_respected(manifold: Manifold, kind: type[Optimizer]) -> None:
    layer = Layer(manifold)
    weight = randn(*layer.weight.shape, seed=6)
    optimizer = kind([{"params": [layer.weight], "geometry": manifold}], lr=0.01, maximize=True)
    values = []
    for _ in range(10):
        optimizer.zero_grad()
        value = (layer.weight * weight).sum()
        if isinstance(manifold, Grassmann):  # there of the span alone
            value = (weight.mT @ layer.weight).square().sum()
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] > values[0]
    assert all(later > earlier for earlier, later in itertools.pairwise(values)) or kind is Muon


@every_manifold
@pytest.mark.parametrize("kind", [SGD, Adam, AdamW, Muon])
@pytest.mark.parametrize("maximize", [False, True])
def test_gradients_are_not_changed(manifold: Manifold, kind: type[Optimizer], maximize: bool) -> None:
    layer = Layer(manifold)
    optimizer = kind(param_groups(layer), lr=0.1, weight_decay=0.5, maximize=maximize)
    layer.loss().backward()
    before = [p.grad.clone() for p in layer.parameters()]
    optimizer.step()
    assert all(torch.equal(p.grad, g) for p, g in zip(layer.parameters(), before, strict=True))


def test_closure_may_compute_gradients() -> None:
    layer = Layer(Stiefel())
    optimizer = SGD(layer.parameters(), lr=0.01)
    start = layer.loss().item()

    def closure() -> Tensor:
        assert torch.is_grad_enabled()
        optimizer.zero_grad()
        loss = layer.loss()
        loss.backward()
        return loss

    with torch.no_grad():
        losses = [optimizer.step(closure).item() for _ in range(5)]
    assert losses[0] == pytest.approx(start)
    assert layer.loss().item() < losses[0]


@every_manifold
def test_weight_decay_does_not_push_off_the_manifold(manifold: Manifold) -> None:
    layer = Layer(manifold)
    for kind in (SGD, Adam, AdamW, Muon):
        step(layer, kind(param_groups(layer), lr=0.05, weight_decay=0.5))
        assert layer.residual() < 1e-12


# Half precision, and many steps. --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", [SGD, Adam, Muon])
@every_manifold
def test_half_precision_parameters(manifold: Manifold, kind: type[Optimizer], dtype: torch.dtype) -> None:
    """Each step is computed in float32 and rounded once, so that errors do not add up: unit columns whose entries are
    each rounded by eps / 2 at most have products within eps of the identity's, and 2 eps leaves room."""
    layer = Layer(manifold, dtype)
    optimizer = kind(param_groups(layer), lr=0.02)
    before = layer.weight.detach().clone()
    step(layer, optimizer, 20)
    assert layer.weight.dtype == dtype
    assert layer.weight.isfinite().all()
    assert not torch.equal(layer.weight, before)
    assert layer.residual() < 2 * torch.finfo(dtype).eps
    assert all(t.dtype == torch.float32 for s in optimizer.state.values() for k, t in s.items() if k != "step")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", [SGD, Adam, Muon])
def test_half_precision_pairs(kind: type[Optimizer], dtype: torch.dtype) -> None:
    """FixedRank, from LoRA's start B = 0, alone and in a product with Stiefel."""
    b, a = (nn.Parameter(t.to(dtype)) for t in (torch.zeros(8, 2), randn(2, 6)))
    x = nn.Parameter(point(Stiefel(), (6, 2)).to(dtype))
    product = Product((FixedRank(), Stiefel()))
    optimizer = kind([{"params": [b, a, x], "geometry": product}], lr=0.05)
    target = randn(8, 6, seed=1)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        value = (b.double() @ a.double() - target).square().sum() + (x.double() - target[:6, :2]).square().sum()
        value.backward()
        optimizer.step()
        losses.append(value.item())
    assert losses[-1] < losses[0]
    assert optimizer.residual() < 2 * torch.finfo(dtype).eps


@pytest.mark.slow
@pytest.mark.parametrize("manifold", [*STIEFEL, Grassmann(), Oblique()], ids=str)
def test_2000_steps_in_float32_do_not_drift(manifold: Manifold) -> None:
    """Feasible to a few eps after 2000 large steps, as after one: no step inherits the error of the one before."""
    x = nn.Parameter(point(manifold, (20, 6), dtype=torch.float32))
    target = randn(20, 6, seed=1, dtype=torch.float32)
    optimizer = SGD([{"params": [x], "geometry": manifold}], lr=0.1, momentum=0.5)
    worst = 0.0
    for k in range(2000):
        x.grad = 2 * (x.detach() - target * math.cos(k / 100))
        optimizer.step()
        worst = max(worst, manifold.residual(x.detach()).item()) if k % 100 == 99 else worst
    assert worst < 20 * torch.finfo(torch.float32).eps


def test_2000_steps_on_spd_stay_symmetric_positive_definite() -> None:
    x = nn.Parameter(point(SPD(), (6, 6), dtype=torch.float32))
    target = point(SPD(), (6, 6), seed=1, dtype=torch.float32)
    optimizer = SGD([{"params": [x], "geometry": SPD()}], lr=0.05, momentum=0.5)
    for _ in range(2000):
        x.grad = torch.linalg.inv(x.detach()) - torch.linalg.inv(x.detach()) @ target @ torch.linalg.inv(x.detach())
        optimizer.step()
    assert torch.equal(x, x.mT)
    assert SPD().residual(x.detach()) == 0
    torch.testing.assert_close(x.detach(), target, rtol=1e-4, atol=1e-5)  # the minimum of log det + tr(X^-1 T)


# torch.func and torch.compile. ----------------------------------------------------------------------------------------


def test_functional_call_and_grad() -> None:
    layer = constrain(nn.Linear(4, 6, bias=False).double(), "weight", Stiefel())
    data = randn(5, 4)

    def loss(params: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(layer, params, (data,)).square().sum()

    params = {name: p.detach() for name, p in layer.named_parameters()}
    g = torch.func.grad(loss)(params)["weight"]
    torch.testing.assert_close(g, 2 * layer.weight.detach() @ data.mT @ data, rtol=1e-12, atol=1e-12)


@embedded
def test_vmap_equals_batch(manifold: Any, shape: tuple[int, ...]) -> None:
    x = point(manifold, (4, *shape))
    g = randn(4, *shape, seed=1)
    v = manifold.grad(x, g)
    calls: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
        "pull": (manifold.pull, (x, g)),
        "push": (manifold.push, (x, manifold.pull(x, g))),
        "retract": (manifold.retract, (x, v)),
        "exp": (manifold.exp, (x, v)),
        "gradient of exp": (torch.func.grad(lambda a, b: manifold.exp(a, b).square().sum().sin()), (x, v)),
    }
    for name, (function, arguments) in calls.items():
        mapped = torch.func.vmap(function)(*arguments)
        if name.startswith("gradient"):
            assert mapped.isfinite().all()
            continue
        torch.testing.assert_close(mapped, function(*arguments), rtol=1e-11, atol=1e-12, msg=name)


def test_vmap_over_pairs() -> None:
    x = randn(3, 6, 2), randn(3, 2, 5, seed=1)
    g = randn(3, 6, 2, seed=2), randn(3, 2, 5, seed=3)
    manifold = FixedRank()
    for function in (manifold.pull, manifold.grad, manifold.retract):
        torch.testing.assert_close(torch.func.vmap(function)(x, g), function(x, g), rtol=1e-11, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("manifold", [Stiefel(), Stiefel("canonical", "polar")], ids=str)
def test_compile_without_graph_breaks(manifold: Stiefel) -> None:
    """retract and pull under torch.compile(fullgraph=True); eager arithmetic in another order: a few float32 eps."""

    def move(x: Tensor, g: Tensor) -> Tensor:
        return manifold.retract(x, manifold.push(x, tuple(-0.1 * b for b in manifold.pull(x, g))))

    x, g = point(manifold, (12, 4), dtype=torch.float32), randn(12, 4, seed=1, dtype=torch.float32)
    torch.testing.assert_close(torch.compile(move, fullgraph=True)(x, g), move(x, g), rtol=1e-5, atol=1e-5)


def test_traces_without_graph_breaks() -> None:
    """The same without a code generator: the front end alone, which is what refuses."""
    for manifold in (
        Stiefel(),
        Stiefel("canonical", "polar"),
        SPD(retraction="second_order"),
        Grassmann(),
        Euclidean(),
    ):

        def move(x: Tensor, g: Tensor, manifold: Any = manifold) -> Tensor:
            return manifold.retract(x, manifold.grad(x, -0.1 * g))

        shape = (4, 4) if isinstance(manifold, SPD) else (8, 4)
        x, g = point(manifold, shape), randn(*shape, seed=1)
        out = torch.compile(move, fullgraph=True, backend="eager")(x, g)
        torch.testing.assert_close(out, move(x, g), rtol=1e-12, atol=1e-12)
