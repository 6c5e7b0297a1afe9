"""On FixedRank the scaling of the factors does not matter: matrix completion, 120 x 80, rank 6, 35% observed."""

import math

import pytest
import torch

from steepest import SGD, Adagrad, Adam, AdamW, AMSGrad, FixedRank, Muon, Shampoo
from steepest.norms import Spectral

EXACT = Spectral("exact")
OPTIMIZERS = {
    "sgd": (lambda p, lr: SGD(p, lr), 3000.0),
    "momentum": (lambda p, lr: SGD(p, lr, momentum=0.9), 1000.0),
    "muon": (lambda p, lr: Muon(p, lr, norm=EXACT), 1.0),
    "muon_polar_express": (lambda p, lr: Muon(p, lr), 1.0),
    "adam": (lambda p, lr: Adam(p, lr), 1.0),
    "adamw": (lambda p, lr: AdamW(p, lr), 0.3),
    "amsgrad": (lambda p, lr: AMSGrad(p, lr), 0.3),
    "adagrad": (lambda p, lr: Adagrad(p, lr), 1.0),
    "shampoo": (lambda p, lr: Shampoo(p, lr), 1.0),
}


def completion(make, lr, change=None, *, frame=True, steps=300):
    """Loss at every step of a cosine schedule from one start, whose factors are (B M, M^-1 A) for a given change M."""
    g = torch.Generator().manual_seed(0)
    m, n, r = 120, 80, 6
    target = torch.randn(m, r, generator=g, dtype=torch.float64) @ torch.randn(r, n, generator=g, dtype=torch.float64)
    target /= math.sqrt(r)
    observed = torch.rand(m, n, generator=g) < 0.35
    b, a = FixedRank().random_point(((m, r), (r, n)), generator=g, dtype=torch.float64)
    if change is not None:
        b, a = b @ change, torch.linalg.solve(change, a)
    b, a = torch.nn.Parameter(b), torch.nn.Parameter(a)
    geometry = {"geometry": FixedRank(), "role": "point"} if frame else {"geometry": None, "role": "matrix"}
    optimizer = make([{"params": [b, a], **geometry}], lr)
    losses = []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * 0.5 * (1 + math.cos(math.pi * step / steps))
        optimizer.zero_grad()
        loss = (b @ a - target)[observed].square().mean()
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
    return torch.tensor(losses, dtype=torch.float64)


def deviation(curve, other):
    return ((curve - other).abs() / curve).max().item()


def random_change(condition):
    g = torch.Generator().manual_seed(5)
    u, v = (torch.linalg.qr(torch.randn(6, 6, generator=g, dtype=torch.float64))[0] for _ in range(2))
    return u * torch.logspace(0, -math.log10(condition), 6, dtype=torch.float64) @ v


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
