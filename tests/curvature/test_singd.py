"""SINGD's structures against whole matrices, where its updates lead, and what bfloat16 does to it and to K-FAC."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from steepest.curvature import KFAC, SINGD, BlockDiagonal, Diagonal, Structure, Toeplitz, Triangular
from steepest.curvature.structures import Packed

DOUBLE = torch.float64
STRUCTURES = [s for _, family in sorted(Structure.known.items()) for s in family.examples()]


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def basis(structure, n):
    """The matrices of which a structure is made."""
    one = structure.identity(n, torch.empty(0, dtype=DOUBLE))
    units = torch.eye(one.numel(), dtype=DOUBLE).reshape(-1, *one.shape)
    return [x for x in structure.dense(units, n) if x.any()]


def member(structure, n, seed):
    one = structure.identity(n, torch.empty(0, dtype=DOUBLE))
    k = randn(2, *one.shape, seed=seed)
    return k * (k.new_ones(()) if not isinstance(structure, BlockDiagonal) else _inside(structure, n))


def _inside(structure, n):
    """Which entries of the blocks are not too much."""
    there = torch.zeros(-(-n // structure.size) * structure.size, dtype=DOUBLE)
    there[:n] = 1
    there = there.unflatten(0, (-1, structure.size))
    return there.unsqueeze(-1) * there.unsqueeze(-2)


@pytest.mark.parametrize("n", [1, 4, 5])
@pytest.mark.parametrize("structure", STRUCTURES, ids=str)
def test_structure_is_what_its_matrices_are(structure, n):
    k, m, x = member(structure, n, 1), member(structure, n, 2), randn(2, n, 3, seed=3)
    big, other = structure.dense(k, n), structure.dense(m, n)

    def close(a, b):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)

    close(structure.times(k, x), big @ x)
    close(structure.transposed_times(k, x), big.mT @ x)
    close(structure.dense(structure.product(k, m, n), n), big @ other)  # so it is closed under products
    close(structure.dense(structure.identity(n, x), n), torch.eye(n, dtype=DOUBLE))
    close(structure.mean_diagonal(structure.identity(n, x), n), x.new_ones(()))
    close(structure.mean_diagonal(k, n), big.diagonal(dim1=-2, dim2=-1).mean(-1))
    close(structure.square(k, n), structure.gram(big.mT))
    assert Structure.from_spec(structure.to_spec()) == structure


@pytest.mark.parametrize("structure", STRUCTURES, ids=str)
def test_projection_is_the_gradient_in_the_structure(structure):
    """Of S it is the M with <M, B> = <S, B + B^T> for B off the diagonal and <S, B> for B on it, for every B that has
    its numbers in one place; B that are in the set with their mirror images count once."""
    n, x = 5, randn(5, 7, seed=1)
    s, projected = x @ x.mT, structure.dense(structure.gram(x), 5)
    units = basis(structure, n)
    for b in units:
        mirrored = any(torch.equal(b.mT, other) for other in units)  # also the diagonal ones
        share = 1 if mirrored else 2
        torch.testing.assert_close((projected * b).sum(), share * (s * b).sum(), rtol=1e-12, atol=1e-12)


def test_what_is_stored():
    """Numbers for a layer of 60 by 40, n = 61 with its bias."""
    sizes = {}
    for s in (Diagonal(), BlockDiagonal(10), Toeplitz(), Triangular()):
        state = SINGD(nn.Linear(60, 40), structure=s).state_dict()["layers"][""]
        sizes[type(s).__name__] = state["inputs"].numel()
    assert sizes == {"Diagonal": 61, "BlockDiagonal": 700, "Toeplitz": 61, "Triangular": 61 * 62 // 2}
    assert all(not isinstance(s, Packed) or s._pattern(5).diagonal().all() for s in STRUCTURES)


def stream(make, condition, updates=300, n=32, m=8):
    """A preconditioner after many batches of one distribution, and its inputs' second moments."""
    torch.manual_seed(0)
    layer = nn.Linear(n, m, bias=False)
    root = torch.linalg.qr(torch.randn(n, n))[0] * torch.logspace(0, -math.log10(condition) / 2, n)
    p, failed = make(layer), 0
    for _ in range(updates):
        layer.weight.grad = None
        (layer(torch.randn(128, n) @ root.T) * torch.randn(128, m)).sum(-1).mean().backward()
        p.precondition()
        failed += isinstance(p, KFAC) and not _has_cholesky(p)
    return p.state_dict()["layers"][""], failed, (root @ root.T).double()


def _has_cholesky(kfac):
    state = kfac.state_dict()["layers"][""]
    a, g = state["inputs"].float(), state["outputs"].float()
    pi = (a.diagonal().mean() / g.diagonal().mean()).sqrt()
    shift = pi * math.sqrt(kfac.options["damping"])
    return torch.linalg.cholesky_ex(a + shift * torch.eye(len(a))).info == 0


IKFAC = {"adaptive": False, "factor_momentum": 0.0, "factor_lr": 0.1, "every": 1}


def test_follows_the_inverse():
    """IKFAC's K K^T comes to (A + damping I)^-1, within the noise of the last batches, of 128 vectors of 32
    entries each: the single step of 0.1 moves eigenvalues by a tenth of sqrt(32 / 128), some dozen times."""
    state, _, a = stream(lambda layer: SINGD(layer, damping=0.01, **IKFAC), 10.0)
    k = state["inputs"].double()
    ratio = torch.linalg.eigvals(k @ k.T @ (a + 0.01 * torch.eye(32, dtype=DOUBLE))).real
    assert ratio.min() > 0.7
    assert ratio.max() < 1.4


@pytest.mark.parametrize(("condition", "damping"), [(1e4, 1e-7), (1e6, 1e-7)])
def test_bfloat16_factors(condition, damping):
    """Rounding A to bfloat16 moves its smallest eigenvalues by 1e-3 of the largest, below zero: no damped factor of
    K-FAC has a Cholesky decomposition, and the last inverse that there was is not definite after its own rounding.
    K K^T is definite whatever K is rounded to, and keeps its largest eigenvalue within 20%. In float32 both work."""
    low = {"damping": damping, "dtype": torch.bfloat16}
    _, failed, _ = stream(lambda layer: KFAC(layer, damping=damping), condition, 100)
    assert failed == 0
    kfac, failed, _ = stream(lambda layer: KFAC(layer, **low), condition, 100)
    assert failed == 100
    assert torch.linalg.eigvalsh(kfac["inputs"].double()).min() < 0
    largest = []
    for options in ({"damping": damping}, low):
        state, *_ = stream(lambda layer, o=options: SINGD(layer, **o, **IKFAC), condition)
        k = state["inputs"].double()
        w = torch.linalg.eigvalsh(k @ k.T)
        assert w.min() > 0.1
        largest.append(w.max())
    assert 0.8 < largest[1] / largest[0] < 1.2


def test_errors_teach():
    layer = nn.Linear(2, 2)
    with pytest.raises(TypeError, match="structure: expected a Structure or a pair"):
        SINGD(layer, structure="dense")
    with pytest.raises(ValueError, match="factor_momentum: got 1"):
        SINGD(layer, factor_momentum=1)
