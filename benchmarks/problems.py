"""Inputs of the primitives, and what each must give, by formulas of numpy and scipy in float64.

The formulas are not those of any library here: symmetric square roots where libraries take Cholesky factors, matrix
exponentials in the ambient space where they take blocks, principal angles by scipy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import scipy.linalg

LR = 0.1
"""Of the steps; the gradients have length 10, so that the steps have about length one."""

SPD_SIZES = ((1, 10), (1, 100), (256, 10), (64, 32), (16, 64), (10000, 2), (10000, 3))
TALL_SIZES = ((1, 100, 10), (64, 100, 10), (1, 1000, 50))
OPERATIONS = {
    "SPD": ("exp", "log", "dist", "rgrad_retr", "transport"),
    "Stiefel": ("proj_retr", "exp", "log", "dist"),
    "Stiefel canonical": ("proj_retr", "exp", "log", "dist"),
    "Grassmann": ("proj_retr", "exp", "log", "dist"),
}
TOLERANCES = {"float32": 2e-3, "float64": 1e-6}

Array = np.ndarray


@dataclass(frozen=True)
class Cell:
    """An operation on `size[0]` matrices of one shape; a single one is given without batch dimension."""

    manifold: str
    op: str
    size: tuple[int, ...]
    dtype: str

    def __str__(self) -> str:
        return f"{self.manifold} | {self.op} | {'x'.join(map(str, self.size))} | {self.dtype}"


def cells() -> list[Cell]:
    return [
        Cell(manifold, op, size, dtype)
        for manifold, ops in OPERATIONS.items()
        for op in ops
        for size in (SPD_SIZES if manifold == "SPD" else TALL_SIZES)
        for dtype in TOLERANCES
    ]


def inputs(cell: Cell) -> tuple[Array, ...]:
    """The arguments of the operation, rounded to the cell's precision."""
    return tuple(a.astype(cell.dtype) for a in _problem(cell.manifold, cell.size)[cell.op][0])


def judge(cell: Cell, evidence: tuple[Array, str]) -> dict[str, Any]:
    """Relative error of a result, the worst of the batch, and what to note of it."""
    result, dtype = evidence
    arguments, oracle = _problem(cell.manifold, cell.size)[cell.op]
    if cell.manifold == "Grassmann":
        result, oracle = (_represent(cell.op, arguments[0], a) for a in (result, oracle))
    if result.size != oracle.size:
        return {"error": math.inf, "note": f"shape {result.shape}"}
    axes = () if cell.op == "dist" else (-2, -1)
    distance, size = (np.sqrt((a**2).sum(axes)) for a in (result.reshape(oracle.shape) - oracle, oracle))
    error = float(f"{np.max(distance / size):.1e}")
    return {"error": error if error == error else math.inf} | ({"note": dtype} if dtype != cell.dtype else {})


def wrong(cell_dtype: str, error: float) -> bool:
    return not error <= TOLERANCES[cell_dtype]


def _represent(op: str, x: Array, a: Array) -> Array:
    """What does not depend on the bases: projectors, and tangent vectors of these."""
    if op == "dist" or a.shape[-1] == a.shape[-2]:
        return a
    return a @ _t(a) if op != "log" else a @ _t(x) + x @ _t(a)


# The manifolds. -------------------------------------------------------------------------------------------------------


@cache
def _problem(manifold: str, size: tuple[int, ...]) -> dict[str, tuple[tuple[Array, ...], Array]]:
    """For each operation its arguments and result."""
    rng = np.random.default_rng(0)
    shape = size[1:] if size[0] == 1 else size
    return {"SPD": _spd, "Grassmann": _grassmann}.get(manifold, _stiefel)(rng, shape, manifold)


def _spd(rng: np.random.Generator, shape: tuple[int, ...], _: str) -> dict[str, Any]:
    shape = (*shape, shape[-1])
    x, y = _conditioned(rng, shape), _conditioned(rng, shape)
    root, inverse = _function(x, np.sqrt), _function(x, lambda w: w**-0.5)
    s, h = (_unit(a + _t(a)) for a in rng.normal(size=(2, *shape)))
    v, g = root @ s @ root, inverse @ h @ inverse / LR
    between = inverse @ y @ inverse
    step = -LR * x @ g @ x
    e = root @ _function(between, np.sqrt) @ inverse
    return {
        "exp": ((x, v), root @ _function(s, np.exp) @ root),
        "log": ((x, y), root @ _function(between, np.log) @ root),
        "dist": ((x, y), np.sqrt((np.log(np.linalg.eigvalsh(between)) ** 2).sum(-1))),
        "rgrad_retr": ((x, g), x + step + step @ np.linalg.solve(x, step) / 2),
        "transport": ((x, y, v), e @ v @ _t(e)),
    }


