"""Subspaces in which an inner chain of transforms works; one file = one projector."""

from steepest.projectors.base import Moment, Projector
from steepest.projectors.correlated import Correlated
from steepest.projectors.cosine import Cosine
from steepest.projectors.gaussian import Gaussian
from steepest.projectors.one_head import OneHead
from steepest.projectors.online import Online
from steepest.projectors.power import Power
from steepest.projectors.principal import Principal

__all__ = ["Correlated", "Cosine", "Gaussian", "Moment", "OneHead", "Online", "Power", "Principal", "Projector"]
