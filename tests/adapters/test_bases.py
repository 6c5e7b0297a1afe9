"""Frozen bases against an SVD in float64, and how they are found again."""

import pytest
import torch

from steepest.adapters.bases import check_values, fix_signs, matches, principal, probe, recover

DOUBLE = torch.float64
SIGNS = ["----+-++++", "-+-+----+-"]
SIZES = [(20, 1), (20, 4), (12, 12), (64, 16), (40, 33)]


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def orthonormal(n, r, seed=0):
    return torch.linalg.qr(randn(n, r, seed=seed))[0]


def with_values(m, n, values, seed=0):
    s = torch.tensor(values, dtype=DOUBLE)
    return orthonormal(m, len(s), seed) * s @ orthonormal(n, len(s), seed + 1).mT


def off(v, others):
    """Largest sine of an angle between the spans."""
    return torch.linalg.matrix_norm(v - others @ (others.mT @ v), 2)


# Signs and singular vectors. ------------------------------------------------------------------------------------------


def test_signs():
    v = randn(3, 7, 4)
    fixed = fix_signs(v)
    largest = fixed.gather(-2, v.abs().argmax(-2, keepdim=True))
    assert (largest > 0).all()
    assert torch.equal(fixed.abs(), v.abs())
    assert torch.equal(fix_signs(v * torch.tensor([1.0, -1.0, -1.0, 1.0])), fixed)
    assert torch.equal(fix_signs(fixed), fixed)
    assert fix_signs(v.float()).dtype == torch.float32
    assert torch.equal(fix_signs(torch.zeros(5, 2)), torch.zeros(5, 2))


@pytest.mark.parametrize("rank", [1, 4, 9])
@pytest.mark.parametrize("shape", [(9, 15), (15, 9), (9, 9)])
def test_leading_vectors(shape, rank):
    w = with_values(*shape, [2.0**-i for i in range(9)])
    v, exact = principal(w, rank), torch.linalg.svd(w)[2][:rank].mT
    torch.testing.assert_close(v, fix_signs(exact), rtol=0, atol=1e-10)  # 1e-16, the square of 256, gaps of some
    torch.testing.assert_close(v, principal(-3 * w, rank), rtol=0, atol=1e-10)
    assert principal(w.float(), rank).dtype == DOUBLE


@pytest.mark.parametrize("shape", [(9, 15), (15, 9)])
@pytest.mark.parametrize("least", [1e-3, 1e-5, 1e-9, 0.0])
def test_ill_conditioned(shape, least):
    w = with_values(*shape, [1.0, 0.7, 0.5, 0.3, least])
    v = principal(w, 5)
    torch.testing.assert_close(v.mT @ v, torch.eye(5, dtype=DOUBLE), rtol=0, atol=1e-13)
    assert off(v[:, :4], torch.linalg.svd(w)[2][:4].mT) < 1e-12
    if least > 1e-6:
        assert off(v, torch.linalg.svd(w)[2][:5].mT) < 1e-14 / least**2
    assert torch.equal(v, principal(w, 5))


@pytest.mark.parametrize("shape", [(9, 15), (15, 9)])
def test_repeated_values(shape):
    w = with_values(*shape, [4.0, 2.0, 2.0, 2.0, 1.0, 1.0])
    v, exact = principal(w, 6), torch.linalg.svd(w)[2]
    for group in (slice(0, 1), slice(1, 4), slice(4, 6)):
        assert off(v[:, group], exact[group].mT) < 1e-12
    torch.testing.assert_close(v.mT @ v, torch.eye(6, dtype=DOUBLE), rtol=0, atol=1e-13)


def test_no_weight_at_all():
    for shape in ((9, 15), (15, 9)):
        v = principal(torch.zeros(shape), 3)
        torch.testing.assert_close(v.mT @ v, torch.eye(3, dtype=DOUBLE), rtol=0, atol=1e-13)


