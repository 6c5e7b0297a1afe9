"""Which dtype a computation runs in."""

import torch
from torch import Tensor

_WIDER = {
    torch.bfloat16: torch.float32,
    torch.float16: torch.float32,
    torch.complex32: torch.complex64,
}


def widen(x: Tensor) -> Tensor:
    """x in the dtype in which it is computed with: float32 for the half precisions (complex64 for complex ones), its
    own otherwise."""
    return x.to(_WIDER[x.dtype]) if x.dtype in _WIDER else x


def double(x: Tensor) -> Tensor:
    """x in float64 (complex128), or in float32 (complex64) on a device that has no more (Apple's MPS)."""
    if is_double(x):
        return x
    if x.device.type == "mps":
        return x.to(torch.complex64 if x.is_complex() else torch.float32)
    return x.to(torch.complex128 if x.is_complex() else torch.float64)


def is_double(x: Tensor) -> bool:
    """Whether x has the digits of float64."""
    return x.dtype in (torch.float64, torch.complex128)


def rounded(x: Tensor, dtype: torch.dtype, generator: torch.Generator | None) -> Tensor:
    """x, for writing into a tensor of this dtype: float32 for bfloat16 comes, where there is a generator, with its last
    16 bits gone, up or down at random with the mean at x; all else as it is, for torch to round to the nearest."""
    if generator is None or dtype != torch.bfloat16 or x.dtype != torch.float32:
        return x
    bits, last = x.view(torch.int32), (1 << 16) - 1
    noise = torch.randint(1 << 16, bits.shape, generator=generator, dtype=bits.dtype, device=bits.device)
    drawn = ((bits + noise) & ~last).view(torch.float32)
    drawn = torch.where(drawn.isfinite(), drawn, (bits & ~last).view(torch.float32))  # beyond the largest number
    return torch.where(x.isfinite(), drawn, x)
