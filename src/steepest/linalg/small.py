"""Large batches of matrices of size one to three, entry by entry.

torch calls LAPACK or BLAS once for each matrix, which costs more than the arithmetic of these. Here every operation
runs over the whole batch, on the entries as contiguous vectors: `(n, m, N)` for N matrices. What is returned are views
of such, so that one function takes over from another without a copy. Nothing here is meant to be differentiated.
"""

from __future__ import annotations

import torch
from torch import Tensor


def entries(x: Tensor) -> Tensor:
    """The matrices x `(*b, n, m)` as `(n, m, N)`, contiguous."""
    return x.reshape(-1, *x.shape[-2:]).permute(1, 2, 0).contiguous()


def matrices(e: Tensor, batch: torch.Size) -> Tensor:
    """The inverse of `entries`."""
    return e.permute(2, 0, 1).unflatten(0, batch)


def product(a: Tensor, b: Tensor) -> Tensor:
    """A B, of entries."""
    out = a[:, :1] * b[0]
    for k in range(1, len(b)):
        out.addcmul_(a[:, k : k + 1], b[k])
    return out


def cholesky(x: Tensor) -> Tensor:
    """The lower triangular L with L L^T = X, of entries; NaN where X is not positive definite."""
    L = torch.zeros_like(x)
    for j in range(len(x)):
        column = x[j:, j].clone()
        for k in range(j):
            column.addcmul_(L[j:, k], L[j, k], value=-1)
        L[j:, j] = column / column[0].sqrt()
    # a pivot that is not positive gives NaN or an infinity, and so NaN in the last
    return L + 0 * L[-1, -1]


def solve(L: Tensor, b: Tensor) -> Tensor:
    """L^-1 B, of entries, with L lower triangular."""
    x = torch.empty_like(b)
    for i in range(len(b)):
        row = b[i].clone()
        for k in range(i):
            row.addcmul_(L[i, k], x[k], value=-1)
        x[i] = row / L[i, i]
    return x


def eigh(s: Tensor) -> tuple[Tensor, Tensor]:
    """Ascending eigenvalues `(n, N)` and eigenvectors `(n, n, N)` of the symmetric S, of entries, of which the lower
    triangle is read; with a backward error of a few eps."""
    if len(s) == 1:
        return s[0], torch.ones_like(s)
    return _two(s[0, 0], s[1, 0], s[1, 1]) if len(s) == 2 else _three(s)


def _two(a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Those of [[a, b], [b, c]]: one rotation of Jacobi's, by the smaller angle, which keeps the digits of a small
    diagonal entry (Golub and Van Loan 2013, section 8.5.2)."""
    half = (a - c) / 2
    far = half + torch.copysign(torch.hypot(half, b), half)
    t = torch.where(far == 0, 0, b / far)
    turn, cosine = t * b, torch.rsqrt(1 + t * t)
    w = torch.stack([a + turn, c - turn])  # of the vectors (1, t) and (-t, 1)
    sine = t * cosine
    v = torch.stack([torch.stack([cosine, -sine]), torch.stack([sine, cosine])])
    swap = w[0] > w[1]
    return torch.where(swap, w.flip(0), w), torch.where(swap, v.flip(1), v)


def _three(s: Tensor) -> tuple[Tensor, Tensor]:
    """Those of 3 x 3 matrices.

    The formula with three cosines loses half of the digits of two eigenvalues that lie near each other, but none of the
    third. So only that one is taken from it, its vector is the longest cross product of two rows of S - w I, and the
    rest is a 2 x 2 problem in the plane across (Eberly 2014, A robust eigensolver for 3 x 3 symmetric matrices; Kopp
    2008, physics/0610206, on the losses).
    """
    p, q, r, b, d, e = s[0, 0], s[1, 1], s[2, 2], s[1, 0], s[2, 0], s[2, 1]
    s = torch.stack([p, b, d, b, q, e, d, e, r]).view_as(s)
    trace = p + q + r
    for _ in range(2):  # once more for what rounding left, all there is near a multiple of I
        mean = (p + q + r) / 3
        p, q, r = p - mean, q - mean, r - mean
    flat = torch.stack([p, q, r, b, d, e])
    largest = flat.abs().amax(0)
    flat = flat / torch.where(largest == 0, 1, largest)  # squares must not overflow
    squares = flat * flat
    size = (squares.sum(0) + squares[3:].sum(0)).div(6).sqrt()
    p, q, r, b, d, e = flat / torch.where(size == 0, 1, size)
    half = (p * (q * r - e * e) - b * (b * r - e * d) + d * (b * e - q * d)) / 2
    w = 2 * torch.cos(half.abs().clamp(max=1).acos() / 3)
    above = half > 0  # the eigenvalue that stands alone is the largest
    w = torch.where(above, w, -w)
    p, q, r = p - w, q - w, r - w
    # of the cross products, columns of the adjugate and all parallel, the longest has the largest diagonal entry
    pq, pr, qr = d * e - b * r, b * e - q * d, b * d - p * e
    alone, best = torch.stack([q * r - e * e, pq, pr]), (q * r - e * e).abs()
    for column, length in (([pq, p * r - d * d, qr], 1), ([pr, qr, p * q - b * b], 2)):
        longer = column[length].abs() > best
        alone = torch.where(longer, torch.stack(column), alone)
        best = torch.where(longer, column[length].abs(), best)
    alone = alone * (alone * alone).sum(0).rsqrt()
    plane = _across(*alone)
    image = product(plane, s)
    low, high = (image * plane).sum(1)
    (low, high), turn = _two(low, (image[0] * plane[1]).sum(0), high)
    third = trace - (low + high)
    first, second = product(turn.transpose(0, 1), plane)
    values, vectors = s.new_empty(3, *low.shape), torch.empty_like(s)
    # near a multiple of I, rounding may have the order wrong
    for k, (if_above, if_below) in enumerate([(low, third.minimum(low)), (high, low), (third.maximum(high), high)]):
        torch.where(above, if_above, if_below, out=values[k])
    for k, (if_above, if_below) in enumerate([(first, alone), (second, first), (alone, second)]):
        torch.where(above, if_above, if_below, out=vectors[:, k])
    return values, vectors


def _across(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """Two vectors orthonormal to the unit vector (x, y, z) and to each other (Duff et al. 2017, Building an orthonormal
    basis, revisited)."""
    sign = torch.copysign(torch.ones_like(z), z)
    k = -1 / (sign + z)
    xy = x * y * k
    rows = [1 + sign * x * x * k, sign * xy, -sign * x, xy, sign + y * y * k, -y]
    return torch.stack(rows).unflatten(0, (2, 3))
