"""The discrete cosine transform, an orthogonal basis that no gradient has to be asked for."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from steepest.linalg.autograd import plain


def dct(x: Tensor) -> Tensor:
    """The orthonormal transform of type II along the last axis of x `(*b, n)`: x `dct_matrix(n)`, through one FFT of n
    numbers (Makhoul 1980)."""
    n = x.shape[-1]
    if x.is_complex():
        return torch.complex(dct(x.real), dct(x.imag))
    order = torch.cat([torch.arange(0, n, 2), torch.arange(1, n, 2).flip(0)]).to(x.device)
    spectrum = torch.view_as_real(torch.fft.rfft(x.index_select(-1, order)))
    angle = -math.pi / (2 * n) * torch.arange(spectrum.shape[-2], device=x.device, dtype=torch.float64)
    cos, sin = ((f(angle) * math.sqrt(2 / n)).to(x.dtype) for f in (torch.cos, torch.sin))
    cos[0] *= math.sqrt(0.5)
    re, im = spectrum.unbind(-1)
    # of a real sequence the second half of the spectrum is the first one's conjugate, a quarter turn away
    half = slice(1, (n + 1) // 2)
    rest = (re[..., half] * -sin[half]).sub_(im[..., half] * cos[half]).flip(-1)
    return torch.cat([(re * cos).sub_(im * sin), rest], -1)


def dct_matrix(n: int, like: Tensor) -> Tensor:
    """The orthogonal D `(n, n)` with `dct(x)` = x D, of the dtype and on the device of `like`: column k is the cosine
    of k half waves. One is kept for each size, dtype and device."""
    if not plain(like) or torch.is_inference_mode_enabled():
        return _dct_matrix.__wrapped__(n, like.dtype, like.device)
    return _dct_matrix(n, like.dtype, like.device)


@lru_cache(maxsize=64)
def _dct_matrix(n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    k = torch.arange(n)
    quarters = (2 * k[:, None] + 1) * k % (4 * n)  # n of them make half a wave; exact, where the angle would round
    d = math.sqrt(2 / n) * torch.cos(math.pi / (2 * n) * quarters.double())
    d[:, 0] *= math.sqrt(0.5)
    return d.to(dtype).to(device)
