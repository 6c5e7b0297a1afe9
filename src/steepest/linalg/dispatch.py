"""From where on which algorithm is the faster one: every such bound of the library, and what was measured for it.

Measured on a 2-core AMD EPYC (Zen 3) with torch 2.13 and one thread; `python benchmarks/thresholds.py` measures around
each bound anew. They decide between algorithms of equal accuracy, so that a wrong bound costs time alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from steepest.linalg.autograd import plain

SMALL = {1: 1000, 2: 1000, 3: 2000}
"""Sizes of matrices that have closed forms, and the batches from which these are faster than LAPACK and BLAS: than
`eigh` from a third of that, than a product from about that."""


def is_small_batch(x: Tensor) -> bool:
    """Whether x is a batch of real matrices, to be evaluated alone, that is best worked off entry by entry."""
    rows, columns = x.shape[-2:]
    return (
        0 < rows <= 3
        and plain(x)
        and columns <= 2 * rows
        and x.numel() >= SMALL[rows] * rows * columns
        and x.dtype in (torch.float64, torch.float32)
    )


EXPONENTIAL = 2000
"""Entries from which the exponential of a Hermitian matrix is cheaper by products than by eigenvectors, at the norms of
steps: below, it is the number of calls to torch that counts, and from norm 10 on that of the squarings."""


def products_exponentiate(a: Tensor) -> bool:
    """Whether an entire function of the Hermitian a is cheaper by products of matrices than by eigenvectors."""
    return a.numel() >= EXPONENTIAL and not a.is_meta and not is_small_batch(a)


INVERSE = 40_000
"""Entries from which a tall matrix is divided by a triangular one faster by its inverse and a product, 1.2 to 2.8 times
from 1000 x 50 on; below, the second call costs more than the product gains, and so it does in a batch."""
TALLNESS = 4
"""Rows for each column from which that is so."""


def inverse_divides(x: Tensor) -> bool:
    """Whether x L^-H is faster as x times an inverse than as a triangular solution."""
    n, p = x.shape[-2:]
    return x.ndim == 2 and n * p >= INVERSE and n >= TALLNESS * p


IN_THREADS = 100_000
"""n^3 times the batch, for matrices of n columns, from which a second thread is worth its 50 us."""
WIDEST_IN_THREADS = 48
"""Columns up to which LAPACK's own threads are no help, and no rivals."""


def pays_in_threads(x: Tensor) -> bool:
    """Whether the factorisations of the batch x are faster in several threads."""
    n = x.shape[-1]
    return 2 <= n <= WIDEST_IN_THREADS and x.shape[:-2].numel() > 1 and x.numel() * n >= IN_THREADS


THIN = 8
"""Columns up to which a tall factor is multiplied from the side of its rows: with 4 that is 7 times faster, with 16 it
makes no difference."""


BATCHED_UP_TO = 2**15
"""Entries of a point up to which several step as one batch: 16 x 16 gains 15 times, 256 x 64 twice, and at 256 x 256
there is nothing to gain."""
BATCH = 2**18
"""Entries of such a batch, at most: what a step makes of it stays in a core's cache, and below the size from which an
allocator gives memory back to the system after every use."""
