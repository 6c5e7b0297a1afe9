"""The spectral norm of a tangent vector of Stiefel, in its coordinates."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from steepest.linalg import skew, sym
from steepest.norms.base import Norm, divide


@dataclasses.dataclass(frozen=True)
class StiefelSpectral(Norm):
    """Largest singular value of the tangent vector X c A + Z itself, for coordinates (A skew, Z horizontal) of Stiefel.

    X and Z are orthogonal, so that this is the largest singular value of the stack [c A; Z], without the point.
    Muon's `Spectral` measures the two blocks apart, as the official iMuon does; this norm measures what the step does
    to X, and descends up to a quarter more per unit of it. The dual map has no closed form, as the polar factor of [c
    A; Z] has no skew block. Its dual problem, min over symmetric M of the nuclear norm of [c A + M; Z] (both scaled
    to the metric), is solved by iteratively reweighted least squares: with V diag(s) V^T the root of the stack's Gram
    matrix, the next M is V ((s_j - s_i) / (s_i + s_j) * V^T A V) V^T, a Lyapunov solution in closed form.

    Args:
        scale: c: 1 for the Euclidean metric, sqrt 2 for the canonical one.
        steps: iterations; 30 give the dual norm to about 1e-4 relative, and the result is feasible after any number.

    Bernstein 2025, "Modular manifolds", states the problem; the iteration is ours.

    >>> a, z = skew(torch.ones(2, 2).triu()), torch.zeros(3, 2)
    >>> round(StiefelSpectral().value((a, z)).item(), 3)
    0.5
    """

    scale: float = 1.0
    steps: int = 30

    joint: ClassVar[bool] = True
    exact: ClassVar[bool] = False

    def value(self, h: tuple[Tensor, Tensor]) -> Tensor:
        """Largest singular value of the stack."""
        return torch.linalg.matrix_norm(self._stack(*h), 2)

    def dual(self, g: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """The coordinates, of norm one, that g rewards most."""
        a, z = skew(g[0]) / self.scale, g[1]  # <g, (A, Z)> = <a, c A> + <z, Z>
        size = torch.maximum(a.abs().amax((-2, -1), keepdim=True), z.abs().amax((-2, -1), keepdim=True))
        a, z = divide(a, size), divide(z, size)
        m, zz = torch.zeros_like(a), z.mT @ z
        floor = torch.finfo(a.dtype).eps
        for _ in range(self.steps):
            top = a + m
            w, v = torch.linalg.eigh(sym(top.mT @ top + zz))
            s = (w.clamp_min(0) + floor * w[..., -1:]).sqrt()
            ratio = (s.unsqueeze(-2) - s.unsqueeze(-1)) / (s.unsqueeze(-2) + s.unsqueeze(-1)).clamp_min(floor)
            m = sym(v @ (ratio * (v.mT @ a @ v)) @ v.mT)
        top = a + m
        w, v = torch.linalg.eigh(sym(top.mT @ top + zz))
        inverse_root = torch.where(w > floor * w[..., -1:], w.clamp_min(floor * floor).rsqrt(), 0)
        h = v * inverse_root.unsqueeze(-2) @ v.mT
        step = (skew(top @ h) / self.scale, z @ h)
        norm = self.value(step)[..., None, None]
        return divide(step[0], norm), divide(step[1], norm)

    def _stack(self, a: Tensor, z: Tensor) -> Tensor:
        return torch.cat([self.scale * skew(a), z], -2)

    @classmethod
    def examples(cls) -> list[Norm]:
        """Both metrics."""
        return [cls(), cls(2**0.5)]
