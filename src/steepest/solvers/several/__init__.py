"""Several objectives at once: directions that lower all of them."""

from steepest.solvers.several.averages import AlignedMTL, Mean, Sum
from steepest.solvers.several.bargains import IMTLG, MGDA, NashMTL
from steepest.solvers.several.base import Aggregator
from steepest.solvers.several.driver import SeveralResult, minimize_several
from steepest.solvers.several.surgery import DualProj, PCGrad, UPGrad

__all__ = [
    "IMTLG",
    "MGDA",
    "Aggregator",
    "AlignedMTL",
    "DualProj",
    "Mean",
    "NashMTL",
    "PCGrad",
    "SeveralResult",
    "Sum",
    "UPGrad",
    "minimize_several",
]
