"""Minimise any function on any manifold: textbook solvers in frame coordinates."""

from steepest.solvers.base import Method, Stop
from steepest.solvers.conjugate_gradients import ConjugateGradients
from steepest.solvers.lbfgs import LBFGS
from steepest.solvers.line_search import Armijo, HagerZhang, LineSearch, Wolfe
from steepest.solvers.minimize import minimize
from steepest.solvers.problem import Evaluations, Iterate, Problem
from steepest.solvers.result import Record, Result
from steepest.solvers.steepest_descent import SteepestDescent

__all__ = [
    "LBFGS",
    "Armijo",
    "ConjugateGradients",
    "Evaluations",
    "HagerZhang",
    "Iterate",
    "LineSearch",
    "Method",
    "Problem",
    "Record",
    "Result",
    "SteepestDescent",
    "Stop",
    "Wolfe",
    "minimize",
]
