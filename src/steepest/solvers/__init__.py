"""Minimise any function on any manifold: textbook solvers in frame coordinates."""

from steepest.solvers.augmented_lagrangian import AugmentedLagrangian
from steepest.solvers.base import Method, Stop
from steepest.solvers.bilevel import (
    BOREP,
    CG,
    RHGD,
    BilevelResult,
    Estimate,
    FixedStep,
    Inverse,
    Levels,
    Neumann,
    Unrolled,
    bilevel,
)
from steepest.solvers.conjugate_gradients import ConjugateGradients
from steepest.solvers.constrained import (
    ConstrainedMethod,
    ConstrainedProblem,
    ConstrainedResult,
    minimize_constrained,
)
from steepest.solvers.coordinate_descent import CoordinateDescent
from steepest.solvers.cubic_newton import CubicNewton
from steepest.solvers.diagnostics import Check, check_gradient, check_hessian
from steepest.solvers.extrapolation import Extrapolated
from steepest.solvers.finite_sum import SRG, SVRG, FiniteSum, PerturbedSRG, Stochastic, SumMethod, minimize_sum
from steepest.solvers.frank_wolfe import FrankWolfe, GeodesicBall, Region, SPDInterval, ZerothOrderFrankWolfe
from steepest.solvers.hessian import Exact, FiniteDifference, GaussNewton, HessianModel
from steepest.solvers.lbfgs import LBFGS
from steepest.solvers.least_squares import LeastSquares
from steepest.solvers.line_search import Armijo, HagerZhang, LineSearch, Wolfe
from steepest.solvers.minimize import minimize
from steepest.solvers.minmax import (
    Consensus,
    DescentAscent,
    ExtraGradient,
    Hamiltonian,
    MinMaxResult,
    Saddle,
    StochasticHamiltonian,
    minmax,
)
from steepest.solvers.nelder_mead import NelderMead
from steepest.solvers.newton import Newton
from steepest.solvers.nystrom import Nystrom, nystrom
from steepest.solvers.nystrom_newton import NystromNewton
from steepest.solvers.particle_swarm import ParticleSwarm
from steepest.solvers.problem import Evaluations, Iterate, Problem
from steepest.solvers.random_submanifold import RandomSubmanifold
from steepest.solvers.result import Record, Result
from steepest.solvers.several import (
    IMTLG,
    MGDA,
    Aggregator,
    AlignedMTL,
    DualProj,
    Mean,
    NashMTL,
    PCGrad,
    SeveralResult,
    Sum,
    UPGrad,
    minimize_several,
)
from steepest.solvers.sketched_newton import SketchedNewton
from steepest.solvers.steepest_descent import SteepestDescent
from steepest.solvers.trust_region import TrustRegion

__all__ = [
    "BOREP",
    "CG",
    "IMTLG",
    "LBFGS",
    "MGDA",
    "RHGD",
    "SRG",
    "SVRG",
    "Aggregator",
    "AlignedMTL",
    "Armijo",
    "AugmentedLagrangian",
    "BilevelResult",
    "Check",
    "ConjugateGradients",
    "Consensus",
    "ConstrainedMethod",
    "ConstrainedProblem",
    "ConstrainedResult",
    "CoordinateDescent",
    "CubicNewton",
    "DescentAscent",
    "DualProj",
    "Estimate",
    "Evaluations",
    "Exact",
    "ExtraGradient",
    "Extrapolated",
    "FiniteDifference",
    "FiniteSum",
    "FixedStep",
    "FrankWolfe",
    "GaussNewton",
    "GeodesicBall",
    "HagerZhang",
    "Hamiltonian",
    "HessianModel",
    "Inverse",
    "Iterate",
    "LeastSquares",
    "Levels",
    "LineSearch",
    "Mean",
    "Method",
    "MinMaxResult",
    "NashMTL",
    "NelderMead",
    "Neumann",
    "Newton",
    "Nystrom",
    "NystromNewton",
    "PCGrad",
    "ParticleSwarm",
    "PerturbedSRG",
    "Problem",
    "RandomSubmanifold",
    "Record",
    "Region",
    "Result",
    "SPDInterval",
    "Saddle",
    "SeveralResult",
    "SketchedNewton",
    "SteepestDescent",
    "Stochastic",
    "StochasticHamiltonian",
    "Stop",
    "Sum",
    "SumMethod",
    "TrustRegion",
    "UPGrad",
    "Unrolled",
    "Wolfe",
    "ZerothOrderFrankWolfe",
    "bilevel",
    "check_gradient",
    "check_hessian",
    "minimize",
    "minimize_constrained",
    "minimize_several",
    "minimize_sum",
    "minmax",
    "nystrom",
]
