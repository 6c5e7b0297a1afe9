"""What each library calls the operations of `problems`: tables of closures, each imported in a process of its own.

A table is keyed by manifold and operation; what it lacks, the library does not offer. Arguments come in the order of
`problems.inputs`, as arrays of the library's own kind.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from harness import Library, Offers, Trial
from problems import LR, Cell, inputs

Operation = Callable[..., Any]
Table = dict[tuple[str, str], Operation]


def offered(cell: Cell, tables: dict[str, Table], array: Callable[[np.ndarray], Any]) -> Offers:
    """The trials of those contenders whose table has the cell's operation."""
    key = (cell.manifold, cell.op)
    return {name: partial(_trial, table[key], cell, array) for name, table in tables.items() if key in table}


def _trial(operation: Operation, cell: Cell, array: Callable[[np.ndarray], Any]) -> Trial:
    call = partial(operation, *map(array, inputs(cell)))

    def evidence() -> tuple[np.ndarray, str]:
        result = np.asarray(call())
        return result.astype(np.float64), str(result.dtype)

    return Trial(call, evidence)


def alone() -> Any:
    """torch without gradients, in as many threads as the process has cores."""
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.set_num_interop_threads(1)
    torch.set_grad_enabled(False)
    return torch


def steepest() -> Callable[[Cell], Offers]:
    torch = alone()
    from steepest import SPD, Grassmann, Stiefel

    spd, retracted = SPD(), SPD(retraction="second_order")
    euclidean, canonical, grassmann = Stiefel(), Stiefel("canonical", retraction="cayley"), Grassmann()

    def table(step: Callable[[Any], Operation]) -> Table:
        return {
            ("SPD", "rgrad_retr"): step(retracted),
            ("Stiefel", "proj_retr"): step(euclidean),
            ("Stiefel canonical", "proj_retr"): step(canonical),
            ("Grassmann", "proj_retr"): step(grassmann),
        }

    public = table(lambda m: lambda x, g: m.retract(x, -LR * m.grad(x, g)))
    for name, m in (("SPD", spd), ("Stiefel", euclidean), ("Stiefel canonical", canonical), ("Grassmann", grassmann)):
        public |= {(name, op): getattr(m, op) for op in ("exp", "log", "dist", "transport")}

    def in_frame(m: Any) -> Operation:
        def step(x: Any, g: Any) -> Any:
            f = m.frame(x)
            return m._move(f, -LR * _each(m._pull(f, g)))

        return step

    return lambda cell: offered(cell, {"steepest": public, "steepest (as optimisers)": table(in_frame)}, torch.tensor)


class _each(tuple):
    """Blocks of coordinates, times a number."""

    def __new__(cls, h: Any) -> Any:
        return super().__new__(cls, h) if isinstance(h, tuple) else h

    def __rmul__(self, c: Any) -> tuple[Any, ...]:
        return tuple(c * block for block in self)


def geoopt() -> Callable[[Cell], Offers]:
    """`CanonicalStiefel.retr` is the Cayley step of a Euclidean gradient, to which its `egrad2rgrad` must not be
    applied: it would double the part within the span."""
    torch = alone()
    import geoopt as g

    spd, euclidean, canonical = g.SymmetricPositiveDefinite(), g.EuclideanStiefel(), g.CanonicalStiefel()
    table: Table = {
        ("SPD", "exp"): spd.expmap,
        ("SPD", "log"): spd.logmap,
        ("SPD", "dist"): spd.dist,
        ("SPD", "transport"): spd.transp,
        ("SPD", "rgrad_retr"): lambda x, g: spd.retr(x, -LR * spd.egrad2rgrad(x, g)),
        ("Stiefel", "exp"): euclidean.expmap,
        ("Stiefel", "proj_retr"): lambda x, g: euclidean.retr(x, -LR * euclidean.egrad2rgrad(x, g)),
        ("Stiefel canonical", "proj_retr"): lambda x, g: canonical.retr(x, -LR * g),
    }
    return lambda cell: offered(cell, {"geoopt": table}, torch.tensor)