def _conditioned(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Of condition number 32."""
    q = np.linalg.qr(rng.normal(size=shape))[0]
    return (q * np.logspace(-0.75, 0.75, shape[-1])) @ _t(q)


def _function(a: Array, f: Any) -> Array:
    w, v = np.linalg.eigh((a + _t(a)) / 2)
    return (v * f(w)[..., None, :]) @ _t(v)


def _stiefel(rng: np.random.Generator, shape: tuple[int, ...], manifold: str) -> dict[str, Any]:
    beta = 0.5 if manifold == "Stiefel canonical" else 1.0
    x = np.linalg.qr(rng.normal(size=shape))[0]
    v, g = rng.normal(size=(2, *shape))
    v = v - x @ (_t(x) @ v + _t(v) @ x) / 2
    v = v / _length(x, v, beta)[..., None, None]
    g = _unit(g) / LR
    y = _geodesic(x, v, beta)
    return {
        "proj_retr": ((x, g), _cayley(x, g) if beta == 0.5 else _qr_step(x, g)),
        "exp": ((x, v), y),
        "log": ((x, y), v),
        "dist": ((x, y), _length(x, v, beta)),
    }


def _length(x: Array, v: Array, beta: float) -> Array:
    """Root of tr V^T (I - (1 - beta) X X^T) V."""
    a = _t(x) @ v
    return np.sqrt((v**2).sum((-2, -1)) - (1 - beta) * (a**2).sum((-2, -1)))


def _geodesic(x: Array, v: Array, beta: float) -> Array:
    """expm(V X^T - X V^T - (2 - 2 beta) X A X^T) X expm((1 - 2 beta) A), the first in a basis of x and v."""
    a = _t(x) @ v
    q = np.linalg.qr(np.concatenate([x, v], -1))[0]
    qx, qv = _t(q) @ x, _t(q) @ v
    turn = qv @ _t(qx) - qx @ _t(qv) - (2 - 2 * beta) * qx @ a @ _t(qx)
    return q @ scipy.linalg.expm(turn) @ qx @ scipy.linalg.expm((1 - 2 * beta) * a)


def _qr_step(x: Array, g: Array) -> Array:
    xg = _t(x) @ g
    q, r = np.linalg.qr(x - LR * (g - x @ (xg + _t(xg)) / 2))
    return q * np.sign(np.diagonal(r, axis1=-2, axis2=-1))[..., None, :]


def _cayley(x: Array, g: Array) -> Array:
    """(I - W/2)^-1 (I + W/2) X with the skew W = -lr (G X^T - X G^T) of size n (Wen and Yin 2013)."""
    half = -LR / 2 * (g @ _t(x) - x @ _t(g))
    eye = np.eye(half.shape[-1])
    return np.linalg.solve(eye - half, (eye + half) @ x)


def _grassmann(rng: np.random.Generator, shape: tuple[int, ...], _: str) -> dict[str, Any]:
    x = np.linalg.qr(rng.normal(size=shape))[0]
    v, g = rng.normal(size=(2, *shape))
    v = _unit(v - x @ (_t(x) @ v))
    u, s, wt = np.linalg.svd(v, full_matrices=False)
    end = (x @ _t(wt) * np.cos(s)[..., None, :] + u * np.sin(s)[..., None, :]) @ wt
    y = end @ np.linalg.qr(rng.normal(size=(*shape[:-2], shape[-1], shape[-1])))[0]
    xy = _t(x) @ y
    u, tangent, wt = np.linalg.svd(_t(np.linalg.solve(_t(xy), _t(y - x @ xy))), full_matrices=False)
    g = _unit(g) / LR
    return {
        "proj_retr": ((x, g), np.linalg.qr(x - LR * (g - x @ (_t(x) @ g)))[0]),
        "exp": ((x, v), end),
        "log": ((x, y), (u * np.arctan(tangent)[..., None, :]) @ wt),
        "dist": ((x, y), np.sqrt((_angles(x, y) ** 2).sum(-1))),
    }


def _angles(x: Array, y: Array) -> Array:
    if x.ndim == 2:
        return scipy.linalg.subspace_angles(x, y)
    return np.stack([scipy.linalg.subspace_angles(a, b) for a, b in zip(x, y, strict=True)])


def _t(a: Array) -> Array:
    return np.swapaxes(a, -2, -1)


def _unit(a: Array) -> Array:
    return a / np.sqrt((a**2).sum((-2, -1), keepdims=True))
