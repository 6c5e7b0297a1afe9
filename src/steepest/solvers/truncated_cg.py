"""Conjugate gradients for a quadratic model, as far as a ball and its curvature allow."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

Operator = Callable[[Tensor], Tensor]
"""A symmetric matrix times a vector `(n,)`."""
FLAT = 1e-6
"""Curvature, relative to the largest seen, below which there is as good as none."""


class Step(NamedTuple):
    """A vector, its length, and by how much the model is lower there than at zero."""

    z: Tensor
    length: float
    decrease: float


@dataclasses.dataclass
class Path:
    """What `truncated_cg` has found: a path from zero on which the length grows and the model falls, up to its end.

    The path for a smaller ball is the beginning of this one, so that shorter steps, where a model turns out to be poor,
    take no product with the Hessian.
    """

    end: Step
    why: str
    """"solved", "boundary", "curvature" (none that is positive, and so to the boundary), "limit" or "not finite"."""
    inner: int
    """Products that it took."""
    first: Step
    """End of the first piece, along the negative gradient."""
    marks: list[Step]
    """Beyond the first piece, where the length is a quarter of the radius, a 16th, and so on; ascending."""
    slope: float
    """Length of the gradient."""

    def steps(self) -> Iterator[Step]:
        """The end, and then ever shorter steps, each of at most half the last one's length."""
        yield self.end
        length = self.end.length
        for mark in reversed(self.marks):
            if mark.length <= length / 2:
                yield mark
                length = mark.length
        z, reach, decrease = self.first
        bend = (self.slope - decrease / reach) / reach if reach else 0.0
        length = min(length, 4 * reach)
        while length := length / 4:
            yield Step(z * (length / reach), length, self.slope * length - bend * length * length)


def truncated_cg(product: Operator, g: Tensor, norm: float, radius: float, residual: float, limit: int) -> Path:
    """A z, |z| <= radius, that nearly minimises the model g.z + z.H z / 2.

    Conjugate gradients from zero until |g + H z| is at most `residual`; to the boundary of the ball where they leave
    it; along a direction without positive curvature to the boundary too, or where there is none (an infinite radius)
    as far as if its curvature were the geometric mean of its own size and of the largest seen.

    Args:
        product: H times a vector.
        g: the gradient, `(n,)`.
        norm: its length, positive.
        radius: of the ball.
        residual: where to stop, below `norm`.
        limit: products at most.

    Steihaug 1983; Toint 1981; Conn, Gould and Toint 2000, algorithm 7.5.1, and equations 7.5.5 to 7.5.7 for lengths.
    The model may rise, against the theory, where H is not quite linear (finite differences): the first step is the end
    then.
    """
    z, r, p = torch.zeros_like(g), g, -g
    rr = pp = norm * norm
    zz = zp = decrease = largest = 0.0
    first, marks, mark = Step(z, 0.0, 0.0), list[Step](), math.inf
    inner, why = 0, "limit"
    while inner < limit and rr > 0:
        inner += 1
        hp = product(p)
        php = torch.dot(p, hp).item()
        if not math.isfinite(php):
            why = "not finite"
            break
        largest = max(largest, abs(php) / pp)
        t = rr / php if php > 0 else math.inf
        ahead = zz + 2 * t * zp + t * t * pp if php > 0 else math.inf
        if leaves := not ahead < radius * radius:
            why = "boundary" if php > 0 else "curvature"
            t = _reach(zz, zp, pp, radius) if radius < math.inf else rr / _bent(php, pp, largest)
            ahead = zz + 2 * t * zp + t * t * pp
        while mark < radius and mark * mark < ahead:
            s = _reach(zz, zp, pp, mark)
            marks.append(Step(torch.add(z, p, alpha=s), mark, decrease + s * rr - s * s * php / 2))
            mark *= 4
        z, r, zz = torch.add(z, p, alpha=t), torch.add(r, hp, alpha=t), ahead
        decrease += t * rr - t * t * php / 2
        if inner == 1:
            first, mark = Step(z, math.sqrt(zz), decrease), _above(math.sqrt(zz), radius)
        if leaves:
            break
        new = torch.dot(r, r).item()
        if new <= residual * residual:
            why = "solved"
            break
        beta = new / rr
        zp, pp, rr = beta * (zp + t * pp), new + beta * beta * pp, new
        p = torch.add(-r, p, alpha=beta)
    end = Step(z, math.sqrt(zz), decrease)
    if inner > 1 and not -float(torch.dot(z, g + r)) / 2 >= first.decrease:
        end = first
    return Path(end, why, inner, first, marks, norm)


def _reach(zz: float, zp: float, pp: float, length: float) -> float:
    """The positive t with |z + t p| = length, of the squares and the product of z and p."""
    room = max(length * length - zz, 0.0)
    root = math.sqrt(zp * zp + pp * room)
    return room / (zp + root) if zp > 0 else (root - zp) / pp


def _bent(php: float, pp: float, largest: float) -> float:
    """p.H p as it counts where it is not positive and no ball ends the path."""
    most = largest * pp
    return math.sqrt(max(-php, FLAT * most) * most) or pp * math.sqrt(pp)


def _above(length: float, radius: float) -> float:
    """The least of radius / 4, radius / 16, ... above this length; infinite where there is none."""
    if not 0 < length < radius / 4 or radius == math.inf:
        return math.inf
    mark = radius / 4 ** math.floor(math.log(radius / length, 4))
    return mark if mark > length else 4 * mark


def forcing(norm: float, before: float, last: float, power: float, largest: float) -> float:
    """How exactly, relative to the gradient, a model is worth minimising: 0.9 (norm / before)^power, for the gradients'
    lengths now and before the last step, at most `largest`; and no more than the square of the `last` such term below
    it as long as that is large. The steps converge with order `power`, between one and two.

    Eisenstat and Walker 1996, "Choosing the forcing terms in an inexact Newton method", choice 2 with its safeguard.
    """
    term, guard = 0.9 * min(norm / before, 1.0) ** power, 0.9 * last**power
    return min(largest, max(term, guard if guard > 0.1 else 0.0))
