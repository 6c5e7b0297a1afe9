"""State in 8 or 4 bits."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from steepest.checks import check_range
from steepest.linalg.autograd import plain
from steepest.manifolds.tensors import as_tuple
from steepest.norms.base import divide
from steepest.transforms.adam_scale import AdamScale
from steepest.transforms.base import Context, State, Transform, _init, _run
from steepest.transforms.factored_scale import FactoredScale
from steepest.transforms.momentum import Momentum
from steepest.transforms.wrapper import Wrapper

PARTS = ("codes", "scales", "like")
"""What is kept of a state tensor."""


@dataclasses.dataclass(frozen=True)
class Quantized(Wrapper):
    """The transform `inner`, whose state is kept as codes of 8 or 4 bits and is numbers only while a step is computed.

    A state tensor is cut into runs of `block` numbers, none over two batch elements. A run is kept as one scale, its
    entry of the largest modulus, and for each number the code of the level that is nearest to its quotient by the
    scale; a complex number is two. So the largest entry and zeros are exact, what has been read and is kept again does
    not change, and one that is large spoils its own run alone. Levels:

    - 8 bits: dynamic tree quantisation. With a sign the decade from 10^-(k+1) to 10^-k is cut into 2^(6-k) equal parts,
      for k = 0 to 6, whose middles are the levels, besides 0 and 1; state that is never negative (`positive`) has its
      decades cut into twice as many. The error is at most 0.0071 of the scale, with a sign, and 0.0036 without.
    - 4 bits: sign(x) x^2 for x in 16 equal steps from -1 to 1, the one next to zero from below moved to zero, and x^2
      from 0 to 1 without a sign. At most 0.125 and 0.065 of the scale.

    What is never negative is there to be divided by, and so is never rounded down to zero: its lowest level but zero
    reaches down to zero.

    Args:
        inner: any transform; its name is this one's, so that keys of state are `<inner>.<key>.codes`, `.scales` (in the
            precision of the state), and `.like`, a tensor without entries that tells shape and dtype.
        bits: 8, or 4, of which two codes share a byte.
        block: numbers to a scale; even.
        smallest: tensors with fewer numbers to a batch element, and those of integers, stay as they are.

    Dettmers, Lewis, Shleifer and Zettlemoyer 2022 (2110.02861), whose scales are without sign, so that of a largest
    entry below zero 0.7 % are lost whenever it is kept; Li, Chen and Zhu 2023 (2309.01507) on 4 bits and zero.
    """

    inner: Transform
    bits: int = 8
    block: int = 256
    smallest: int = 4096

    def __post_init__(self) -> None:
        object.__setattr__(self, "inner", Transform.from_spec(self.inner))
        if self.bits not in (4, 8):
            raise ValueError(f"bits: got {self.bits!r}, expected 8 or 4")
        check_range("block", self.block, 2)
        if self.block % 2:
            raise ValueError(f"block: got {self.block!r}, expected an even number, as two codes may share a byte")
        check_range("smallest", self.smallest, 1)

    @property
    def name(self) -> str:
        """The inner transform's."""
        return self.inner.name

    def init(self, h: Any, ctx: Context) -> State:
        """The inner transform's state, in codes."""
        fresh = _init(self.inner, h, ctx)
        if _coded(fresh):
            raise ValueError(f"inner: the state of {self.inner} is kept in codes already")
        state: State = {}
        batch = as_tuple(h)[0].ndim - ctx.ndim
        for key, value in fresh.items():
            if not (value.is_floating_point() or value.is_complex()) or value.shape[batch:].numel() < self.smallest:
                state[key] = value
                continue
            codes, scales = self._encoded(key, value, batch)
            like = value.new_empty((*value.shape[:batch], 0, *value.shape[batch:]))
            state |= {f"{key}.codes": codes, f"{key}.scales": scales, f"{key}.like": like}
        return state

    def update(self, h: Any, state: State, ctx: Context) -> Any:
        """The inner transform's step, with its state read before and kept after it, where it may have changed."""
        own = self.opened(state)
        h = _run(self.inner, h, {f"{self.name}.{key}": value for key, value in own.items()}, ctx)
        if not self.inner.idle(ctx):
            self.closed(own, state)
        return h

    @classmethod
    def examples(cls) -> list[Transform]:
        """State of both signs and of one, in 8 and in 4 bits; one that is too small for it."""
        tiny = {"block": 4, "smallest": 1}
        return [
            cls(AdamScale()),
            cls(AdamScale(), **tiny),
            cls(AdamScale(amsgrad=True), 4, **tiny),
            cls(Momentum(), 4, **tiny),
            cls(FactoredScale(), **tiny),
        ]

    def opened(self, state: State) -> State:
        """The inner transform's state, as numbers."""
        coded = _coded(state)
        parts = {f"{key}.{part}" for key in coded for part in PARTS}
        rest = {key: value for key, value in state.items() if key not in parts}
        return rest | {key: self._read(key, state) for key in coded}

    def _read(self, key: str, state: State) -> Tensor:
        """The numbers of one state tensor."""
        codes, scales, like = (state[f"{key}.{part}"] for part in PARTS)
        batch = scales.ndim - 1
        shape = like.shape[:batch] + like.shape[batch + 1 :]
        count = shape[batch:].numel() * (2 if like.is_complex() else 1)
        if self.bits == 4:
            codes = torch.stack([codes & 15, codes >> 4], -1).flatten(-2)
        levels, _ = _codebook(self.bits, key in self.inner.positive, scales)
        values = levels.index_select(0, codes.flatten().int()).reshape(codes.shape)
        runs = pad(values, (0, -codes.shape[-1] % self.block)).unflatten(-1, (-1, self.block))
        x = (runs * scales.unsqueeze(-1)).flatten(-2)[..., :count]
        return torch.view_as_complex(x.reshape(*shape, 2)) if like.is_complex() else x.reshape(shape)

    def closed(self, own: State, state: State) -> None:
        """Put the numbers in place of those that the codes stood for."""
        for key in _coded(state):
            codes, scales = self._encoded(key, own[key], state[f"{key}.scales"].ndim - 1)
            state[f"{key}.codes"].copy_(codes)
            state[f"{key}.scales"].copy_(scales)

    def _encoded(self, key: str, value: Tensor, batch: int) -> tuple[Tensor, Tensor]:
        """Codes `(*b, bytes)` and scales `(*b, runs)` of a tensor with so many batch dimensions."""
        x = torch.view_as_real(value.resolve_conj()) if value.is_complex() else value
        x = x.reshape(*value.shape[:batch], -1)
        runs = pad(x, (0, -x.shape[-1] % self.block)).unflatten(-1, (-1, self.block))
        low, high = runs.aminmax(dim=-1)
        scales = torch.where(-low > high, low, high)
        _, table = _codebook(self.bits, key in self.inner.positive, x)
        cells = _cells(divide(runs, scales.unsqueeze(-1)))
        codes = table.index_select(0, cells.flatten()).reshape(*scales.shape[:-1], -1)
        codes = codes[..., : x.shape[-1] + x.shape[-1] % 2]
        return (codes[..., ::2] | codes[..., 1::2] << 4 if self.bits == 4 else codes[..., : x.shape[-1]]), scales


