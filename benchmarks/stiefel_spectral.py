"""What the exact oracle on Stiefel's tangent space gains over its two blocks apart.

`python benchmarks/stiefel_spectral.py` prints the descent <G, step> per unit of the step's spectral norm, one over
the other, for Gaussian gradients at random points: mean, least and most.
"""

from __future__ import annotations

import torch

from steepest import Stiefel
from steepest.norms import Spectral, StiefelSpectral

SHAPES = {(20, 5): 20, (100, 50): 20, (64, 64): 20, (1000, 50): 5, (80, 64): 20}


def rate(h, step):
    """Descent of a step, by its blocks, per unit of spectral norm of the tangent vector."""
    return sum((a * b).sum() for a, b in zip(h, step, strict=True)) / StiefelSpectral().value(step)


def gain(shape, seed):
    g = torch.Generator().manual_seed(seed)
    x = Stiefel().random_point(shape, generator=g, dtype=torch.float64)
    h = Stiefel().pull(x, torch.randn(shape, generator=g, dtype=torch.float64))
    blocks = Stiefel().conform(x, tuple(Spectral("exact").dual(block) for block in h))
    return (rate(h, StiefelSpectral().dual(h)) / rate(h, blocks)).item()


def main():
    print("| shape | gain | least | most |\n|---|--:|--:|--:|")
    for shape, draws in SHAPES.items():
        gains = [gain(shape, seed) for seed in range(draws)]
        print(f"| {shape} | {sum(gains) / draws:.3f} | {min(gains):.3f} | {max(gains):.3f} |", flush=True)


if __name__ == "__main__":
    main()
