"""Transforms of coordinates and their chain; one file = one idea."""

from steepest.transforms.adagrad_scale import AdagradScale
from steepest.transforms.adam_scale import AdamScale
from steepest.transforms.base import Chain, Context, Transform, chain
from steepest.transforms.clip_norm import ClipNorm
from steepest.transforms.dualize import Dualize
from steepest.transforms.momentum import Momentum
from steepest.transforms.named import Named
from steepest.transforms.precondition import Precondition
from steepest.transforms.shape_scale import ShapeScale
from steepest.transforms.weight_decay import WeightDecay

__all__ = [
    "AdagradScale",
    "AdamScale",
    "Chain",
    "ClipNorm",
    "Context",
    "Dualize",
    "Momentum",
    "Named",
    "Precondition",
    "ShapeScale",
    "Transform",
    "WeightDecay",
    "chain",
]
