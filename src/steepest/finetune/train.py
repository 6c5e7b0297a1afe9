"""The training loop: resumable bit for bit, with signals, checkpoints and measurements."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from steepest.adapters.penalty import penalty
from steepest.finetune import checkpoint, measure
from steepest.finetune.checkpoint import Checkpoint
from steepest.finetune.settings import Settings
from steepest.finetune.tasks import Task
from steepest.runs.clock import seconds
from steepest.runs.errors import UserError
from steepest.runs.optimizers import known_optimizers, state_bytes
from steepest.runs.signals import Stop

WARMUP = 0.1
"""Share of the steps over which the learning rate rises."""


@dataclass
class History:
    """What was noted of a run: one number a step, and measurements of the adapter every few steps."""

    loss: list[float] = field(default_factory=list)
    gradient_seconds: list[float] = field(default_factory=list)
    """Forward and backward pass."""
    optimizer_seconds: list[float] = field(default_factory=list)
    measured: list[dict[str, Any]] = field(default_factory=list)
    """`step`, `residual`, and least, median and greatest over the layers of `change` and, where LoRA's factors are
    trained, of `cond_B`, `cond_A` and `stable_rank`."""
    state_bytes: int = 0
    drift: list[float] | None = None
    """For an orthogonal adapter: by how much singular values have moved at the end, relative to a layer's largest;
    least, median and greatest over the layers."""


def chosen_optimizer(model: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    """The optimiser of the settings, on the geometry of the adapter; pairs of LoRA factors are one point W = B A each
    (fixed-rank) or two matrices (euclidean)."""
    from steepest import param_groups

    other = ("head.*",)
    flat = settings.geometry == "euclidean"
    groups = param_groups(model, other=other, lora=None) if flat else param_groups(model, other=other)
    return _kept(known_optimizers()[settings.optimizer](groups, lr=settings.lr), model, settings)


def baseline_optimizer(model: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    """torch's AdamW on the same parameters, without any geometry."""
    assert settings.baseline_lr is not None  # of settings that are checked
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=settings.baseline_lr)
    return _kept(optimizer, model, settings)


