"""Batched dense linear algebra on `(*b, m, n)`: each function differentiable, each tested against an exact oracle."""

from steepest.linalg.cg import conjugate_gradient, least_squares
from steepest.linalg.expm import expm, low_rank_expm1
from steepest.linalg.kernel import sym_kernel
from steepest.linalg.lyapunov import lyapunov
from steepest.linalg.polar import SCHEDULES, orthogonalize, polar, soft_clip
from steepest.linalg.precision import double, widen
from steepest.linalg.qr import cholesky_qr, qr, triangular_inverse
from steepest.linalg.rotation import unitary_angles, unitary_log
from steepest.linalg.symmetric import (
    skew,
    sym,
    sym_angle_over_sine,
    sym_exp,
    sym_exp_derivative,
    sym_inv_sqrt,
    sym_log,
    sym_log_derivative,
    sym_power,
    sym_power_derivative,
    sym_sqrt,
)
from steepest.linalg.symmetric_polynomials import symmetric_preconditioner, symmetric_preconditioner_diagonal

__all__ = [
    "SCHEDULES",
    "cholesky_qr",
    "conjugate_gradient",
    "double",
    "expm",
    "least_squares",
    "low_rank_expm1",
    "lyapunov",
    "orthogonalize",
    "polar",
    "qr",
    "skew",
    "soft_clip",
    "sym",
    "sym_angle_over_sine",
    "sym_exp",
    "sym_exp_derivative",
    "sym_inv_sqrt",
    "sym_kernel",
    "sym_log",
    "sym_log_derivative",
    "sym_power",
    "sym_power_derivative",
    "sym_sqrt",
    "symmetric_preconditioner",
    "symmetric_preconditioner_diagonal",
    "triangular_inverse",
    "unitary_angles",
    "unitary_log",
    "widen",
]
