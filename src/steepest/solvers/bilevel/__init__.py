"""Minimise over one point a function of another, which minimises a second function."""

from steepest.solvers.bilevel.base import BilevelMethod
from steepest.solvers.bilevel.borep import BOREP
from steepest.solvers.bilevel.cg import CG
from steepest.solvers.bilevel.driver import bilevel
from steepest.solvers.bilevel.fixed_step import FixedStep
from steepest.solvers.bilevel.hypergradient import Estimate, Hypergradient
from steepest.solvers.bilevel.inverse import Inverse
from steepest.solvers.bilevel.levels import Levels
from steepest.solvers.bilevel.neumann import Neumann
from steepest.solvers.bilevel.result import BilevelResult
from steepest.solvers.bilevel.rhgd import RHGD
from steepest.solvers.bilevel.unrolled import Unrolled

__all__ = [
    "BOREP",
    "CG",
    "RHGD",
    "BilevelMethod",
    "BilevelResult",
    "Estimate",
    "FixedStep",
    "Hypergradient",
    "Inverse",
    "Levels",
    "Neumann",
    "Unrolled",
    "bilevel",
]
