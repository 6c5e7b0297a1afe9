"""Minimise a mean of many terms, a few at a time: stochastic gradients without their variance."""

from steepest.solvers.finite_sum.base import SumMethod
from steepest.solvers.finite_sum.driver import minimize_sum
from steepest.solvers.finite_sum.perturbed import PerturbedSRG
from steepest.solvers.finite_sum.srg import SRG
from steepest.solvers.finite_sum.stochastic import Stochastic
from steepest.solvers.finite_sum.svrg import SVRG
from steepest.solvers.finite_sum.terms import FiniteSum

__all__ = ["SRG", "SVRG", "FiniteSum", "PerturbedSRG", "Stochastic", "SumMethod", "minimize_sum"]
