"""Positive definite matrices; one file = one metric."""

from steepest.manifolds.spd.affine_invariant import AffineInvariant
from steepest.manifolds.spd.alpha_procrustes import AlphaProcrustes
from steepest.manifolds.spd.bures_wasserstein import BuresWasserstein
from steepest.manifolds.spd.kernel import KernelMetric
from steepest.manifolds.spd.log_cholesky import LogCholesky
from steepest.manifolds.spd.log_euclidean import LogEuclidean
from steepest.manifolds.spd.manifold import SPD, SPDMetric
from steepest.manifolds.spd.mean_kernel import MeanKernel
from steepest.manifolds.spd.power_deformed import PowerDeformed

__all__ = [
    "SPD",
    "AffineInvariant",
    "AlphaProcrustes",
    "BuresWasserstein",
    "KernelMetric",
    "LogCholesky",
    "LogEuclidean",
    "MeanKernel",
    "PowerDeformed",
    "SPDMetric",
]
