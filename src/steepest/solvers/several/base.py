"""What an aggregator is: weights for several gradients, from their inner products."""

from __future__ import annotations

import abc

import torch
from torch import Tensor

from steepest.spec import Spec


class Aggregator(Spec, abc.ABC):
    """A rule that makes one direction J^T w of the Jacobian J `(*b, m, n)` of m objectives, in coordinates.

    All of them look at J J^T alone, in float64 and on the CPU, where the programs are small. Objectives go down along
    -J^T w. To write one, give `weights`.

    >>> from steepest.solvers import MGDA, Mean, UPGrad
    >>> j = torch.tensor([[2.0, 0.0], [-1.0, 1.0]])
    >>> Mean()(j), UPGrad()(j), MGDA()(j)
    (tensor([0.5000, 0.5000]), tensor([0.5000, 1.0000]), tensor([0.2000, 0.6000]))
    """

    @abc.abstractmethod
    def weights(self, gram: Tensor, seed: int = 0) -> Tensor:
        """w `(*b, m)`, from the Gramian J J^T `(*b, m, m)` in float64; `seed` is for what is random in it."""

    def __call__(self, jacobian: Tensor, seed: int = 0) -> Tensor:
        """J^T w, `(*b, n)`. A row that is not finite makes it NaN, and nothing else."""
        if jacobian.ndim < 2 or jacobian.is_complex():
            raise ValueError(
                f"jacobian: got {tuple(jacobian.shape)} {jacobian.dtype}, expected real rows `(*b, m, n)`, a gradient "
                "each; complex ones as `torch.view_as_real(j).flatten(-2)`."
            )
        wide = jacobian.cpu().double()
        w = torch.where(wide.isfinite().all(-1).all(-1, keepdim=True), self.weights(safe_gram(wide), seed), torch.nan)
        return (w.to(jacobian).unsqueeze(-2) @ jacobian).squeeze(-2)

    @classmethod
    @abc.abstractmethod
    def examples(cls) -> list[Aggregator]:
        """Instances: what the tests run."""


def safe_gram(jacobian: Tensor) -> Tensor:
    """J J^T, with zeros for what is not finite."""
    j = jacobian.nan_to_num(0.0, 0.0, 0.0)
    return j @ j.mT


def preference(weights: tuple[float, ...] | None, gram: Tensor) -> Tensor:
    """What each objective counts, `(m,)`: the same where nothing is said."""
    m = gram.shape[-1]
    if weights is None:
        return gram.new_full((m,), 1 / m)
    if len(weights) != m:
        raise ValueError(f"preference: got {len(weights)} numbers, expected one for each of {m} objectives")
    return gram.new_tensor(weights)


def checked(weights: tuple[float, ...] | None) -> tuple[float, ...] | None:
    """The numbers, if they are at least zero."""
    if weights is not None and not all(w >= 0 and w < float("inf") for w in weights):
        raise ValueError(f"preference: got {weights}, expected finite numbers of at least zero")
    return None if weights is None else tuple(float(w) for w in weights)
