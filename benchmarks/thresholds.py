"""The bounds of `steepest.linalg.dispatch`, measured anew: `python benchmarks/thresholds.py`.

For each bound, sizes around it, and how many times as long as the other the algorithm above the bound takes: above the
bound the numbers should exceed one, and below it they should not. CPU time of one thread, medians of interleaved runs.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import statistics
import time
from collections.abc import Callable, Iterator
from unittest.mock import patch

import torch
from torch import Tensor

from steepest import Muon
from steepest.linalg import cholesky_qr, dispatch, eigen, entire, products, qr, small, threads, triangular_inverse
from steepest.linalg.expm import taylor_exp
from steepest.optim import bucket

ROUNDS = 15
SECONDS = 0.05  # of each round, about


def gain(above: Callable[[], object], below: Callable[[], object], clock: Callable[[], float]) -> float:
    """Time of the algorithm below the bound over that of the one above it."""
    times: dict[Callable[[], object], list[float]] = {above: [], below: []}
    for run in times:
        run()
    for _ in range(ROUNDS):
        for run, found in times.items():
            count, start = 0, clock()
            while clock() - start < SECONDS / 10:
                run()
                count += 1
            found.append((clock() - start) / count)
    return statistics.median(times[below]) / statistics.median(times[above])


def spd(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    a = torch.randn(*shape, dtype=dtype)
    return a @ a.mT / shape[-1] + torch.eye(shape[-1], dtype=dtype)


Row = tuple[str, str, Callable[[], object], Callable[[], object]]


def rows() -> Iterator[Row]:
    for n, bound in dispatch.SMALL.items():
        for count in (bound // 4, bound, 4 * bound):
            x = spd(count, n, n)
            yield (
                f"SMALL[{n}]",
                f"{count}, eigh",
                lambda x=x: small.eigh(small.entries(x)),
                lambda x=x: torch.linalg.eigh(x),
            )
            product = lambda x=x: small.product(small.entries(x), small.entries(x))  # noqa: E731
            yield f"SMALL[{n}]", f"{count}, product", product, lambda x=x: x @ x
    for shape in ((10, 10), (30, 30), (40, 40), (2, 10, 10), (16, 10, 10), (64, 10, 10), (16, 64, 64)):
        for dtype in (torch.float64, torch.float32):
            x = spd(*shape, dtype=dtype)
            yield "EXPONENTIAL", f"{shape} {dtype}, exp", lambda x=x: taylor_exp(x), lambda x=x: _exp(x)
            by = entire._by_products, entire._by_eigenvectors
            yield "EXPONENTIAL", f"{shape} {dtype}, cos", lambda x=x, f=by: f[0](x), lambda x=x, f=by: f[1](x)
    for n, p in ((100, 10), (400, 16), (400, 32), (1000, 50), (128, 64)):
        y = torch.linalg.qr(torch.randn(n, p, dtype=torch.float64)).Q
        yield "(Cholesky)", f"{n} x {p}, over Householder", lambda y=y: cholesky_qr(y), lambda y=y: qr(y)
        L = torch.linalg.cholesky(y.mT @ y)
        inverse = lambda y=y, L=L: y @ triangular_inverse(L).mT  # noqa: E731
        yield "INVERSE, TALLNESS", f"{n} x {p}", inverse, lambda y=y, L=L: products.divide(y, L)

    for r in (2, 4, 8, 16, 32):
        h, s = torch.randn(8, 2048, r), torch.randn(8, r, r)
        yield "THIN", f"{r}", lambda h=h, s=s: h @ s, lambda h=h, s=s: (s.mT @ h.mT).mT
    for m, n in ((16, 16), (64, 64), (256, 64), (256, 128), (256, 256)):
        yield "BATCHED_UP_TO", f"{m} x {n}, Muon", _steps(m, n, 0), _steps(m, n, 2**20)


def _steps(m: int, n: int, bound: int) -> Callable[[], None]:
    """A step of 32 matrices, those in batches that have at most so many entries."""
    params = [torch.nn.Parameter(torch.randn(m, n)) for _ in range(32)]
    for p in params:
        p.grad = torch.randn_like(p)
    optimizer = Muon(params, lr=1e-4)
    with patch.object(bucket, "BATCHED_UP_TO", bound):
        optimizer.step()
    return optimizer.step


def _exp(x: Tensor) -> Tensor:
    w, v = eigen.eigh(x)
    return (v * w.exp().unsqueeze(-2)) @ v.mH


def in_threads() -> Iterator[Row]:
    for count, n in ((20, 10), (50, 10), (100, 10), (400, 10), (32, 32), (4, 48), (16, 64), (8, 128)):
        x = spd(count, n, n)
        yield "IN_THREADS", f"{count} x {n}", lambda x=x: _split(x), lambda x=x: torch.linalg.eigh(x)


def _split(x: Tensor) -> object:
    with patch.object(threads, "pays_in_threads", lambda _: True):
        return threads.over_threads(torch.linalg.eigh, x)


def main() -> None:
    torch.manual_seed(0)
    torch.set_grad_enabled(False)
    for name, size, above, below in rows():
        print(f"{name:18s} {size:40s} {gain(above, below, time.process_time):6.2f}", flush=True)
    if torch.get_num_threads() > 1:
        for name, size, above, below in in_threads():
            print(f"{name:18s} {size:40s} {gain(above, below, time.perf_counter):6.2f}  (wall)", flush=True)
    else:
        print("IN_THREADS: run it with OMP_NUM_THREADS=2 or more")


if __name__ == "__main__":
    main()
