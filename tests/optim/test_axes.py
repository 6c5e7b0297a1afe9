"""One declaration of which axes form a matrix serves every optimiser: heads, fused weights, experts, convolutions."""

import pytest
import torch
from torch import nn

from steepest import Euclidean, constrain, param_groups, testing
from steepest.optim import RoleOptimizer
from steepest.optim.engine import PLAIN as UNDECLARED

DECLARED = {
    "heads": ((12, 5), "(h d) i -> h d i", {"h": 3}),
    "fused": ((15, 4), "(s o) i -> s o i", {"s": 3}),
    "experts": ((4, 6, 5), "e o i -> e o i", {}),
    "convolution": ((4, 3, 2, 2), "o i h w -> o (i h w)", {}),
    "in x out": ((5, 7), "i o -> o i", {}),
    "heads in and out": ((12, 12), "(h d) (k e) -> h k d e", {"h": 3, "k": 2}),
}
MATRIX = [name for name, family in testing.optimizers().items() if issubclass(family, RoleOptimizer)]


PLAIN = {**UNDECLARED, "role": "matrix"}
"""A group that says so is not searched for constraints."""


class Holder(nn.Module):
    def __init__(self, shape):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64))


def parts(x, name):
    """The matrices of a parameter, by indexing alone."""
    if name == "heads":
        return list(x.chunk(3))
    if name == "fused":
        return list(x.chunk(3))
    if name == "experts":
        return list(x)
    if name == "convolution":
        return [x.flatten(1)]
    if name == "in x out":
        return [x.T]
    return [block for rows in x.chunk(3) for block in rows.chunk(2, 1)]


@pytest.mark.parametrize("declared", DECLARED)
@pytest.mark.parametrize("name", MATRIX)
def test_each_matrix_moves_as_it_would_alone(name, declared):
    shape, pattern, sizes = DECLARED[declared]
    whole = constrain(Holder(shape), "weight", Euclidean(), matrix=pattern, **sizes)
    start = whole.weight.detach().clone()
    alone = [nn.Parameter(part.clone().contiguous()) for part in parts(start, declared)]
    family = testing.optimizers()[name]
    optimizers = [family(param_groups(whole), lr=0.1), *(family([{"params": [p], **PLAIN}], lr=0.1) for p in alone)]
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        whole.weight.grad = torch.randn(shape, generator=generator, dtype=torch.float64)
        for p, g in zip(alone, parts(whole.weight.grad, declared), strict=True):
            p.grad = g.contiguous()
        for optimizer in optimizers:
            optimizer.step()
    assert not torch.equal(start, whole.weight)
    for p, part in zip(alone, parts(whole.weight.detach(), declared), strict=True):
        torch.testing.assert_close(part, p.detach(), rtol=0, atol=1e-9)  # sums in another order
