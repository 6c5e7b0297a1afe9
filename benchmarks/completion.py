"""Matrix completion, 120 x 80, rank 6, 35% observed: does the scaling of the factors B and A of W = B A matter?

`python benchmarks/completion.py` prints, for every optimiser on FixedRank and on the raw factors, the best final loss
of a learning-rate sweep after 300 steps from three starts that are the same W: balanced factors, (100 B, A / 100), and
(B M, M^-1 A) with a random M of condition number 1e4.
"""

from __future__ import annotations

import math

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


SWEEP = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
SGD_SWEEP = tuple(1000 * lr for lr in SWEEP)  # its gradient is a mean over 3360 entries
STARTS = {"balanced": None, "100 B, A / 100": 100 * torch.eye(6, dtype=torch.float64), "B M, A / M": random_change(1e4)}


def best(make, rates, change, frame):
    """The least final loss over the rates; a run that overflows counts as infinite."""
    finals = []
    for lr in rates:
        try:
            finals.append(completion(make, lr, change, frame=frame)[-1].item())
        except ValueError:
            finals.append(math.inf)
    return min((f for f in finals if not math.isnan(f)), default=math.inf)


def main():
    torch.set_num_threads(1)
    heads = [f"{where}, {start}" for where in ("FixedRank", "raw factors") for start in STARTS]
    print("| optimiser | " + " | ".join(heads) + " |\n|---|" + "--:|" * len(heads))
    for name, (make, _) in OPTIMIZERS.items():
        rates = SGD_SWEEP if name in ("sgd", "momentum") else SWEEP
        frame = [best(make, rates, change, True) for change in STARTS.values()]
        raw = [best(make, [r / 30 for r in rates] if rates is SGD_SWEEP else rates, c, False) for c in STARTS.values()]
        print(f"| {name} | " + " | ".join(f"{loss:.1e}" for loss in frame + raw) + " |", flush=True)


if __name__ == "__main__":
    main()
