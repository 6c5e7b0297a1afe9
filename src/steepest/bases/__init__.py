"""Orthonormal bases of one side of a matrix, in which a chain may work; one file = one basis."""

from steepest.bases.base import Basis
from steepest.bases.cosine import CosineBasis
from steepest.bases.eigen import Eigenbasis
from steepest.bases.random import RandomBasis

__all__ = ["Basis", "CosineBasis", "Eigenbasis", "RandomBasis"]
