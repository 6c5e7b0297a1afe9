"""The eigenbasis of a side's statistics."""

from __future__ import annotations

import dataclasses
import warnings
from typing import ClassVar

import torch
from torch import Tensor

from steepest.bases.base import Basis, State
from steepest.checks import check_range
from steepest.linalg.basis import orthonormal_basis
from steepest.linalg.eigen import eigh
from steepest.linalg.statistics import average_gram


@dataclasses.dataclass(frozen=True)
class Eigenbasis(Basis):
    """Eigenvectors of S, the average of y y^H.

    Found by one eigendecomposition from the first y; from there the basis turns with S by one step of the QR algorithm
    now and then, Q <- qr(S Q), with Q's columns taken in the order of the eigenvalues that they stand for, the largest
    first, and put back behind it: so each column stays the successor of the one in its place, and what has been
    averaged along it stays with it.

    Args:
        beta: factor of the average.
        every: steps from one turn to the next.
        spread: turn different points at different steps.
        shift: decides where S does not, relative to its mean eigenvalue: axes along which no gradient has been, and
            those of equal eigenvalues, as skew coordinates have, stay near those of the matrix at the start and do not
            follow rounding later. 0 as published.

    Vyas et al. 2024, "SOAP" (2409.11321), algorithms 3 and 4. Their code leaves the columns in order of the eigenvalues
    and sorts second moments along: the same numbers in another order.

    >>> optimizer = SOAP(param_groups(torch.nn.Linear(8, 8)), every=5)
    """

    beta: float = 0.95
    every: int = 10
    spread: bool = True
    shift: float = 1e-5

    learns: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_range("beta", self.beta, 0, 1, open_high=True)
        check_range("every", self.every, 1)
        check_range("shift", self.shift)

    def init(self, y: Tensor) -> State:
        """No statistics, and the axes as they are."""
        n = y.shape[-2]
        eye = torch.eye(n, dtype=y.dtype, device=y.device)
        return {"statistic": y.new_zeros((*y.shape[:-1], n)), "basis": eye.expand(*y.shape[:-2], n, n).clone()}

    def matrix(self, y: Tensor, state: State) -> Tensor:
        """Where the eigenvectors were last followed to."""
        return state["basis"]

    def follow(self, y: Tensor, state: State, step: int, phase: int = 0) -> Tensor | None:
        """Average, and turn when it is due."""
        s = average_gram(state["statistic"], y, self.beta)
        if step == 0:
            return _eigenvectors(s, self.shift)
        due = (step + (phase if self.spread else 0)) % self.every == 0
        return turned(s, state["basis"], self.shift) if due else None

    @classmethod
    def examples(cls) -> list[Basis]:
        """SOAP's, and one that turns every second step."""
        return [cls(), cls(0.9, 2)]


def turned(s: Tensor, q: Tensor, shift: float = 0.0) -> Tensor:
    """One step of the QR algorithm for the Hermitian s from the basis q, both `(*b, n, n)`; `shift`, times the mean
    eigenvalue, is added to all of them."""
    sq = (s @ q).addcmul_(q, (shift * _mean(s)).to(q.dtype))
    order = (q.conj() * sq).sum(-2).real.argsort(-1, descending=True)
    new = orthonormal_basis(_columns(sq, order))
    return _columns(new, order.argsort(-1))


def _columns(x: Tensor, order: Tensor) -> Tensor:
    if x.ndim == 2:
        return x.index_select(-1, order)  # faster than gather
    return x.gather(-1, order.unsqueeze(-2).expand_as(x))


def _eigenvectors(s: Tensor, shift: float) -> Tensor | None:
    order = torch.linspace(2, 1, s.shape[-1], dtype=s.dtype, device=s.device)
    try:
        return eigh(s + torch.diag_embed(shift * _mean(s).squeeze(-1) * order))[1].flip(-1)
    except torch.linalg.LinAlgError as error:
        warnings.warn(
            f"no eigenvectors of a first gradient were found, its axes stay: {error}", RuntimeWarning, stacklevel=2
        )
        return None


def _mean(s: Tensor) -> Tensor:
    """The mean eigenvalue `(*b, 1, 1)`."""
    return s.diagonal(dim1=-2, dim2=-1).real.mean(-1)[..., None, None]
