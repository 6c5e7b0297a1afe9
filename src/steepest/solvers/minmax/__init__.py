"""Minimise over one point and maximise over another."""

from steepest.solvers.minmax.base import MinMaxMethod
from steepest.solvers.minmax.consensus import Consensus
from steepest.solvers.minmax.descent_ascent import DescentAscent
from steepest.solvers.minmax.driver import minmax
from steepest.solvers.minmax.extra_gradient import ExtraGradient
from steepest.solvers.minmax.hamiltonian import Hamiltonian
from steepest.solvers.minmax.result import MinMaxResult
from steepest.solvers.minmax.saddle import Saddle
from steepest.solvers.minmax.stochastic import StochasticHamiltonian

__all__ = [
    "Consensus",
    "DescentAscent",
    "ExtraGradient",
    "Hamiltonian",
    "MinMaxMethod",
    "MinMaxResult",
    "Saddle",
    "StochasticHamiltonian",
    "minmax",
]
