"""What preconditioners that are fitted on a Lie group share: PSGD's criterion, its units, its schedule, its draws."""

from __future__ import annotations

import abc
import dataclasses
import math
import zlib
from typing import Any

import torch
from torch import Tensor

from steepest.checks import check_range
from steepest.transforms.base import Context, State, Transform

BOUND = 1e4
"""What is fitted to has no larger entries, in units in which the whitened ones are about 1: larger ones say no more,
and their squares must not overflow float32."""


@dataclasses.dataclass(frozen=True)
class Whiten(Transform):
    """P h with P = Q^H Q, where Q is in a group of matrices and moves along it so that P h becomes white.

    With v standard normal and independent of the gradient g, the P of least E[g^H P g + v^H P^-1 v] among all has
    E[(P g)(P g)^H] = I: it is E[g g^H]^(-1/2). Each update is one step downhill, Q <- Q - (lr / L) E Q, with E the
    gradient of the criterion in the group's own coordinates, so that Q stays in the group and never has to be inverted,
    and L = max(beta L + (1 - beta) |E|, |E|), |E| a bound of its size.

    Args:
        lr: of Q; the share of itself by which Q may change in one step.
        beta: factor of the average L.
        damping: standard deviation of the noise that is added to g where Q is fitted, together with the rounding error
            of g, so that P has no eigenvalue beyond 1 / damping.
        momentum: factor of the average m of h that P is applied to; the average is a plain mean at first.
        of: what is whitened, that is what Q is fitted to: "gradient" (h) or "momentum" (m).
        every: Q is updated at the first and then at every such step.
        warmup: Q is updated at each of so many first steps. Then the rate falls by a factor e in every 2 warmup steps,
            until it is one in `every`: with 500 and 33 it is the schedule of most trainings with PSGD.
        initial: Q starts as this number times the identity; by default it is what brings the first gradient that is not
            zero to entries of about 1, by the mean of their fourth powers.
        seed: of all draws. They depend on the number of the step and the block's shape besides, not on the point.

    A gradient that is all zero says nothing about the covariance, and leaves Q as it is.

    Every point has a Q of its own, and first scale of its own: the authors' code takes one first scale for all of its
    parameters. State: Q's parts in units of that scale ("unit", of P), which take no part in overflow.

    Li 2015 (1512.04202), 2022 (2211.04422) and Pooladzandi and Li 2024 (2402.04553), by the authors' code of 2025,
    whose defaults these are.
    """

    lr: float = 0.1
    beta: float = 0.9
    damping: float = 1e-9
    momentum: float = 0.0
    of: str = "gradient"
    every: int = 1
    warmup: int = 0
    initial: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_range("lr", self.lr, 0, 0.5)
        check_range("beta", self.beta, 0, 1, open_high=True)
        check_range("damping", self.damping)
        check_range("momentum", self.momentum, 0, 1, open_high=True)
        check_range("every", self.every, 1)
        check_range("warmup", self.warmup)
        if self.initial is not None:
            check_range("initial", self.initial, open_low=True)
        if self.of not in ("gradient", "momentum"):
            raise ValueError(f"of: got {self.of!r}, expected 'gradient' or 'momentum'")

    @property
    def carried(self) -> Any:
        """The average, if there is one."""
        return ("average",) if self.momentum else ()

    def init(self, h: Tensor, ctx: Context) -> State:
        """Q = I in a unit that is not known yet."""
        x = self._matrix(h, ctx)
        state = {"average": torch.zeros_like(h)} if self.momentum else {}
        return state | {"unit": x.real.new_zeros(x.shape[:-2])} | self._start(x)

    def update(self, h: Tensor, state: State, ctx: Context) -> Tensor:
        """The whitened block."""
        m = self._averaged(h, state, ctx)
        if self.is_due(ctx.step):
            self.fit(m if self.of == "momentum" else h, state, ctx)
        return self._apply(self._matrix(m, ctx) * across(state["unit"]), state).reshape(h.shape)

    def fit(self, h: Tensor, state: State, ctx: Context, v: Tensor | None = None) -> None:
        """Move Q one step, so that P whitens h; or, where h is a Hessian's product with a standard normal v, towards
        the P of least E[h^H P h + v^H P^-1 v], which is the inverse of the Hessian's modulus."""
        x, pair = self._matrix(h, ctx), None if v is None else self._matrix(v, ctx)
        peak = x.abs().amax((-2, -1))
        alive = (peak > 0) & peak.isfinite()
        unit = state["unit"]
        unit.copy_(torch.where(alive & (unit == 0), self._first_unit(x, peak, pair), unit))
        x = x * across(unit)
        noise = self._normal(x.shape[-2:], x, ctx.step, "noise")
        eps = torch.finfo(x.dtype).eps
        noisy = torch.addcmul(x, x.abs().mul_(eps).add_(across(self.damping * unit)), noise)
        self._fit(noisy, noise, pair, alive, state, ctx.step)

    def is_due(self, step: Any) -> bool:
        """Whether Q is updated at this step, counted from 1."""
        return self.every == 1 or bool(self.updates(step) > self.updates(step - 1))

    def updates(self, step: Any) -> Any:
        """How many updates there are up to this step: the integral of their rate, rounded down. A step that is compiled
        is a tensor, and so is this then."""
        if not self.warmup:
            return (step + self.every - 1) // self.every
        t = step if isinstance(step, Tensor) else torch.tensor(step, dtype=torch.float64, device="cpu")
        fall = 2 * self.warmup
        bottom = self.warmup + fall * math.log(self.every)
        falling = -fall * torch.expm1((self.warmup - t.clamp(self.warmup, bottom)) / fall)
        count = (t.clamp_max(self.warmup) + falling + (t - bottom).clamp_min(0) / self.every).floor()
        return count if isinstance(step, Tensor) else int(count)

    # What the groups differ in. ---------------------------------------------------------------------------------------

    @abc.abstractmethod
    def _matrix(self, h: Tensor, ctx: Context) -> Tensor:
        """A block as `(*b, m, n)`."""

    @abc.abstractmethod
    def _start(self, x: Tensor) -> State:
        """Q = I, or near it, for such matrices, and zero for every L."""

    @abc.abstractmethod
    def _fit(self, x: Tensor, noise: Tensor, v: Tensor | None, alive: Tensor, state: State, step: Any) -> None:
        """Move Q, where alive; `noise` are the normal numbers in x, v those that x is a Hessian's product with."""

    @abc.abstractmethod
    def _apply(self, x: Tensor, state: State) -> Tensor:
        """P x."""

    # What they share. -------------------------------------------------------------------------------------------------

    def _averaged(self, h: Tensor, state: State, ctx: Context) -> Tensor:
        if not self.momentum:
            return h
        step: Any = ctx.step
        if isinstance(step, Tensor):
            return state["average"].lerp_(h, (1 / step).clamp_min(1 - self.momentum).to(h.dtype))
        return state["average"].lerp_(h, max(1 / step, 1 - self.momentum))

    def _first_unit(self, x: Tensor, peak: Tensor, v: Tensor | None) -> Tensor:
        """Of P, the square of that of Q; scaled for the fourth powers."""
        if self.initial is not None:
            return torch.full_like(peak, self.initial**2)
        tiny = torch.finfo(peak.dtype).tiny
        top = peak.clamp_min(max(self.damping, tiny))
        square = (x.abs() / across(top)).square_()
        fourth = square.square_().mean((-2, -1)) + (self.damping / top) ** 4
        size = 1.0 if v is None else v.abs().square().mean((-2, -1)).sqrt()
        return size / (top * fourth**0.25)

    def _rate(self, size: Tensor, alive: Tensor, smooth: Tensor) -> Tensor:
        """lr / L, and zero for what is not alive; `smooth`, L, moves on."""
        L = torch.maximum(smooth.lerp(size.to(smooth.dtype), 1 - self.beta), size)
        alive = alive & (L > 0)
        smooth.copy_(torch.where(alive, L, smooth))
        return torch.where(alive, self.lr / L, 0)

    def _normal(self, shape: Any, like: Tensor, step: Any, *key: str) -> Tensor:
        return normal(tuple(shape), like, self.seed, step, *key)