def pymanopt() -> Callable[[Cell], Offers]:
    """Batches are product manifolds, whose `dist` is one number; `transport` of SPD is the identity."""
    from pymanopt.manifolds import Grassmann, Stiefel, SymmetricPositiveDefinite

    def table(cell: Cell) -> Table:
        k, *shape = cell.size
        kind = {"SPD": SymmetricPositiveDefinite, "Stiefel": Stiefel, "Grassmann": Grassmann}.get(cell.manifold)
        if kind is None:
            return {}
        m = kind(*shape, k=k)
        operations: dict[str, Operation] = {
            "exp": m.exp,
            "log": m.log,
            "dist": m.dist,
            "rgrad_retr": lambda x, g: m.retraction(x, -LR * m.euclidean_to_riemannian_gradient(x, g)),
            "proj_retr": lambda x, g: m.retraction(x, -LR * m.projection(x, g)),
            "transport": m.transport,
        }
        lacks = {("Stiefel", "log"), ("Stiefel", "dist")} | ({(cell.manifold, "dist")} if k > 1 else set())
        lacks |= {("Stiefel", "transport"), ("Grassmann", "transport")}
        return {(cell.manifold, op): f for op, f in operations.items() if (cell.manifold, op) not in lacks}

    return lambda cell: offered(cell, {"pymanopt": table(cell)}, np.array)


def _geomstats(backend: str, name: str, array: Callable[[], Callable]) -> Callable[[Cell], Offers]:
    """Points of Grassmann are projectors, whose distances are longer by sqrt 2; Stiefel has the canonical metric, and
    the projection of the other."""
    os.environ["GEOMSTATS_BACKEND"] = backend
    np.trapz = np.trapezoid  # geomstats 2.8 still imports the old name
    from geomstats.geometry.grassmannian import Grassmannian
    from geomstats.geometry.spd_matrices import SPDAffineMetric, SPDMatrices
    from geomstats.geometry.stiefel import Stiefel

    def spd(n: int) -> Table:
        space = SPDMatrices(n, equip=False)
        space.equip_with_metric(SPDAffineMetric)
        m = space.metric
        return _geodesics("SPD", m) | {
            ("SPD", "transport"): lambda x, y, v: m.parallel_transport(v, x, end_point=y),
        }

    def stiefel(n: int, p: int) -> Table:
        space = Stiefel(n, p)
        m = space.metric
        return _geodesics("Stiefel canonical", m) | {
            ("Stiefel", "proj_retr"): lambda x, g: m.retraction(-LR * space.to_tangent(g, x), x),
        }

    def grassmann(n: int, p: int) -> Table:
        m = Grassmannian(n, p).metric
        return _geodesics("Grassmann", m) | {("Grassmann", "dist"): lambda x, y: m.dist(x, y) / math.sqrt(2)}

    kinds = {
        "SPD": spd,
        "Stiefel": stiefel,
        "Stiefel canonical": stiefel,
        "Grassmann": grassmann,
    }
    convert = array()

    def offers(cell: Cell) -> Offers:
        if cell.manifold != "Grassmann":
            return offered(cell, {name: kinds[cell.manifold](*cell.size[1:])}, convert)
        return offered(cell, {name: kinds["Grassmann"](*cell.size[1:])}, _projectors(cell, convert))

    return offers


def _geodesics(manifold: str, m: Any) -> Table:
    """geomstats' order of arguments is the other one."""
    return {
        (manifold, "exp"): lambda x, v: m.exp(v, x),
        (manifold, "log"): lambda x, y: m.log(y, x),
        (manifold, "dist"): m.dist,
    }


def _projectors(cell: Cell, convert: Callable) -> Callable[[np.ndarray], Any]:
    """x and y as X X^T and Y Y^T; of a tangent vector V, the projector's V X^T + X V^T."""
    x = inputs(cell)[0]

    def array(a: np.ndarray) -> Any:
        point = cell.op != "exp" or a.tobytes() == x.tobytes()
        return convert(a @ _t(a) if point else a @ _t(x) + x @ _t(a))

    return array


