"""Coordinate directions of matrix manifolds; one file = one kind of them."""

from steepest.solvers.coordinates.base import Coordinates, coordinates
from steepest.solvers.coordinates.entries import Entries
from steepest.solvers.coordinates.rows import Rows
from steepest.solvers.coordinates.spd import Congruences
from steepest.solvers.coordinates.symplectic import Transvections

__all__ = ["Congruences", "Coordinates", "Entries", "Rows", "Transvections", "coordinates"]