def _kept(optimizer: torch.optim.Optimizer, model: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    """The optimiser with what the adapter asks of every one."""
    keep = settings.method().keep
    if keep is not None:
        keep(optimizer, model)
    return optimizer


def train(
    model: nn.Module,
    task: Task,
    build: Callable[[nn.Module, Settings], torch.optim.Optimizer],
    settings: Settings,
    folder: Path,
    label: str,
    stop: Stop,
) -> History:
    """Train `model` from its present weights, or from the checkpoint in `folder` if it holds one.

    A signal lets the step at hand end, saves a checkpoint and raises `Interrupted`.
    """
    optimizer = build(model, settings)
    rates = [group["lr"] for group in optimizer.param_groups]
    torch.manual_seed(settings.seed)
    fresh = measure.Start.of(model, dense=settings.method().orthogonal(settings.configured()[0]))
    history, start = resume(model, optimizer, folder)
    with stop.deferred(), progress_bar(label, start, settings.steps) as bar:
        for step in range(start, settings.steps):
            set_rates(optimizer, rates, schedule(step, settings.steps))
            take_step(model, task, optimizer, step, settings, history, fresh)
            bar.set_postfix(
                loss=f"{history.loss[-1]:.3f}", residual=f"{history.measured[-1]['residual']:.1e}", refresh=False
            )
            bar.update()
            last = step + 1 == settings.steps
            if stop.requested or last or (step + 1) % settings.save_every == 0:
                save(model, optimizer, folder, step + 1, history)
            if stop.requested:
                break
    return history


def take_step(
    model: nn.Module,
    task: Task,
    optimizer: torch.optim.Optimizer,
    step: int,
    settings: Settings,
    history: History,
    fresh: measure.Start,
) -> None:
    """One step, and its notes in `history`; `fresh` is what the adapter was before training."""
    measured = step % settings.measure_every == 0 or step + 1 == settings.steps
    before = measure.lora_pairs(model) if measured else []
    device = next(model.parameters()).device
    clocks = [seconds(device)]
    loss = task.loss(model, batch(step, len(task.train), settings.batch_size, settings.seed)) + penalty(model)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    clocks.append(seconds(device))
    value = loss.item()
    if math.isfinite(value):  # else the check below says so
        _step(optimizer, step)
    clocks.append(seconds(device))
    if not math.isfinite(value) or (measured and not _finite(model)):
        what = "the adapter has entries that are not finite" if math.isfinite(value) else f"the loss is {value}"
        raise UserError(
            f"step {step + 1}: {what}. Lower --lr (now {settings.lr}) or --baseline-lr ({settings.baseline_lr}), "
            "in a new --output folder."
        )
    history.loss.append(value)
    history.gradient_seconds.append(clocks[1] - clocks[0])
    history.optimizer_seconds.append(clocks[2] - clocks[1])
    if measured:
        history.measured.append(_measurements(model, optimizer, before, fresh, step + 1))
        history.state_bytes = state_bytes(optimizer)
    if fresh.singular_values and step + 1 == settings.steps:
        history.drift = measure.spread(fresh.drifts(model))


def _step(optimizer: torch.optim.Optimizer, step: int) -> None:
    try:
        optimizer.step()
    except ValueError as error:  # a gradient that is not finite
        raise UserError(f"step {step + 1}: {error} Or lower the learning rate.") from None


def _finite(model: nn.Module) -> bool:
    return all(bool(p.isfinite().all()) for p in model.parameters() if p.requires_grad)


def _measurements(
    model: nn.Module, optimizer: Any, before: list[measure.Pair], fresh: measure.Start, step: int
) -> dict[str, Any]:
    found = {
        "step": step,
        "change": measure.spread(fresh.changes(model)),
        "residual": optimizer.residual() if hasattr(optimizer, "residual") else 0.0,
    }
    after = measure.lora_pairs(model)
    if after:
        cond_b, cond_a = measure.condition_numbers(after)
        found["cond_B"], found["cond_A"] = measure.spread(cond_b), measure.spread(cond_a)
        found["stable_rank"] = measure.spread(measure.stable_ranks(before, after))
    return found


def batch(step: int, rows: int, size: int, seed: int) -> list[int]:
    """Training rows of a step: a function of its arguments alone, so that a resumed run has the same ones."""
    size = min(size, rows)
    epoch, place = divmod(step, rows // size)
    generator = torch.Generator().manual_seed(1_000_003 * seed + epoch)
    return torch.randperm(rows, generator=generator)[place * size : (place + 1) * size].tolist()


def schedule(step: int, steps: int) -> float:
    """Factor of the learning rate: up over the first tenth of the steps, then down to zero, along straight lines."""
    warmup = max(1, round(WARMUP * steps))
    return min(1.0, (step + 1) / warmup) * (1 - step / steps)


def set_rates(optimizer: torch.optim.Optimizer, rates: list[float], factor: float) -> None:
    """Give every group its own learning rate times `factor`."""
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate * factor


def save(model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path, step: int, history: History) -> None:
    """Save a checkpoint of the whole run."""
    weights = checkpoint.trainable(model)
    state = Checkpoint(step, weights, optimizer.state_dict(), checkpoint.rng_state(), asdict(history))
    checkpoint.save(folder, state)


def resume(model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path) -> tuple[History, int]:
    """Put model, optimiser and random numbers where the checkpoint has them; its history and step, or a fresh start."""
    found = checkpoint.load(folder)
    if found is None:
        return History(), 0
    checkpoint.load_trainable(model, found.weights)
    try:
        optimizer.load_state_dict(found.optimizer)
    except (ValueError, KeyError) as error:
        raise UserError(
            f"{folder}: the optimiser refuses its saved state ({error}). Start anew in another folder."
        ) from None
    checkpoint.set_rng_state(found.rng)
    return History(**found.history), found.step


def progress_bar(label: str, start: int, steps: int) -> Any:
    """A bar on the terminal; nothing where the output goes into a file."""
    from tqdm import tqdm

    return tqdm(total=steps, initial=start, desc=label, unit="step", disable=None, dynamic_ncols=True)
