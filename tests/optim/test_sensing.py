"""One problem for every manifold and every optimiser: find a point from linear measurements of what it stands for."""

import pytest
import torch

from steepest import SGD, Adam, Euclidean, Muon, Shampoo, testing
from steepest.manifolds.tensors import as_tuple, each
from steepest.testing.manifold import Case, dtypes

STEPS = 120
RATES = (0.3, 0.1, 0.03, 2.0, 0.01)

# one of each manifold and metric; the first example stays
KINDS = {(type(m), str(getattr(m, "metric", ""))): (m, s) for m, s in reversed(testing.manifolds())}
PLACES = {
    f"{m}-{'complex' if t.is_complex else 'real'}": (m, s, t)
    for m, s in KINDS.values()
    for t in dtypes(m)
    if not isinstance(m, Euclidean)
}


class Sensing:
    """|A(x) - A(y)|^2 / 2 for four times as many Gaussian measurements as the matrix has entries, from a start at a
    distance of one: a least-squares problem of condition number about 9 when seen from the matrix."""

    def __init__(self, manifold, shape, dtype):
        case = Case(manifold, shape, dtype=dtype)
        x = case.point()
        v = manifold.push(x, manifold.pull(x, case.noise(x, 5)))
        y = manifold.retract(x, each(lambda t: t / manifold.norm(x, v).clamp_min(1e-9), v))
        self.manifold = manifold
        entries = self.flat(x).numel()
        self.a = torch.randn(4 * entries, entries, dtype=torch.float64) / (4 * entries) ** 0.5
        self.b = self.a @ self.flat(y)
        self.params = [torch.nn.Parameter(t.clone()) for t in as_tuple(x)]

    def flat(self, x):
        parts = as_tuple(self.manifold.represent(x))
        return torch.cat([(torch.view_as_real(t) if t.is_complex() else t).reshape(-1) for t in parts])

    def loss(self):
        x = tuple(self.params)
        return (self.a @ self.flat(x if len(x) > 1 else x[0]) - self.b).square().sum() / 2

    def minimise(self, family, lr):
        names = [f"p{i}" for i in range(len(self.params))]
        group = {"params": self.params, "param_names": names, "geometry": self.manifold, "role": "point"}
        optimizer = family([group], lr=lr)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
        for _ in range(STEPS):
            optimizer.zero_grad()
            self.loss().backward()
            optimizer.step()
            schedule.step()
        return self.loss().item(), optimizer.residual()


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("family", [Adam, *(pytest.param(f, marks=pytest.mark.slow) for f in (Muon, SGD, Shampoo))])
def test_recovers_the_point(place, family):
    losses = {}
    for lr in RATES:
        torch.manual_seed(0)
        problem = Sensing(*PLACES[place])
        first = problem.loss().item()
        try:
            losses[lr], residual = problem.minimise(family, lr)
        except ValueError:  # diverges, and says so
            continue
        assert residual < 1e-9
        if losses[lr] < 3e-2 * first + 1e-12:
            return
    pytest.fail(f"loss {first:.2g} falls to {losses} only")
