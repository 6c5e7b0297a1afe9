"""The common suites, public: what every manifold, norm, projector, transform and optimiser passes, yours as well.

Each check raises an AssertionError that says which law is broken, where and by how much.

>>> from steepest import Stiefel
>>> from steepest.testing import check_manifold
>>> check_manifold(Stiefel("canonical"), (6, 2))
"""

from steepest.testing import geodesics as geodesics  # enters its checks
from steepest.testing.adapter import ADAPTER_CHECKS, check_adapter
from steepest.testing.basis import BASIS_CHECKS, check_basis
from steepest.testing.discover import (
    adapters,
    bases,
    manifolds,
    norms,
    optimizers,
    preconditioners,
    projectors,
    solvers,
    transforms,
)
from steepest.testing.manifold import MANIFOLD_CHECKS, check_manifold
from steepest.testing.norm import NORM_CHECKS, check_norm
from steepest.testing.optimizer import OPTIMIZER_CHECKS, check_optimizer, places
from steepest.testing.preconditioner import PRECONDITIONER_CHECKS, check_preconditioner
from steepest.testing.projector import PROJECTOR_CHECKS, check_projector
from steepest.testing.solver import SOLVER_CHECKS, check_solver
from steepest.testing.transform import TRANSFORM_CHECKS, check_transform

__all__ = [
    "ADAPTER_CHECKS",
    "BASIS_CHECKS",
    "MANIFOLD_CHECKS",
    "NORM_CHECKS",
    "OPTIMIZER_CHECKS",
    "PRECONDITIONER_CHECKS",
    "PROJECTOR_CHECKS",
    "SOLVER_CHECKS",
    "TRANSFORM_CHECKS",
    "adapters",
    "bases",
    "check_adapter",
    "check_basis",
    "check_manifold",
    "check_norm",
    "check_optimizer",
    "check_preconditioner",
    "check_projector",
    "check_solver",
    "check_transform",
    "manifolds",
    "norms",
    "optimizers",
    "places",
    "preconditioners",
    "projectors",
    "solvers",
    "transforms",
]
