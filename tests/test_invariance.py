"""On FixedRank the scaling of the factors does not matter."""

import pytest
import torch
from completion import OPTIMIZERS, completion, deviation, random_change

from steepest import FixedRank

OFTEN = ("momentum", "muon", "muon_polar_express", "adam", "shampoo")
"""One of each kind; the others in the long run."""


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in OFTEN else pytest.mark.slow) for n in OPTIMIZERS])
def test_scaling_of_the_factors(name):
    make, lr = OPTIMIZERS[name]
    # Muon's polynomials, near a minimum, amplify rounding tenfold every few steps from step 120 on (a step of constant
    # length jumps to and fro): the curves are compared before.
    steps = 100 if name == "muon_polar_express" else 300
    straight = completion(make, lr, steps=300)[:steps]
    scaled = completion(make, lr, 100 * torch.eye(6, dtype=torch.float64))[:steps]
    assert deviation(straight, scaled) < 1e-8  # rounding of 1e-16 in each of 300 steps, grown by the descent itself


@pytest.mark.parametrize("name", ["sgd", "momentum", "muon", "muon_polar_express"])
def test_change_of_basis(name):
    make, lr = OPTIMIZERS[name]
    steps = 100 if name == "muon_polar_express" else 300
    straight, changed = completion(make, lr)[:steps], completion(make, lr, random_change(1e4))[:steps]
    assert deviation(straight, changed) < 1e-5  # rounding times the condition number 1e4, squared nowhere


def test_frame_beats_raw_factors():
    make, lr = OPTIMIZERS["adam"]
    scaled = 100 * torch.eye(6, dtype=torch.float64)
    assert completion(make, lr)[-1] < 1e-10
    assert completion(make, lr, scaled)[-1] < 1e-10
    assert min(completion(make, rate, scaled, frame=False)[-1] for rate in (0.003, 0.03, 0.3)) > 1e-5


def test_bounded_turn_is_invariant_and_bounds():
    """From a small W: the row space turns by no more than the bound, whatever the factors."""
    g = torch.Generator().manual_seed(0)
    manifold = FixedRank(turn=0.01)
    b, a = manifold.random_point(((12, 3), (3, 10)), generator=g, dtype=torch.float64)
    b = 1e-6 * b
    gb, ga = torch.randn(12, 10, generator=g, dtype=torch.float64) @ a.mT, torch.zeros(3, 10, dtype=torch.float64)
    ga = b.mT @ torch.randn(12, 10, generator=g, dtype=torch.float64)
    change = torch.randn(3, 3, generator=g, dtype=torch.float64)
    inverse = torch.linalg.inv(change)
    ends = []
    for m, n in ((torch.eye(3, dtype=torch.float64), torch.eye(3, dtype=torch.float64)), (change, inverse)):
        x = (b @ m, n @ a)
        pulled = manifold.pull(x, (gb @ n.mT, m.mT @ ga))
        y = manifold.retract(x, manifold.push(x, (-pulled[0], -pulled[1])))
        db, da, norm = y[0] - x[0], y[1] - x[1], torch.linalg.matrix_norm
        turned = norm(x[0] @ da) / norm(b @ a), norm(db @ da) / norm(db @ x[1])
        assert 0.0099 < max(turned) < 0.01001
        ends.append(manifold.represent(y))
    assert torch.allclose(ends[0], ends[1], rtol=1e-7)
