"""Steepest descent under any norm, on any matrix manifold, for PyTorch."""

from steepest.manifolds import SPD, Euclidean, FixedRank, Grassmann, Manifold, Oblique, Product, Sphere, Stiefel
from steepest.optim import (
    SGD,
    Adagrad,
    Adam,
    AdamW,
    AMSGrad,
    Composed,
    Muon,
    Optimizer,
    Shampoo,
    clip_grad_norm_,
    constrain,
    param_groups,
)
from steepest.transforms import chain

__version__ = "0.1.0"

__all__ = [
    "SGD",
    "SPD",
    "AMSGrad",
    "Adagrad",
    "Adam",
    "AdamW",
    "Composed",
    "Euclidean",
    "FixedRank",
    "Grassmann",
    "Manifold",
    "Muon",
    "Oblique",
    "Optimizer",
    "Product",
    "Shampoo",
    "Sphere",
    "Stiefel",
    "chain",
    "clip_grad_norm_",
    "constrain",
    "param_groups",
]
