"""Clipping by the norm over all parameters."""

from __future__ import annotations

import torch
from torch import Tensor

from steepest.checks import check_range
from steepest.manifolds.tensors import as_tuple
from steepest.optim.engine import Optimizer


def clip_grad_norm_(optimizer: Optimizer, max_norm: float) -> Tensor:
    """Scale all gradients of an optimiser so that the Riemannian norm of all of them together is at most `max_norm`.

    On a manifold the norm is that of `pull(x, g)`: `torch.nn.utils.clip_grad_norm_` would measure the Euclidean
    gradient. Changes `.grad` in place, like its model in torch, and returns the norm from before. Where that is not
    finite, gradients stay as they are, so that the step can tell which one is to blame.

    >>> x = torch.nn.Parameter(torch.zeros(2))
    >>> optimizer = SGD([x], lr=1.0)
    >>> (3 * x[0] + 4 * x[1]).backward()
    >>> clip_grad_norm_(optimizer, 1.0).item(), [round(g, 3) for g in x.grad.tolist()]
    (5.0, [0.6, 0.8])
    """
    check_range("max_norm", max_norm, open_low=True)
    with torch.no_grad():
        points = [p for g in optimizer.param_groups for p in optimizer._points(g) if p.has_grad()]
        norms = [torch.linalg.vector_norm(block) for p in points for block in as_tuple(p.pull())]
        if not norms:
            return torch.zeros(())
        total = torch.linalg.vector_norm(torch.stack([n.to(norms[0].device, torch.float64) for n in norms]))
        scale = torch.where(total.isfinite(), (max_norm / (total + 1e-6)).clamp_max(1.0), 1.0)
        for p in points:
            for t in p.params:
                t.grad.mul_(scale.to(t.device, t.grad.dtype.to_real()))  # type: ignore[union-attr]
    return total