def geomstats_numpy() -> Callable[[Cell], Offers]:
    return _geomstats("numpy", "geomstats numpy", lambda: np.array)


def geomstats_torch() -> Callable[[Cell], Offers]:
    return _geomstats("pytorch", "geomstats torch", lambda: alone().tensor)


def _pyriemann(name: str, array: Callable) -> Callable[[Cell], Offers]:
    """`exp_map_riemann` and `log_map_riemann` are the exponential and its inverse with these flags only."""
    from pyriemann.geometry.distance import distance_riemann
    from pyriemann.geometry.tangentspace import exp_map_riemann, log_map_riemann, transport_riemann

    table: Table = {
        ("SPD", "exp"): lambda x, v: exp_map_riemann(v, x, Cm12=True),
        ("SPD", "log"): lambda x, y: log_map_riemann(y, x, C12=True),
        ("SPD", "dist"): distance_riemann,
        ("SPD", "transport"): lambda x, y, v: transport_riemann(v, x, y),
    }
    return lambda cell: offered(cell, {name: table}, array)


def pyriemann_numpy() -> Callable[[Cell], Offers]:
    return _pyriemann("pyriemann numpy", np.array)


def pyriemann_torch() -> Callable[[Cell], Offers]:
    return _pyriemann("pyriemann torch", alone().tensor)


