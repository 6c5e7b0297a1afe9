"""On FixedRank the scaling of the factors does not matter."""

import pytest
import torch
from completion import OPTIMIZERS, completion, deviation, random_change


@pytest.mark.parametrize("name", OPTIMIZERS)
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