def _coded(state: State) -> list[str]:
    """Keys of the state tensors that are kept in codes."""
    return [key.removesuffix(".codes") for key in state if key.endswith(".codes")]


def _codebook(bits: int, positive: bool, like: Tensor) -> tuple[Tensor, Tensor]:
    """The levels, ascending, in the dtype of `like`, and the code of each cell; both on its device."""
    make = _made if plain(like) else _made.__wrapped__
    return make(bits, positive, like.dtype, like.device)


@functools.cache
def _made(bits: int, positive: bool, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    x = torch.tensor(_levels(bits, positive), dtype=torch.float64)
    midpoints = (x[:-1] + x[1:]) / 2
    if positive:
        midpoints[0] = 0
    middles = (
        ((torch.arange(1 << KEPT, dtype=torch.int32) << 32 - KEPT) + (1 << 31 - KEPT)).view(torch.float32).double()
    )
    codes = torch.bucketize(middles, midpoints).to(torch.uint8)
    codes[[0, 1 << KEPT - 1]] = x.tolist().index(0.0)  # zero itself, of either sign
    return x.to(device, dtype), codes.to(device)


KEPT = 19
"""Leading bits of a float32, sign, exponent and ten of the mantissa, that choose a code: to look it up in a table is 40
times faster than to search it among the levels, and shifts the borders between them by a thousandth at most."""


def _cells(x: Tensor) -> Tensor:
    """The number of each entry's cell in the table."""
    return (x.to(torch.float32).view(torch.int32) >> 32 - KEPT) & (1 << KEPT) - 1


def _levels(bits: int, positive: bool) -> list[float]:
    if bits == 4:
        x = [i / 15 for i in range(0 if positive else -15, 16, 1 if positive else 2)]
        return [0.0 if -0.1 < v < 0 else v * abs(v) for v in x]
    levels = [0.0, 1.0]
    for k in range(7):
        parts = 2 ** (6 - k) * (2 if positive else 1)
        middles = [10.0**-k * (0.1 + 0.9 * (i + 0.5) / parts) for i in range(parts)]
        levels += middles if positive else [*middles, *(-v for v in middles)]
    return sorted(levels)
