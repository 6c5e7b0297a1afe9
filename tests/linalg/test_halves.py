"""Products in strips are the products."""

from __future__ import annotations

import pytest
import torch

from steepest.linalg import halves


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("size", [1, 4, 5, 11])
@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
def test_strips_give_the_whole(
    batch: tuple[int, ...], size: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(halves, "LARGE", 1)
    generator = torch.Generator().manual_seed(0)
    y, x = (torch.randn(*batch, size, k, generator=generator, dtype=dtype) for k in (7, 6))
    q, t = torch.randn(2, *batch, size, size, generator=generator, dtype=dtype).triu()
    for found, expected in (
        (halves.gram(y), y @ y.mH),
        (halves.gram(y.mT.contiguous().mT), y @ y.mH),
        (halves.gram(q.mH, lower=True), q.mH @ q),
        (halves.upper_product(q, x), q @ x),
        (halves.upper_product(q, t, upper=True), q @ t),
    ):
        torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-13)
