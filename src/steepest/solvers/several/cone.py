"""Small quadratic programs over non-negative numbers, many at once."""

from __future__ import annotations

import torch
from torch import Tensor


def nonnegative(gram: Tensor, q: Tensor) -> Tensor:
    """The z >= 0 of least z^T G z / 2 + q^T z, `(*b, m)`, for G positive semidefinite `(*b, m, m)` and q in its range.

    The active set method of Lawson and Hanson 1974, chapter 23, in terms of the Gramian, on all programs in lockstep;
    exact after finitely many steps but for rounding. A solution where G is singular: z need not be unique, G z is.
    """
    shape = torch.broadcast_shapes(gram.shape[:-1], q.shape)
    m = shape[-1]
    scale = gram.diagonal(dim1=-2, dim2=-1).clamp_min(0).sqrt()
    scale = torch.where(scale > 0, scale, 1)  # unit diagonal: tolerances without unit
    g = (gram / (scale.unsqueeze(-1) * scale.unsqueeze(-2))).expand(*shape, m).reshape(-1, m, m)
    b = -(q / scale).expand(shape).reshape(-1, m)
    small = 1e-12 * b.abs().amax(-1, keepdim=True)
    z, free = torch.zeros_like(b), torch.zeros_like(b, dtype=torch.bool)
    barred = free
    eye = torch.eye(m, dtype=g.dtype, device=g.device)
    for _ in range(6 * m + 6):
        pairs = free.unsqueeze(-1) & free.unsqueeze(-2)
        s = torch.linalg.solve_ex(torch.where(pairs, g, eye), torch.where(free, b, 0))[0].nan_to_num()
        low = free & (s <= 0)
        cut = low.any(-1, keepdim=True)
        t = torch.where(low, z / (z - s).clamp_min(torch.finfo(z.dtype).tiny), torch.inf).amin(-1, keepdim=True)
        t = torch.where(cut, t, 1)
        left = free & (z <= 0) & low  # entered last, and would turn negative at once: rounding
        z = torch.where(free, z + t * (s - z), 0).clamp_min(0)
        free = torch.where(cut, free & ~(low & (z <= 1e-14 * z.amax(-1, keepdim=True))), free)
        z = torch.where(free, z, 0)
        slope = torch.where(free | barred, -torch.inf, b - (g @ z.unsqueeze(-1)).squeeze(-1))
        barred = torch.where(cut, barred | left, False)
        best, index = slope.max(-1, keepdim=True)
        enters = ~cut & (best > small)
        if not (cut | enters).any():
            break
        free = free | torch.zeros_like(free).scatter(-1, index, enters)
    return z.reshape(shape) / scale


def least_norm(gram: Tensor) -> Tensor:
    """Weights `(*b, m)`, non-negative and of sum one, of the shortest convex combination of vectors with this Gramian.

    The z >= 0 of least z^T G z + c (sum z - 1)^2 is a multiple of them, whatever c > 0 is.
    """
    c = gram.diagonal(dim1=-2, dim2=-1).mean(-1)
    c = torch.where(c > 0, c, 1)[..., None]
    z = nonnegative(gram + c.unsqueeze(-1), -c.expand(gram.shape[:-1]))
    return z / z.sum(-1, keepdim=True)
