"""Transforms of coordinates and their chain; one file = one idea."""

from steepest.transforms.adagrad_scale import AdagradScale
from steepest.transforms.adam_scale import AdamScale
from steepest.transforms.base import Chain, Context, Transform, chain, chain_of
from steepest.transforms.clip_norm import ClipNorm
from steepest.transforms.clip_rms import ClipRMS
from steepest.transforms.clip_value import ClipValue
from steepest.transforms.cosh_scale import CoshScale
from steepest.transforms.cross_whiten import CrossWhiten
from steepest.transforms.dualize import Dualize
from steepest.transforms.factored_scale import FactoredScale
from steepest.transforms.graft import Graft
from steepest.transforms.kron_whiten import KronWhiten
from steepest.transforms.limit_growth import LimitGrowth
from steepest.transforms.lion_momentum import LionMomentum
from steepest.transforms.low_rank import LowRank
from steepest.transforms.low_rank_polar import LowRankPolar
from steepest.transforms.low_rank_whiten import LowRankWhiten
from steepest.transforms.match_rms import MatchRMS
from steepest.transforms.momentum import Momentum
from steepest.transforms.named import Named
from steepest.transforms.neuron_scale import NeuronScale
from steepest.transforms.parameter_scale import ParameterScale
from steepest.transforms.polynomial import PolynomialPrecondition
from steepest.transforms.precondition import Precondition
from steepest.transforms.precondition_factored import PreconditionFactored
from steepest.transforms.quantized import Quantized
from steepest.transforms.restart import Restart
from steepest.transforms.rms_scale import RMSScale
from steepest.transforms.rotate import Rotate
from steepest.transforms.scale import Scale
from steepest.transforms.scale_channels import ScaleChannels
from steepest.transforms.scaled_residual import ScaledResidual
from steepest.transforms.shape_scale import ShapeScale
from steepest.transforms.sm3_scale import SM3Scale
from steepest.transforms.sparse_residual import SparseResidual
from steepest.transforms.spectral_clip import SpectralClip
from steepest.transforms.spectral_scale import SpectralScale
from steepest.transforms.subspace import Subspace
from steepest.transforms.tiled import Tiled
from steepest.transforms.weight_decay import WeightDecay

__all__ = [
    "AdagradScale",
    "AdamScale",
    "Chain",
    "ClipNorm",
    "ClipRMS",
    "ClipValue",
    "Context",
    "CoshScale",
    "CrossWhiten",
    "Dualize",
    "FactoredScale",
    "Graft",
    "KronWhiten",
    "LimitGrowth",
    "LionMomentum",
    "LowRank",
    "LowRankPolar",
    "LowRankWhiten",
    "MatchRMS",
    "Momentum",
    "Named",
    "NeuronScale",
    "ParameterScale",
    "PolynomialPrecondition",
    "Precondition",
    "PreconditionFactored",
    "Quantized",
    "RMSScale",
    "Restart",
    "Rotate",
    "SM3Scale",
    "Scale",
    "ScaleChannels",
    "ScaledResidual",
    "ShapeScale",
    "SparseResidual",
    "SpectralClip",
    "SpectralScale",
    "Subspace",
    "Tiled",
    "Transform",
    "WeightDecay",
    "chain",
    "chain_of",
]