def normal(shape: tuple[int, ...], like: Tensor, seed: int, step: Any, *key: str) -> Tensor:
    """Standard normal numbers from a seed, a step, a name and the shape alone."""
    if isinstance(step, Tensor):
        drawn: Tensor = _compiled_normal(like, list(shape), seed, step, " ".join(key))
        return drawn
    generator = torch.Generator(like.device).manual_seed(zlib.crc32(f"{seed} {step} {' '.join(key)} {shape}".encode()))
    return torch.randn(shape, generator=generator, dtype=like.dtype, device=like.device)


@torch.library.custom_op("steepest::normal", mutates_args=())
def _compiled_normal(like: Tensor, shape: list[int], seed: int, step: Tensor, key: str) -> Tensor:
    """The same numbers to a compiler, which does not see that the step is a number, and so has nothing to do anew."""
    return normal(tuple(shape), like, seed, int(step), key)


@_compiled_normal.register_fake
def _(like: Tensor, shape: list[int], seed: int, step: Tensor, key: str) -> Tensor:
    return like.new_empty(shape)


def bounded(alive: Tensor, *parts: Tensor) -> Tensor:
    """Scale the parts in place, all by one factor, so that no entry is beyond `BOUND`. What is not finite becomes zero,
    and is no longer alive: see the return."""
    peak = torch.stack([p.abs().amax((-2, -1)) for p in parts]).amax(0)
    alive = alive & peak.isfinite()
    factor = torch.where(alive, (BOUND / peak).clamp_max(1), 0)
    for p in parts:
        p.mul_(across(factor)).nan_to_num_(0, 0, 0)
    return alive


def across(x: Tensor) -> Tensor:
    """A number for each matrix."""
    return x[..., None, None]
