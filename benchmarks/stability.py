"""How far exp(log) can be trusted: docs/stability.md, beside geoopt and geomstats on the same inputs.

For each manifold, points x and y = exp(x, v) at growing distance, or at growing condition number, are made in float64
and rounded to the precision under test. Every library computes exp(x, log(x, y)); a cell holds the largest distance or
condition number up to which the result is y to 1e-3 relative (float32) or 1e-8 (float64) for each of three seeds.

    python benchmarks/stability.py            # a few minutes; writes docs/stability.md
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

np.trapz = np.trapezoid  # geomstats 2.8 still imports the old name

import geomstats.geometry.full_rank_correlation_matrices as gs_correlation  # noqa: E402
import geomstats.geometry.spd_matrices as gs_spd  # noqa: E402
import geoopt  # noqa: E402
from geomstats.geometry.grassmannian import Grassmannian  # noqa: E402
from geomstats.geometry.hypersphere import Hypersphere  # noqa: E402
from geomstats.geometry.special_orthogonal import SpecialOrthogonal as GSRotations  # noqa: E402
from geomstats.geometry.stiefel import Stiefel as GSStiefel  # noqa: E402

from steepest import (  # noqa: E402
    SPD,
    Correlation,
    Grassmann,
    Oblique,
    Orthogonal,
    PSDFixedRank,
    SpecialOrthogonal,
    Sphere,
    Stiefel,
    Unitary,
)

PAGE = Path(__file__).parent.parent / "docs" / "stability.md"
SEEDS = 3
TOLERANCES = {torch.float32: 1e-3, torch.float64: 1e-8}
DISTANCES = (0.1, 0.3, 1, 2, 4, 6, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64)
ANGLES = tuple(round(f, 9) for f in (0.1, 0.5, 0.9, 0.99, 0.999, 0.9999, 1 - 1e-5, 1 - 1e-6, 1 - 1e-7))
CONDITIONS = tuple(10.0**k for k in range(1, 17))

HEAD = """# Stability

Written by `python benchmarks/stability.py`. The largest distance, angle or condition number at which exp(x, log(x, y))
returns to y, to 1e-3 relative in float32 and 1e-8 in float64, for each of three random pairs and all smaller values;
"none": not even at the smallest. A dash: the library has no such pair of operations.

