"""Transforms of coordinates and their chain; one file = one idea."""

from steepest.transforms.adagrad_scale import AdagradScale
from steepest.transforms.adam_scale import AdamScale
from steepest.transforms.base import Chain, Context, Transform, chain, chain_of
from steepest.transforms.clip_norm import ClipNorm
from steepest.transforms.cosh_scale import CoshScale
from steepest.transforms.dualize import Dualize
from steepest.transforms.lion_momentum import LionMomentum
from steepest.transforms.low_rank_polar import LowRankPolar
from steepest.transforms.match_rms import MatchRMS
from steepest.transforms.momentum import Momentum
from steepest.transforms.named import Named
from steepest.transforms.neuron_scale import NeuronScale
from steepest.transforms.precondition import Precondition
from steepest.transforms.rms_scale import RMSScale
from steepest.transforms.scale import Scale
from steepest.transforms.shape_scale import ShapeScale
from steepest.transforms.spectral_clip import SpectralClip
from steepest.transforms.spectral_scale import SpectralScale
from steepest.transforms.weight_decay import WeightDecay

__all__ = [
    "AdagradScale",
    "AdamScale",
    "Chain",
    "ClipNorm",
    "Context",
    "CoshScale",
    "Dualize",
    "LionMomentum",
    "LowRankPolar",
    "MatchRMS",
    "Momentum",
    "Named",
    "NeuronScale",
    "Precondition",
    "RMSScale",
    "Scale",
    "ShapeScale",
    "SpectralClip",
    "SpectralScale",
    "Transform",
    "WeightDecay",
    "chain",
    "chain_of",
]
