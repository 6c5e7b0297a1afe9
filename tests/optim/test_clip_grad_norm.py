"""`clip_grad_norm_` measures and scales the Riemannian gradient."""

import math

import pytest
import torch
from torch import nn

from steepest import SGD, SPD, Adam, FixedRank, Grassmann, Oblique, Sphere, Stiefel, clip_grad_norm_, constrain

PLACES = {
    "stiefel": (Stiefel(), (5, 3)),
    "canonical": (Stiefel("canonical"), (5, 3)),
    "grassmann": (Grassmann(), (5, 3)),
    "sphere": (Sphere(), (6,)),
    "oblique": (Oblique(), (4, 3)),
    "spd": (SPD(), (4, 4)),
    "fixed rank": (FixedRank(), ((5, 2), (2, 4))),
    "a batch": (Stiefel(), (3, 5, 2)),
}


def points(manifold, shape, copies=2):
    params = []
    for _ in range(copies):
        x = manifold.random_point(shape, dtype=torch.float64)
        params += [nn.Parameter(t) for t in (x if isinstance(x, tuple) else (x,))]
    for p in params:
        p.grad = 3 * torch.randn_like(p)
    return params


def riemannian(manifold, params) -> float:
    """Norm of all Riemannian gradients, point by point, by the manifold's own inner product."""
    squares, k = 0.0, manifold.arity
    for i in range(0, len(params), k):
        x, g = (tuple(t.detach() for t in ts) for ts in (params[i : i + k], [p.grad for p in params[i : i + k]]))
        x, g = (x, g) if k > 1 else (x[0], g[0])
        v = manifold.grad(x, g)
        squares += manifold.inner(x, v, v).sum().item()
    return math.sqrt(squares)


@pytest.mark.parametrize("place", PLACES)
def test_returns_the_riemannian_norm_and_leaves_max_norm(place):
    manifold, shape = PLACES[place]
    params = points(manifold, shape)
    optimizer = SGD([{"params": params, "geometry": manifold}])
    expected = riemannian(manifold, params)
    assert clip_grad_norm_(optimizer, 0.5).item() == pytest.approx(expected, rel=1e-9)
    assert riemannian(manifold, params) == pytest.approx(0.5, rel=1e-5)


@pytest.mark.parametrize("place", PLACES)
def test_short_gradients_stay_as_they_are(place):
    manifold, shape = PLACES[place]
    params = points(manifold, shape)
    before = [p.grad.clone() for p in params]
    clip_grad_norm_(SGD([{"params": params, "geometry": manifold}]), 1e4)
    assert all(torch.equal(p.grad, g) for p, g in zip(params, before, strict=True))


def test_plain_parameters_as_torch_does():
    a, b = nn.Linear(4, 3), nn.Linear(4, 3)
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        p.grad = torch.randn_like(p)
        q.grad = p.grad.clone()
    optimizer = Adam(a.parameters())
    ours, theirs = clip_grad_norm_(optimizer, 0.1), nn.utils.clip_grad_norm_(b.parameters(), 0.1)
    torch.testing.assert_close(ours.float(), theirs)
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)


def test_a_normal_gradient_counts_for_nothing():
    """On the sphere the gradient along the point moves nothing; torch's clipping would scale the other one away."""
    x, y = nn.Parameter(torch.tensor([1.0, 0.0, 0.0])), nn.Parameter(torch.zeros(2))
    x.grad, y.grad = torch.tensor([1e6, 0.0, 0.0]), torch.tensor([0.6, 0.8])
    optimizer = SGD([{"params": [x], "geometry": Sphere()}, {"params": [y]}])
    assert clip_grad_norm_(optimizer, 1.0).item() == pytest.approx(1.0)
    torch.testing.assert_close(y.grad, torch.tensor([0.6, 0.8]))


def test_the_scale_of_the_factors_does_not_matter():
    norms = []
    for scale in (1.0, 1e3):
        torch.manual_seed(0)
        b, a = (nn.Parameter(t) for t in FixedRank().random_point(((5, 2), (2, 4)), dtype=torch.float64))
        b.data.mul_(scale)
        a.data.div_(scale)
        (b @ a - torch.eye(5, 4)).square().sum().backward()
        norms.append(clip_grad_norm_(SGD([{"params": [b, a], "geometry": FixedRank()}]), 1.0).item())
    assert norms[0] == pytest.approx(norms[1], rel=1e-9)


def test_mixed_groups_are_one_norm():
    layer = constrain(nn.Linear(3, 5), "weight", Stiefel())
    for p in layer.parameters():
        p.grad = torch.randn_like(p)
    optimizer = Adam(layer.parameters())
    expected = math.hypot(riemannian(Stiefel(), [layer.weight]), layer.bias.grad.norm().item())
    assert clip_grad_norm_(optimizer, 1e-3).item() == pytest.approx(expected, rel=1e-5)


def test_no_gradients():
    assert clip_grad_norm_(SGD([nn.Parameter(torch.ones(2))]), 1.0) == 0.0


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_gradients_that_are_not_finite_stay_so_that_the_step_names_the_culprit(value):
    layer = nn.Linear(3, 2)
    for p in layer.parameters():
        p.grad = torch.ones_like(p)
    layer.bias.grad[0] = value
    optimizer = SGD(layer.named_parameters(), lr=1.0)
    assert not clip_grad_norm_(optimizer, 1.0).isfinite()
    assert torch.equal(layer.weight.grad, torch.ones(2, 3))
    with pytest.raises(ValueError, match="gradient of bias has NaN"):
        optimizer.step()


@pytest.mark.parametrize("max_norm", [0.0, -1.0, math.nan])
def test_a_max_norm_out_of_range_is_refused_and_changes_nothing(max_norm):
    x = nn.Parameter(torch.ones(2))
    x.grad = torch.ones(2)
    with pytest.raises(ValueError, match="max_norm"):
        clip_grad_norm_(SGD([x]), max_norm)
    assert torch.equal(x.grad, torch.ones(2))


def test_half_precision():
    x = nn.Parameter(torch.zeros(64, dtype=torch.bfloat16))
    x.grad = torch.ones_like(x)
    assert clip_grad_norm_(SGD([x]), 1.0).item() == pytest.approx(8.0)
    assert x.grad.float().norm().item() == pytest.approx(1.0, rel=0.01)