def test_values_that_are_zero_are_refused():
    check_values("r", 3, torch.tensor([5.0, 1.0, 1e-5]))
    with pytest.raises(ValueError, match=r"offset \+ r: got 6, but .* only 4 singular values .* or another one"):
        check_values("offset + r", 6, torch.tensor([5.0, 1.0, 1e-9, 0.0]), "; or another one")
    with pytest.raises(ValueError, match="only 0 singular values"):
        check_values("r", 2, torch.zeros(2))


# Probes. --------------------------------------------------------------------------------------------------------------


def test_a_probe_has_signs_that_no_version_may_change():
    """Saved adapters hold them."""
    found = probe(torch.eye(6, dtype=DOUBLE)[:, :2])
    assert found.shape == (10, 2)
    assert found.abs().eq(1).all()
    signs = ["".join("+" if entry > 0 else "-" for entry in column) for column in found.mT]
    assert signs == SIGNS
    assert torch.equal(probe(torch.eye(6)[:, :2]), found.float())


@pytest.mark.parametrize(("n", "r"), [*SIZES, (300, 256), (300, 257)])
def test_signs_are_found(n, r):
    v = orthonormal(n, r)
    flipped = v * torch.where(torch.arange(r) % 3 == 0, -1.0, 1.0)
    for stored in (probe(v), probe(v).float(), probe(v).bfloat16()):
        assert matches(v, stored, 0.01)
        assert not matches(flipped, stored)
        assert torch.equal(recover(flipped, stored), v)  # signs add no rounding, however coarse the probe
    assert matches(v, probe(v))
    assert matches(v.float(), probe(v).float())


@pytest.mark.parametrize(("n", "r"), [(20, 4), (12, 12), (64, 16), (40, 33), (300, 256)])
def test_rotations_are_found(n, r):
    v = orthonormal(n, r)
    small = torch.linalg.matrix_exp(0.01 * (randn(r, r) - randn(r, r).mT))  # nearer than a probe's tolerance, at times
    for turn in (orthonormal(r, r, seed=2), small):
        turned = v @ turn
        torch.testing.assert_close(recover(turned, probe(v)), v, rtol=0, atol=1e-12)
        found = recover(turned, probe(v).bfloat16())
        torch.testing.assert_close(found, v, rtol=0, atol=0.01)
        torch.testing.assert_close(found.mT @ found, torch.eye(r, dtype=DOUBLE), rtol=0, atol=1e-12)


def test_a_rotation_within_equal_values_is_found():
    v = orthonormal(20, 5)
    turn = torch.eye(5, dtype=DOUBLE)
    turn[1:4, 1:4] = orthonormal(3, 3, seed=2)
    torch.testing.assert_close(recover(v @ turn, probe(v)), v, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("n", "r"), [(20, 1), (20, 4), (64, 16), (40, 33), (300, 257)])
def test_another_span_is_refused(n, r):
    v = orthonormal(n, r)
    assert recover(orthonormal(n, r, seed=5), probe(v)) is None
    tilted = torch.linalg.qr(torch.cat([v[:, :-1], v[:, -1:] + 0.3 * r**0.5 * randn(n, 1, seed=5) / n**0.5], 1))[0]
    assert recover(tilted, probe(v)) is None  # one direction of many, by some 15 degrees or more


def test_what_is_no_probe_is_refused():
    v = orthonormal(20, 4)
    assert recover(v, probe(v[:, :3])) is None
    assert recover(v, probe(v).fill_(float("nan"))) is None
    assert not matches(v, probe(v).fill_(float("nan")))
    assert recover(v, torch.zeros_like(probe(v))) is None


def test_a_basis_with_columns_of_zero():
    """SODA's, of a weight without full rank."""
    v = orthonormal(20, 5)
    v[:, 3:] = 0
    turn = torch.block_diag(orthonormal(3, 3, seed=2), torch.eye(2, dtype=DOUBLE))
    torch.testing.assert_close(recover(v @ turn, probe(v)), v, rtol=0, atol=1e-12)
