"""Long float32 runs stay on the manifold: noisy gradients, steps that never shrink."""

import pytest
import torch

from steepest import SGD, SPD, Adam, FixedRank, Grassmann, Muon, Stiefel

RUNS = {
    "stiefel": (Stiefel(), ((12, 5),)),
    "stiefel canonical polar": (Stiefel("canonical", "polar"), ((12, 5),)),
    "grassmann": (Grassmann(), ((12, 4),)),
    "spd": (SPD(), ((6, 6),)),
    "spd second order": (SPD(retraction="second_order"), ((6, 6),)),
    "fixed rank": (FixedRank(), ((12, 3), (3, 10))),
    "fixed rank bounded": (FixedRank(turn=0.03), ((12, 3), (3, 10))),
}
OPTIMIZERS = {
    "momentum": lambda groups: SGD(groups, lr=0.01, momentum=0.9),
    "adam": lambda groups: Adam(groups, lr=0.01),
    "muon": lambda groups: Muon(groups, lr=0.01),
}


def wander(manifold, shapes, make, steps):
    """Steps towards a random point under noise of the gradient's own size; the residual, and whether all is finite."""
    g = torch.Generator().manual_seed(0)
    x, y = (manifold.random_point(shapes if manifold.arity > 1 else shapes[0], generator=g) for _ in range(2))
    params = [torch.nn.Parameter(t) for t in (x if manifold.arity > 1 else (x,))]
    targets = y if manifold.arity > 1 else (y,)
    optimizer = make([{"params": params, "geometry": manifold, "role": "point"}])
    noise = [torch.randn(1000, *p.shape, generator=g) for p in params]
    for step in range(steps):
        for p, target, sample in zip(params, targets, noise, strict=True):
            p.grad = p.detach() - target + sample[(step * 7) % 1000] / 3
        optimizer.step()
    if isinstance(manifold, SPD):
        assert torch.linalg.eigvalsh(params[0].detach().double()).min() > 0
    return optimizer.residual(), all(p.isfinite().all() for p in params)


@pytest.mark.parametrize("method", OPTIMIZERS)
@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("steps", [400, pytest.param(100_000, marks=pytest.mark.slow)])
def test_stays_on_the_manifold(name, method, steps):
    manifold, shapes = RUNS[name]
    residual, finite = wander(manifold, shapes, OPTIMIZERS[method], steps)
    assert finite
    assert residual < 1e-5
