"""What every norm must satisfy."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from steepest.linalg import skew
from steepest.norms import Norm
from steepest.testing.asserts import assert_close, dot, refuses_complex, scale

NORM_CHECKS: list[Callable[[Norm], None]] = []
"""Every check, in order."""

DTYPES = (torch.float64, torch.complex128)


def check_norm(norm: Norm) -> None:
    """Run every check."""
    for check in NORM_CHECKS:
        check(norm)


def _check(function: Callable[[Norm], None]) -> Callable[[Norm], None]:
    NORM_CHECKS.append(function)
    return function


def _inputs(norm: Norm, batch: tuple[int, ...] = ()) -> list[Any]:
    """Tall, wide and square matrices, real, and complex unless the norm refuses them; for a joint norm, blocks of
    Stiefel."""
    g = torch.Generator().manual_seed(0)
    shapes = [(6, 3), (4, 4)] if norm.joint else [(6, 3), (3, 6), (4, 4), (1, 1)]
    make = _stiefel_blocks if norm.joint else torch.randn
    real, complex_ = ([make(*batch, *s, generator=g, dtype=dtype) for s in shapes] for dtype in DTYPES)
    return real if refuses_complex(lambda: norm.dual(complex_[0])) else [*real, *complex_]


def _stiefel_blocks(*shape: int, **kwargs: Any) -> tuple[Tensor, Tensor]:
    """A skew and a horizontal block, from a random gradient at a random point."""
    x, g = torch.linalg.qr(torch.randn(shape, **kwargs))[0], torch.randn(shape, **kwargs)
    inside = x.mH @ g
    return skew(inside), g - x @ inside


@_check
def check_axioms(norm: Norm) -> None:
    """The value is a norm: homogeneous, zero at zero, subject to the triangle inequality."""
    for g in _inputs(norm):
        assert_close(norm.value(scale(g, -3.0)), 3 * norm.value(g), "not homogeneous", 1e-9)
        assert norm.value(scale(g, 0.0)).item() == 0, "not zero at zero"
        other = scale(tuple(b.flip(-1) for b in g) if isinstance(g, tuple) else g.flip(-1), 0.7)
        both = tuple(a + b for a, b in zip(g, other, strict=True)) if isinstance(g, tuple) else g + other
        assert norm.value(both) <= norm.value(g) + norm.value(other) + 1e-9, "breaks the triangle inequality"


@_check
def check_dual(norm: Norm) -> None:
    """dual(g) has norm one, descends, and no other matrix of norm one descends more."""
    for g in _inputs(norm):
        d = norm.dual(g)
        reward, slack = dot(g, d), 1e-8 if norm.exact else 0.5  # five Muon-grade steps: singular values in .67 to 1.2
        assert reward > 0, "dual(g) is no direction of ascent"
        assert norm.value(d) <= 1 + slack, f"dual(g) has norm {norm.value(d).item():.4f}"
        generator = torch.Generator().manual_seed(1)
        for _ in range(50):
            rival = _noise(g, generator)
            best = dot(g, rival) / norm.value(rival)
            assert best <= reward * (1 + slack), (
                f"another direction gives {best.item():.4f}, dual(g) {reward.item():.4f}"
            )


@_check
def check_edges(norm: Norm) -> None:
    """Zero stays zero; the scale of g does not matter; dtype and batch dimensions are kept."""
    for g, batched in zip(_inputs(norm), _inputs(norm, (2, 3)), strict=True):
        assert_close(norm.dual(scale(g, 0.0)), scale(g, 0.0), "dual(0) is not 0", 0)
        for factor in (1e-18, 1e18):
            assert_close(
                norm.dual(scale(g, factor)),
                norm.dual(g),
                f"dual({factor} g) is not dual(g)",
                1e-6 if norm.exact else 0.1,
            )
        whole = norm.dual(batched)
        element = tuple(b[1, 2] for b in batched) if isinstance(g, tuple) else batched[1, 2]
        part = tuple(b[1, 2] for b in whole) if isinstance(g, tuple) else whole[1, 2]
        assert_close(part, norm.dual(element), "dual of a batch", 1e-9 if norm.exact else 0.05)


@_check
def check_names(norm: Norm) -> None:
    """Frozen, and the same after JSON."""
    assert type(norm).__dataclass_params__.frozen, "a norm is frozen"  # type: ignore[attr-defined]
    assert Norm.from_spec(json.loads(json.dumps(norm.to_spec()))) == norm, "to_spec does not survive JSON"


def _noise(g: Any, generator: torch.Generator) -> Any:
    """A random matrix like g; for Stiefel's blocks a skew one and one in the span of g's."""
    if isinstance(g, Tensor):
        return torch.randn(g.shape, generator=generator, dtype=g.dtype)
    a = torch.randn(g[0].shape, generator=generator, dtype=g[0].dtype)
    mix = torch.randn(g[0].shape, generator=generator, dtype=g[0].dtype)
    return skew(a), g[1] @ mix