def jax_jit() -> Callable[[Cell], Offers]:
    """Not a library of manifolds: the formulas of steepest in jax.numpy, in the precision of the input, compiled."""
    import jax

    jax.config.update("jax_enable_x64", True)
    import jax.numpy as jnp
    from jax.lax.linalg import cholesky, triangular_solve
    from jax.scipy.linalg import expm

    def spectral(a: Any, f: Callable) -> Any:
        w, v = jnp.linalg.eigh(a)
        return (v * f(w)[..., None, :]) @ _t(v)

    def whitened(lower: Any, a: Any) -> Any:
        half = triangular_solve(lower, a, left_side=True, lower=True)
        return triangular_solve(lower, half, left_side=False, lower=True, transpose_a=True)

    def pushed(lower: Any, h: Any) -> Any:
        return lower @ h @ _t(lower)

    def spd_exp(x: Any, v: Any) -> Any:
        lower = cholesky(x)
        w, u = jnp.linalg.eigh(whitened(lower, v))
        half = lower @ (u * jnp.exp(w / 2)[..., None, :])
        return half @ _t(half)

    def spd_log(x: Any, y: Any) -> Any:
        lower = cholesky(x)
        return pushed(lower, spectral(whitened(lower, y), jnp.log))

    def spd_dist(x: Any, y: Any) -> Any:
        w = jnp.linalg.eigvalsh(whitened(cholesky(x), y))
        return jnp.sqrt((jnp.log(w) ** 2).sum(-1))

    def spd_step(x: Any, g: Any) -> Any:
        lower = cholesky(x)
        h = -LR * _t(lower) @ g @ lower
        return pushed(lower, jnp.eye(x.shape[-1], dtype=x.dtype) + h + h @ h / 2)

    def spd_transport(x: Any, y: Any, v: Any) -> Any:
        lower = cholesky(x)
        root = spectral(whitened(lower, y), jnp.sqrt)
        return pushed(lower, root @ whitened(lower, v) @ root)

    def orthonormal(y: Any) -> Any:
        lower = cholesky(_t(y) @ y)
        return triangular_solve(lower, y, left_side=False, lower=True, transpose_a=True)

    def stiefel_step(x: Any, g: Any) -> Any:
        xg = _t(x) @ g
        return orthonormal(x - LR * (g - x @ (xg + _t(xg)) / 2))

    def stiefel_exp(beta: float, x: Any, v: Any) -> Any:
        a = _t(x) @ v
        eye = jnp.broadcast_to(jnp.eye(a.shape[-1], dtype=x.dtype), a.shape)
        corner = -_t(v) @ v - (2 - 2 * beta) * a @ a
        generator = jnp.block([[(2 * beta - 1) * a, corner], [eye, a]])
        inner = expm(generator)[..., : a.shape[-1]]
        return jnp.concatenate([x, v], -1) @ (inner if beta == 0.5 else inner @ expm((1 - 2 * beta) * a))

    def cayley_step(x: Any, g: Any) -> Any:
        v = -LR * (g - x @ (_t(g) @ x))
        a = _t(x) @ v
        z = v - x @ a
        zz = _t(z) @ z
        n = jnp.eye(a.shape[-1], dtype=x.dtype) - a / 2 + zz / 4
        return x + _t(jnp.linalg.solve(_t(n), _t(v - x @ zz / 2)))

    def grassmann_step(x: Any, g: Any) -> Any:
        return orthonormal(x - LR * (g - x @ (_t(x) @ g)))

    def grassmann_exp(x: Any, v: Any) -> Any:
        w, u = jnp.linalg.eigh(_t(v) @ v)
        angle = jnp.sqrt(jnp.maximum(w, 0))[..., None, :]
        return x @ (u * jnp.cos(angle)) @ _t(u) + v @ (u * jnp.sinc(angle / math.pi)) @ _t(u)

    def grassmann_log(x: Any, y: Any) -> Any:
        u, s, wt = jnp.linalg.svd(_t(y) @ x)
        s = jnp.minimum(s, 1)[..., None, :]
        sine = jnp.sqrt((1 - s) * (1 + s))
        ratio = jnp.where(sine > 0, jnp.arctan2(sine, s) / jnp.where(sine > 0, sine, 1), 1)
        return (y @ u - x @ (_t(wt) * s)) @ (wt * _t(ratio))

    def grassmann_dist(x: Any, y: Any) -> Any:
        return jnp.sqrt((grassmann_log(x, y) ** 2).sum((-2, -1)))

    formulas: Table = {
        ("SPD", "exp"): spd_exp,
        ("SPD", "log"): spd_log,
        ("SPD", "dist"): spd_dist,
        ("SPD", "rgrad_retr"): spd_step,
        ("SPD", "transport"): spd_transport,
        ("Stiefel", "proj_retr"): stiefel_step,
        ("Stiefel", "exp"): partial(stiefel_exp, 1.0),
        ("Stiefel canonical", "proj_retr"): cayley_step,
        ("Stiefel canonical", "exp"): partial(stiefel_exp, 0.5),
        ("Grassmann", "proj_retr"): grassmann_step,
        ("Grassmann", "exp"): grassmann_exp,
        ("Grassmann", "log"): grassmann_log,
        ("Grassmann", "dist"): grassmann_dist,
    }

    def finished(f: Operation) -> Operation:
        compiled = jax.jit(f)
        return lambda *arguments: compiled(*arguments).block_until_ready()

    table = {key: finished(f) for key, f in formulas.items()}
    return lambda cell: offered(cell, {"jax.jit": table}, jnp.asarray)


def _t(a: Any) -> Any:
    return a.swapaxes(-2, -1)


def _quiet(load: Library) -> Library:
    return partial(_load_quietly, load)


def _load_quietly(load: Library) -> Callable[[Cell], Offers]:
    warnings.simplefilter("ignore")
    return load()


LIBRARIES: dict[str, Library] = {
    name: _quiet(load)
    for name, load in {
        "steepest": steepest,
        "geoopt": geoopt,
        "pymanopt": pymanopt,
        "geomstats numpy": geomstats_numpy,
        "geomstats torch": geomstats_torch,
        "pyriemann numpy": pyriemann_numpy,
        "pyriemann torch": pyriemann_torch,
        "jax.jit": jax_jit,
    }.items()
}
DISTRIBUTIONS = ("torch", "numpy", "scipy", "geoopt", "pymanopt", "geomstats", "pyriemann", "jax", "jaxlib")
