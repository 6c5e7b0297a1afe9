"""One run: any optimiser, a budget of tokens, and what is measured on the way."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steepest.compare import geometry as geometries
from steepest.compare import measure
from steepest.compare.corpus import Corpus
from steepest.compare.model import GPT
from steepest.compare.schedule import factor
from steepest.compare.settings import Settings
from steepest.runs.clock import seconds
from steepest.runs.settings import DTYPES

Build = Callable[[nn.Module, float], Any]
"""From a model and a learning rate to an optimiser, or a list of several: objects with `step()`, `zero_grad()`,
`param_groups` and `state`; where they have `train()` and `eval()`, these are called around evaluations."""

HOPELESS = 2.0
"""A held-out loss above this times its start ends a run early."""
SAMPLES = 20
"""Steps whose update is measured."""
BINS = 100
"""Points of the curve of the training loss, at most."""


class Diverged(ArithmeticError):
    """Training has left the numbers, or got worse than it began."""


def train(
    build: Build,
    settings: Settings,
    seed: int,
    lr: float,
    corpus: Corpus,
    *,
    geometry: str = "none",
    tick: Callable[[float], None] = lambda loss: None,
) -> dict[str, Any]:
    """Train a fresh model to the end of the budget and return the record of the run, which JSON can hold.

    Args:
        build: makes the optimiser; the schedule multiplies the learning rate of each of its groups.
        settings: of model, budget and schedule; its own seeds and optimisers do not count here.
        seed: of the model's start and of the order of the data.
        lr: passed to `build`.
        corpus: the text.
        geometry: "none" or "orthogonal", see `compare.geometry`.
        tick: called after each step with its training loss.

    Returns:
        `loss` is the held-out loss at the end, None if the run diverged, and `diverged` then says how. `timing` holds
        everything that differs from one run of the same to the next.
    """
    trainer = Trainer(build, settings, seed, lr, corpus, geometry)
    record: dict[str, Any] = {"lr": lr, "seed": seed, "diverged": None}
    try:
        for value in trainer.steps():
            tick(value)
    except Diverged as reason:
        record["diverged"] = str(reason)
    return record | trainer.record(finished=record["diverged"] is None)


class Trainer:
    """A model, its optimisers, and notes of every step."""

    def __init__(
        self, build: Build, settings: Settings, seed: int, lr: float, corpus: Corpus, geometry: str = "none"
    ) -> None:
        self.settings, self.seed, self.corpus = settings, seed, corpus
        self.device = torch.device(settings.device)
        torch.manual_seed(seed)  # of the model, and of optimisers that draw random numbers
        self.model = geometries.apply(geometry, fresh_model(settings, corpus))
        built = build(self.model, lr)
        self.optimizers: list[Any] = list(built) if isinstance(built, list | tuple) else [built]
        self.rates = [[group["lr"] for group in o.param_groups] for o in self.optimizers]
        self.held_out = [t.to(self.device) for t in corpus.held_out(settings.eval_tokens, settings.context)]
        self.losses: list[float] = []
        self.step_seconds: list[float] = []
        self.optimizer_seconds: list[float] = []
        self.curve: list[dict[str, float]] = []
        self.updates: list[dict[str, float]] = []

    def steps(self) -> Iterator[float]:
        """All steps with their evaluations; yields the training loss of each."""
        total, s = self.settings.steps, self.settings
        evaluated = {round(total * i / s.evaluations) for i in range(1, s.evaluations + 1)} | {total}
        self.evaluate()
        for step in range(total):
            self.step(step, measured=step * SAMPLES // total != (step - 1) * SAMPLES // total)
            if step + 1 in evaluated:
                self.evaluate()
            yield self.losses[-1]

    def step(self, step: int, measured: bool = False) -> None:
        """One step, and its notes."""
        s = self.settings
        x, y = (t.to(self.device) for t in self.corpus.batch(self.seed, step, s.batch_size, s.context))
        self.set_rates(factor(s.schedule, step, s.steps, s.warmup))
        before = measure.copies(self.model) if measured else {}
        clocks = [seconds(self.device)]
        loss = self.loss(x, y)
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        loss.backward()
        clocks.append(seconds(self.device))
        value = loss.item()
        if not math.isfinite(value):
            raise Diverged(f"the training loss was {value} at step {step + 1}")
        self.descend(step)
        clocks.append(seconds(self.device))
        self.losses.append(value)
        self.step_seconds.append(clocks[2] - clocks[0])
        self.optimizer_seconds.append(clocks[2] - clocks[1])
        if measured:
            self.updates.append({"tokens": (step + 1) * s.tokens_per_step} | measure.update_rms(self.model, before))

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Cross entropy of the next character, in nats."""
        return F.cross_entropy(self.model(x).float().flatten(0, 1), y.flatten())

    def set_rates(self, share: float) -> None:
        """Give every group its own learning rate times `share`."""
        for optimizer, rates in zip(self.optimizers, self.rates, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * share

    def descend(self, step: int) -> None:
        """Step the optimisers; an error that comes of numbers gone astray is a divergence, any other is passed on."""
        try:
            for optimizer in self.optimizers:
                optimizer.step()
        except (ValueError, RuntimeError) as error:  # torch's LinAlgError is a RuntimeError
            numerical = any(isinstance(e, torch.linalg.LinAlgError) for e in (error, error.__cause__))
            if numerical or not self.finite():
                raise Diverged(f"the optimiser could not make step {step + 1}: {error}") from error
            raise

    def finite(self) -> bool:
        """Whether all parameters and gradients are finite numbers."""
        tensors = [t for p in self.model.parameters() for t in (p, p.grad) if t is not None]
        return all(bool(t.isfinite().all()) for t in tensors)

    @torch.no_grad()
    def evaluate(self) -> None:
        """Note the held-out loss."""
        self._mode("eval")
        x, y = self.held_out
        size = max(1, self.settings.batch_size)
        parts = [self.loss(a, b).item() * len(a) for a, b in zip(x.split(size), y.split(size), strict=True)]
        self._mode("train")
        loss = sum(parts) / len(x)
        tokens = len(self.losses) * self.settings.tokens_per_step
        if not math.isfinite(loss):
            raise Diverged(f"the held-out loss was {loss} after {tokens:,} tokens")
        self.curve.append({"tokens": tokens, "loss": loss, "seconds": sum(self.step_seconds)})
        limit = 1.0 if len(self.losses) == self.settings.steps else HOPELESS
        if tokens and loss >= limit * self.curve[0]["loss"]:
            raise Diverged(
                f"the held-out loss was {loss:.3g} after {tokens:,} tokens; it began at {self.curve[0]['loss']:.3g}"
            )

    def _mode(self, mode: str) -> None:
        """Optimisers whose weights for use are not those for training (schedule-free ones, say) have these methods."""
        for optimizer in self.optimizers:
            getattr(optimizer, mode, lambda: None)()

    def record(self, finished: bool) -> dict[str, Any]:
        """Notes of the run."""
        end: dict[str, Any] = {"condition": None, "activations": None, "residual": None}
        if finished:
            self._mode("eval")
            end = {
                "condition": measure.condition(self.model),
                "activations": measure.activations(self.model, self.held_out[0][: self.settings.batch_size]),
                "residual": measure.residual(self.optimizers),
            }
        return {
            "loss": self.curve[-1]["loss"] if finished else None,
            "tokens": len(self.losses) * self.settings.tokens_per_step,
            "curve": [{k: point[k] for k in ("tokens", "loss")} for point in self.curve],
            "training": binned(self.losses, self.settings.tokens_per_step),
            "update_rms": self.updates,
            "state_bytes_per_parameter": measure.state_bytes_per_parameter(self.model, self.optimizers),
            **end,
            "timing": {
                "seconds": sum(self.step_seconds),
                "step_ms": 1e3 * statistics.median(self.step_seconds or [0.0]),
                "optimizer_ms": 1e3 * statistics.median(self.optimizer_seconds or [0.0]),
                "curve_seconds": [point["seconds"] for point in self.curve],
            },
        }


def fresh_model(settings: Settings, corpus: Corpus) -> GPT:
    """The model at its start, which torch's global seed decides."""
    s = settings
    model = GPT(len(corpus.characters), s.width, s.layers, s.heads, s.context)
    return model.to(device=s.device, dtype=DTYPES[s.dtype])


def binned(losses: list[float], tokens_per_step: int) -> list[dict[str, float]]:
    """Means of the training loss over at most `BINS` stretches of equal length, each with the tokens at its end."""
    size = -(-len(losses) // BINS) or 1
    parts = [losses[i : i + size] for i in range(0, len(losses), size)]
    ends = [min(len(losses), (i + 1) * size) * tokens_per_step for i in range(len(parts))]
    return [{"tokens": end, "loss": statistics.fmean(part)} for end, part in zip(ends, parts, strict=True)]
