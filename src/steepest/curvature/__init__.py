"""Curvature that a gradient alone does not tell: what layers saw, how outputs and losses bend."""

from steepest.curvature.base import PRECONDITIONERS, LayerPreconditioner
from steepest.curvature.gauss_newton import EGN
from steepest.curvature.input_gain import InputGain, InputWhitening
from steepest.curvature.kfac import KFAC
from steepest.curvature.lazy_newton import LazyNewton
from steepest.curvature.mkor import MKOR, LossTrend
from steepest.curvature.rescale import KLClip, OwnNorm, Rescale
from steepest.curvature.singd import SINGD
from steepest.curvature.structures import (
    BlockDiagonal,
    Dense,
    Diagonal,
    Hierarchical,
    Structure,
    Toeplitz,
    Triangular,
)

__all__ = [
    "EGN",
    "KFAC",
    "MKOR",
    "PRECONDITIONERS",
    "SINGD",
    "BlockDiagonal",
    "Dense",
    "Diagonal",
    "Hierarchical",
    "InputGain",
    "InputWhitening",
    "KLClip",
    "LayerPreconditioner",
    "LazyNewton",
    "LossTrend",
    "OwnNorm",
    "Rescale",
    "Structure",
    "Toeplitz",
    "Triangular",
]
