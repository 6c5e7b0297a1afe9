"""Matrix manifolds; one file = one manifold."""

from steepest.manifolds.base import Manifold
from steepest.manifolds.correlation import Correlation
from steepest.manifolds.doubly_stochastic import DoublyStochastic, SymmetricDoublyStochastic
from steepest.manifolds.euclidean import Euclidean
from steepest.manifolds.fixed_rank import FixedRank
from steepest.manifolds.fixed_rank_embedded import FixedRankEmbedded
from steepest.manifolds.flag import Flag
from steepest.manifolds.generalized_stiefel import GeneralizedStiefel
from steepest.manifolds.grassmann import Grassmann
from steepest.manifolds.indefinite_stiefel import IndefiniteStiefel
from steepest.manifolds.oblique import Oblique
from steepest.manifolds.orthogonal import Orthogonal, SpecialOrthogonal, Unitary
from steepest.manifolds.product import Product
from steepest.manifolds.psd_fixed_rank import PSDFixedRank
from steepest.manifolds.spd import (
    SPD,
    AffineInvariant,
    AlphaProcrustes,
    BuresWasserstein,
    KernelMetric,
    LogCholesky,
    LogEuclidean,
    MeanKernel,
    PowerDeformed,
    SPDMetric,
)
from steepest.manifolds.spd_coupling import SPDCoupling
from steepest.manifolds.spectral_ball import SpectralBall, SpectralSphere
from steepest.manifolds.sphere import Sphere
from steepest.manifolds.stiefel import Stiefel
from steepest.manifolds.symplectic_stiefel import SymplecticStiefel
from steepest.manifolds.tucker import Tucker

__all__ = [
    "SPD",
    "AffineInvariant",
    "AlphaProcrustes",
    "BuresWasserstein",
    "Correlation",
    "DoublyStochastic",
    "Euclidean",
    "FixedRank",
    "FixedRankEmbedded",
    "Flag",
    "GeneralizedStiefel",
    "Grassmann",
    "IndefiniteStiefel",
    "KernelMetric",
    "LogCholesky",
    "LogEuclidean",
    "Manifold",
    "MeanKernel",
    "Oblique",
    "Orthogonal",
    "PSDFixedRank",
    "PowerDeformed",
    "Product",
    "SPDCoupling",
    "SPDMetric",
    "SpecialOrthogonal",
    "SpectralBall",
    "SpectralSphere",
    "Sphere",
    "Stiefel",
    "SymmetricDoublyStochastic",
    "SymplecticStiefel",
    "Tucker",
    "Unitary",
]
