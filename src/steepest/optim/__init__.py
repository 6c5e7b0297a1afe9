"""Optimisers; one engine, and one file = one family of names."""

from steepest.optim.adagrad import Adagrad
from steepest.optim.adam import Adam, AdamW, AMSGrad
from steepest.optim.clip import clip_grad_norm_
from steepest.optim.composed import Composed
from steepest.optim.constrain import Constraint, constrain, constraints
from steepest.optim.engine import OPTIMIZERS, Optimizer
from steepest.optim.groups import param_groups
from steepest.optim.matrix_optimizer import MatrixOptimizer
from steepest.optim.muon import Muon
from steepest.optim.sgd import SGD
from steepest.optim.shampoo import Shampoo

__all__ = [
    "OPTIMIZERS",
    "SGD",
    "AMSGrad",
    "Adagrad",
    "Adam",
    "AdamW",
    "Composed",
    "Constraint",
    "MatrixOptimizer",
    "Muon",
    "Optimizer",
    "Shampoo",
    "clip_grad_norm_",
    "constrain",
    "constraints",
    "param_groups",
]
