"""QGOFT: planes turned level by level, each by an angle or by a free 2 x 2 matrix."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from steepest.adapters.base import Adapter, Source, Tensors, check_choice
from steepest.adapters.givens import givens, levels, turn_planes
from steepest.checks import check_range


@dataclasses.dataclass(frozen=True)
class QGOFT(Adapter):
    """W' = W R^T with R = G_L ... G_2 G_1 for n inputs: level s = 1, 2, 4, ... acts on the planes of the coordinates
    (2 j s, 2 j s + s), n - 1 planes in all (Ma et al. 2024, 2404.04316, equations 3 to 6 and algorithm 1).

    Args:
        relaxed: qGOFT, where every plane has a 2 x 2 matrix of its own, free but for the penalty; otherwise GOFT, where
            it has an angle, and R is a rotation.
        scale: train one factor for each input as well, W' = W diag(1 + scale) R^T: GOFT* in the paper. Of use where R
            is a rotation, for free planes hold their own scales.
        regularizer: times the sum of <a, b>^2 over the columns a, b of all free matrices, which draws them towards a
            right angle. `steepest.adapters.penalty` gives it, to be added to the loss. The authors choose 0.001 to
            0.05.

    No n x n matrix is formed: each level costs 4 n multiplications for an input. n is any number; where it is no power
    of two, the last coordinate of a level may have no partner, and waits for the next one. R does not reach every
    rotation, of which there are n (n - 1) / 2 dimensions. It can turn any one vector, so any one row of W, into the
    first axis, which is what the proof of theorem 4.1 gives.

    Where paper and code differ, the paper is followed, with one exception:
    - the code joins the neighbours 2 j and 2 j + 1 on every level, with numbers that belong to the planes above: from
      four inputs on its R is far from orthogonal;
    - the code's merged weight multiplies the levels in the opposite order of its forward pass, and so is another one;
      the order of the forward pass is that of the paper;
    - the code turns by pi tanh(t), the paper by the angle itself, which is what is trained here, and for which the
      authors' learning rates under Adam are to be multiplied by pi; the code turns the other way, by -theta, and its
      free matrices are the transposes;
    - of the factors the paper says that they set the lengths of neurons, the rows of W, which would take one for each
      output; here, as in the code, there is one for each input. The code has them for GOFT alone.

    The free matrices and the factors are kept as differences from I and 1, so that weight decay draws to W, not to 0.

    >>> from steepest.adapters import QGOFTConfig
    >>> config = QGOFTConfig(relaxed=False, target_modules=["query", "value"])
    >>> config.method().count(768, 768)
    767
    """

    relaxed: bool = True
    scale: bool = False
    regularizer: float = 1e-3

    trained: ClassVar[tuple[str, ...]] = ("theta", "blocks", "scale")

    def __post_init__(self) -> None:
        check_choice("relaxed", self.relaxed, (True, False))
        check_choice("scale", self.scale, (True, False))
        check_range("regularizer", self.regularizer)

    def start(self, source: Source, bases: Tensors) -> dict[str, Tensor]:
        """Nothing is turned: angles `(n - 1,)`, or differences of free matrices from I `(n - 1, 2, 2)`, and differences
        of factors from one `(n,)`."""
        w, n = source.weight, source.weight.shape[1]
        planes = {"blocks": w.new_zeros(n - 1, 2, 2)} if self.relaxed else {"theta": w.new_zeros(n - 1)}
        return planes | ({"scale": w.new_zeros(n)} if self.scale else {})

    def turn(self, t: Tensors, x: Tensor) -> Tensor:
        """diag(1 + scale) R^T x: the farthest planes first."""
        return _scaled(t, _through(t, x, inverse=True))

    def turn_back(self, t: Tensors, x: Tensor) -> Tensor:
        """R diag(1 + scale) x."""
        return _through(t, _scaled(t, x), inverse=False)

    def orthogonal(self) -> bool:
        """With angles alone."""
        return not self.relaxed and not self.scale

    def penalty(self, t: Tensors) -> Tensor | None:
        """The regulariser times the sum of <a, b>^2 over the columns a, b of free matrices."""
        if not self.relaxed or not self.regularizer:
            return None
        a, b = _blocks(t).unbind(-1)
        return self.regularizer * (a * b).sum(-1).square().sum()

    def count(self, out_features: int, in_features: int) -> int:
        """n - 1 angles, or 4 (n - 1) entries; with factors n more."""
        return (4 if self.relaxed else 1) * (in_features - 1) + (in_features if self.scale else 0)

    @classmethod
    def examples(cls) -> list[Adapter]:
        """Angles and free matrices, with and without factors."""
        return [cls(), cls(relaxed=False), cls(relaxed=False, scale=True), cls(scale=True, regularizer=0.0)]


def _scaled(t: Tensors, x: Tensor) -> Tensor:
    return x * (1 + t["scale"]) if "scale" in t else x


def _through(t: Tensors, x: Tensor, *, inverse: bool) -> Tensor:
    """R x for each row; with `inverse` R^T x."""
    if "theta" in t:
        return givens(t["theta"], x, inverse=inverse)
    entries = _blocks(t).flatten(-2).mT.split([planes for _, planes in levels(x.shape[-1])], dim=-1)
    return turn_planes(list(entries), x, inverse=inverse)


def _blocks(t: Tensors) -> Tensor:
    """The free matrices `(n - 1, 2, 2)`."""
    return t["blocks"] + torch.eye(2, dtype=t["blocks"].dtype, device=t["blocks"].device)
