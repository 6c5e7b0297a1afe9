"""Optimisers; one engine, and one file = one family of names."""

from steepest.optim.adagrad import Adagrad
from steepest.optim.adam import Adam, AdamW, AMSGrad
from steepest.optim.adaptive_muon import AdaMuon, NorMuon
from steepest.optim.auon import AuON
from steepest.optim.clip import clip_grad_norm_
from steepest.optim.composed import Composed
from steepest.optim.conda import Conda
from steepest.optim.constrain import Constraint, constrain, constraints
from steepest.optim.dion import Dion
from steepest.optim.engine import OPTIMIZERS, Optimizer
from steepest.optim.groups import param_groups
from steepest.optim.matrix_optimizer import MatrixOptimizer, RoleOptimizer
from steepest.optim.muon import Muon
from steepest.optim.normalized import SCALE
from steepest.optim.options import MatrixShared, Shared
from steepest.optim.scion import Scion
from steepest.optim.sgd import SGD
from steepest.optim.shampoo import Shampoo
from steepest.optim.sign import Lion, SignSGD
from steepest.optim.spectra import Spectra
from steepest.optim.trust_region import TrustRegion
from steepest.optim.width import width_transfer

__all__ = [
    "OPTIMIZERS",
    "SCALE",
    "SGD",
    "AMSGrad",
    "AdaMuon",
    "Adagrad",
    "Adam",
    "AdamW",
    "AuON",
    "Composed",
    "Conda",
    "Constraint",
    "Dion",
    "Lion",
    "MatrixOptimizer",
    "MatrixShared",
    "Muon",
    "NorMuon",
    "Optimizer",
    "RoleOptimizer",
    "Scion",
    "Shampoo",
    "Shared",
    "SignSGD",
    "Spectra",
    "TrustRegion",
    "clip_grad_norm_",
    "constrain",
    "constraints",
    "param_groups",
    "width_transfer",
]
