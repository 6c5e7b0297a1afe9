"""Matrix manifolds; one file = one manifold."""

from steepest.manifolds.base import Manifold
from steepest.manifolds.euclidean import Euclidean
from steepest.manifolds.fixed_rank import FixedRank
from steepest.manifolds.grassmann import Grassmann
from steepest.manifolds.oblique import Oblique
from steepest.manifolds.product import Product
from steepest.manifolds.spd import SPD
from steepest.manifolds.sphere import Sphere
from steepest.manifolds.stiefel import Stiefel

__all__ = ["SPD", "Euclidean", "FixedRank", "Grassmann", "Manifold", "Oblique", "Product", "Sphere", "Stiefel"]
