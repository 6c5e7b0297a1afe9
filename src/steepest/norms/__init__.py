"""Norms and their dual maps; one file = one norm."""

from steepest.norms.base import Norm
from steepest.norms.columns import Columns
from steepest.norms.frobenius import Frobenius
from steepest.norms.max import Max
from steepest.norms.nuclear import Nuclear
from steepest.norms.rows import Rows
from steepest.norms.spectral import Spectral
from steepest.norms.stiefel_spectral import StiefelSpectral

__all__ = ["Columns", "Frobenius", "Max", "Norm", "Nuclear", "Rows", "Spectral", "StiefelSpectral"]