| manifold | what grows | steepest f32 | geoopt f32 | geomstats f32 | steepest f64 | geoopt f64 | geomstats f64 |
|---|---|--:|--:|--:|--:|--:|--:|"""

RoundTrip = Callable[[torch.Tensor, torch.Tensor], Any]


@dataclass
class Row:
    """One line of the table."""

    name: str
    sweep: str
    """What grows: "distance" or "condition"."""
    grid: tuple[float, ...]
    points: Callable[[float, torch.Generator], tuple[torch.Tensor, torch.Tensor]]
    ours: Any
    peers: dict[str, RoundTrip] = field(default_factory=dict)
    unit: float = 1.0
    """The grid is in this unit, pi for angles."""

    def reach(self, trip: RoundTrip, dtype: torch.dtype) -> float | None:
        """The largest parameter up to which every seed returns; None where not even the first does."""
        best = None
        for value in self.grid:
            for seed in range(SEEDS):
                x, y = self.points(value * self.unit, torch.Generator().manual_seed(seed))
                kind = dtype.to_complex() if x.is_complex() else dtype
                error = self.error(trip, x.to(kind), y.to(kind))
                if not error <= TOLERANCES[dtype]:
                    return best
            best = value
        return best

    def error(self, trip: RoundTrip, x: torch.Tensor, y: torch.Tensor) -> float:
        try:
            back = torch.as_tensor(trip(x, y))
        except (RuntimeError, ValueError, ArithmeticError, np.linalg.LinAlgError):
            return math.inf
        target = self.ours.represent(y)
        if back.shape == y.shape:
            back = self.ours.represent(back)
        wide = torch.complex128 if target.is_complex() else torch.float64
        return ((back.to(wide) - target.to(wide)).norm() / target.to(wide).norm()).item()


def ours(m: Any) -> RoundTrip:
    return lambda x, y: m.exp(x, m.log(x, y))


def geoopt_trip(m: Any) -> RoundTrip:
    return lambda x, y: m.expmap(x, m.logmap(x, y))


def geomstats_trip(metric: Any, before: Callable = lambda x: x) -> RoundTrip:
    def trip(x, y):
        a, b = before(x).numpy(), before(y).numpy()
        return metric.exp(metric.log(b, a), a)

    return trip


def rotation(n: int, g: torch.Generator) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(n, n, generator=g, dtype=torch.float64))[0]


def conditioned(n: int):
    """Two matrices with the same condition number and independent bases."""

    def points(condition, g):
        w = torch.logspace(0, -math.log10(condition), n, dtype=torch.float64)
        q, r = rotation(n, g), rotation(n, g)
        return (q * w) @ q.mT, (r * w) @ r.mT

    return points


def shot(m: Any, shape: tuple[int, ...], dtype: torch.dtype = torch.float64, largest: str = "distance"):
    """x and exp(x, v) with |v| the distance asked for, or with its largest angle."""

    def points(distance, g):
        x = m.random_point(shape, generator=g, dtype=dtype)
        v = m.push(x, m.coords(x, m.random_tangent(x, generator=g)))
        size = torch.linalg.matrix_norm(v, 2) if largest == "angle" else m.norm(x, v)
        return x, m.exp(x, v * (distance / size))

    return points


def spread_correlation(n: int):
    """Two correlation matrices of a given condition number, in a random order of variables."""

    def points(condition, g):
        def one():
            w = torch.logspace(0, -math.log10(condition), n, dtype=torch.float64)
            q = rotation(n, g)
            return Correlation().project((q * w) @ q.mT)

        return one(), one()

    return points


def metric_of(space: Any, metric: Any) -> Any:
    space.equip_with_metric(metric)
    return space.metric


def rows() -> list[Row]:
    n = 5
    spd = gs_spd.SPDMatrices(n, equip=False)
    affine = {
        "geoopt": geoopt_trip(geoopt.SymmetricPositiveDefinite("AIM")),
        "geomstats": geomstats_trip(metric_of(gs_spd.SPDMatrices(n, equip=False), gs_spd.SPDAffineMetric)),
    }
    euclid = {"geomstats": geomstats_trip(metric_of(gs_spd.SPDMatrices(n, equip=False), gs_spd.SPDLogEuclideanMetric))}
    bures = {"geomstats": geomstats_trip(metric_of(spd, gs_spd.SPDBuresWassersteinMetric))}
    sphere = {
        "geoopt": geoopt_trip(geoopt.Sphere()),
        "geomstats": geomstats_trip(Hypersphere(n - 1).metric),
    }
    grassmann = {"geomstats": geomstats_trip(Grassmannian(n, 2).metric, lambda x: x @ x.mT)}
    canonical = {"geomstats": geomstats_trip(GSStiefel(8, 3).metric)}
    so = {"geomstats": geomstats_trip(GSRotations(n))}
    lec = gs_correlation.FullRankCorrelationMatrices(n, equip=False)
    cholesky = {"geomstats": geomstats_trip(metric_of(lec, gs_correlation.LogEuclideanCholeskyMetric))}
    out = []
    for metric, peers in (("affine-invariant", affine), ("log-euclidean", euclid), ("log-cholesky", {})):
        m = SPD(metric)
        out.append(Row(f"SPD, {metric}", "distance", DISTANCES, shot(m, (n, n)), m, peers))
        out.append(Row(f"SPD, {metric}", "condition", CONDITIONS, conditioned(n), m, peers))
    m = SPD("bures-wasserstein")
    out.append(Row("SPD, bures-wasserstein", "condition", CONDITIONS, conditioned(n), m, bures))
    out += [
        Row("Sphere", "distance / pi", ANGLES, shot(Sphere(), (n,)), Sphere(), sphere, math.pi),
        Row("Oblique", "angle / pi", ANGLES, columns, Oblique(), {}, math.pi),
        Row("Grassmann", "largest angle / (pi/2)", ANGLES, shot(Grassmann(), (n, 2), largest="angle"), Grassmann(),
            grassmann, math.pi / 2),
        Row("Stiefel, euclidean", "distance / pi", ANGLES, shot(Stiefel(), (8, 3)), Stiefel(), {}, math.pi),
        Row("Stiefel, canonical", "distance / pi", ANGLES, shot(Stiefel("canonical"), (8, 3)), Stiefel("canonical"),
            canonical, math.pi),
        Row("SpecialOrthogonal", "largest angle / pi", ANGLES, shot(SpecialOrthogonal(), (n, n), largest="angle"),
            SpecialOrthogonal(), so, math.pi),
        Row("Orthogonal", "largest angle / pi", ANGLES, shot(Orthogonal(), (n, n), largest="angle"), Orthogonal(), {},
            math.pi),
        Row("Unitary", "largest angle / pi", ANGLES, shot(Unitary(), (n, n), torch.complex128, "angle"), Unitary(), {},
            math.pi),
        Row("Correlation, log-euclidean-cholesky", "condition", CONDITIONS, spread_correlation(n), Correlation(),
            cholesky),
        Row("Correlation, quotient-affine", "condition", CONDITIONS, spread_correlation(n),
            Correlation("quotient-affine"), {}),
        Row("PSDFixedRank", "condition", CONDITIONS, low_rank, PSDFixedRank(), {}),
    ]  # fmt: skip
    return out


def columns(angle, g):
    """Unit columns, each turned by the angle."""
    x = Oblique().random_point((4, 3), generator=g, dtype=torch.float64)
    v = Oblique().random_tangent(x, generator=g)
    return x, Oblique().exp(x, v * (angle / v.norm(dim=0)))


def low_rank(condition, g):
    w = torch.logspace(0, -math.log10(condition) / 2, 2, dtype=torch.float64)
    return tuple((rotation(5, g)[:, :2] * w) @ rotation(2, g) for _ in range(2))


def cell(value: float | None) -> str:
    return "none" if value is None else f"{value:.8g}" if value < 1e4 else f"{value:.0e}"


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    lines = [HEAD]
    behind = []
    for row in rows():
        cells = []
        for dtype in TOLERANCES:
            mine = row.reach(ours(row.ours), dtype)
            others = {name: row.reach(trip, dtype) for name, trip in row.peers.items()}
            behind += [(row.name, row.sweep, dtype, k) for k, v in others.items() if (v or 0) > (mine or 0)]
            cells += [cell(mine), *(cell(others[k]) if k in others else "-" for k in ("geoopt", "geomstats"))]
        lines.append(f"| {row.name} | {row.sweep} | {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    lines += ["", "The largest values tried: distance 64, angle (1 - 1e-7) of its limit, condition number 1e16."]
    PAGE.write_text("\n".join(lines) + "\n")
    print(f"wrote {PAGE}; behind a peer in: {behind or 'no row'}")


if __name__ == "__main__":
    main()
