"""Optimisers; one engine, and one file = one family of names."""

from steepest.optim.adafactor import Adafactor
from steepest.optim.adagrad import Adagrad
from steepest.optim.adam import Adam, AdamW, AMSGrad
from steepest.optim.adaptive_muon import AdaMuon, NorMuon
from steepest.optim.apollo import APOLLO, APOLLOMini
from steepest.optim.auon import AuON
from steepest.optim.bloop import Bloop
from steepest.optim.clip import clip_grad_norm_
from steepest.optim.coap import COAP
from steepest.optim.composed import Composed
from steepest.optim.conda import Conda
from steepest.optim.constrain import Constraint, constrain, constraints
from steepest.optim.cosine import DCTAdamW, Trion
from steepest.optim.dion import Dion
from steepest.optim.engine import OPTIMIZERS, Optimizer
from steepest.optim.fira import Fira
from steepest.optim.flora import FLORA
from steepest.optim.galore import GaLore, GaLorePlus
from steepest.optim.groups import param_groups
from steepest.optim.in_backward import step_in_backward
from steepest.optim.matrix_optimizer import MatrixOptimizer, RoleOptimizer
from steepest.optim.muon import Muon
from steepest.optim.normalized import SCALE
from steepest.optim.online_subspace_descent import OnlineSubspaceDescent
from steepest.optim.options import MatrixShared, Shared
from steepest.optim.psgd import PSGD
from steepest.optim.refactor import refactor_
from steepest.optim.scion import Scion
from steepest.optim.sgd import SGD
from steepest.optim.shampoo import Shampoo, Shampoo4bit, ShampooSquared
from steepest.optim.sign import Lion, SignSGD
from steepest.optim.sm3 import SM3
from steepest.optim.soap import SOAP
from steepest.optim.spectra import Spectra
from steepest.optim.trust_region import TrustRegion
from steepest.optim.variance_reduction import VarianceReduced
from steepest.optim.width import width_transfer

__all__ = [
    "APOLLO",
    "COAP",
    "FLORA",
    "OPTIMIZERS",
    "PSGD",
    "SCALE",
    "SGD",
    "SM3",
    "SOAP",
    "AMSGrad",
    "APOLLOMini",
    "AdaMuon",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "AuON",
    "Bloop",
    "Composed",
    "Conda",
    "Constraint",
    "DCTAdamW",
    "Dion",
    "Fira",
    "GaLore",
    "GaLorePlus",
    "Lion",
    "MatrixOptimizer",
    "MatrixShared",
    "Muon",
    "NorMuon",
    "OnlineSubspaceDescent",
    "Optimizer",
    "RoleOptimizer",
    "Scion",
    "Shampoo",
    "Shampoo4bit",
    "ShampooSquared",
    "Shared",
    "SignSGD",
    "Spectra",
    "Trion",
    "TrustRegion",
    "VarianceReduced",
    "clip_grad_norm_",
    "constrain",
    "constraints",
    "param_groups",
    "refactor_",
    "step_in_backward",
    "width_transfer",
]
