"""Batched dense linear algebra on `(*b, m, n)`: each function differentiable, each tested against an exact oracle."""

from steepest.linalg.expm import low_rank_expm1
from steepest.linalg.lyapunov import lyapunov
from steepest.linalg.polar import SCHEDULES, orthogonalize, polar
from steepest.linalg.precision import double, widen
from steepest.linalg.qr import cholesky_qr, qr, triangular_inverse
from steepest.linalg.symmetric import (
    skew,
    sym,
    sym_angle_over_sine,
    sym_exp,
    sym_inv_sqrt,
    sym_log,
    sym_power,
    sym_sqrt,
)

__all__ = [
    "SCHEDULES",
    "cholesky_qr",
    "double",
    "low_rank_expm1",
    "lyapunov",
    "orthogonalize",
    "polar",
    "qr",
    "skew",
    "sym",
    "sym_angle_over_sine",
    "sym_exp",
    "sym_inv_sqrt",
    "sym_log",
    "sym_power",
    "sym_sqrt",
    "triangular_inverse",
    "widen",
]
