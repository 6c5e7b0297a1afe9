"""Checkpoints: whatever kills the process, the last one stays valid.

A checkpoint is a folder `step-000040` of files. It is written under a new name, and becomes the current one only when
the small file `latest.json` is replaced, in one atomic operation, by one that names it.
"""

from __future__ import annotations

import random
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from steepest.runs.errors import UserError
from steepest.runs.files import atomic, read_json, write_json

LATEST = "latest.json"


@dataclass(frozen=True)
class Checkpoint:
    """Everything that a run needs to go on from a step as if it had never stopped."""

    step: int
    weights: dict[str, Tensor]
    optimizer: dict[str, Any]
    rng: dict[str, Any]
    history: dict[str, Any]


def save(folder: Path, checkpoint: Checkpoint) -> None:
    """Make `checkpoint` the current one of `folder`; those before it are then removed."""
    from safetensors.torch import save_file

    name = f"step-{checkpoint.step:06d}"
    place = folder / name
    if place.is_dir() and current(folder) != place:
        shutil.rmtree(place)  # left behind by a process that was killed while it wrote
    if not place.is_dir():
        with atomic(place / "weights.safetensors") as path:
            save_file({key: value.contiguous() for key, value in checkpoint.weights.items()}, path)
        with atomic(place / "optimizer.pt") as path:
            torch.save(checkpoint.optimizer, path)
        with atomic(place / "rng.pt") as path:
            torch.save(checkpoint.rng, path)
        write_json(place / "history.json", checkpoint.history)
        write_json(folder / LATEST, {"checkpoint": name, "step": checkpoint.step})
    for old in folder.glob("step-*"):
        if old != place:
            shutil.rmtree(old, ignore_errors=True)


def current(folder: Path) -> Path | None:
    """The folder of the current checkpoint, or None where there is none yet."""
    latest = folder / LATEST
    return folder / read_json(latest)["checkpoint"] if latest.is_file() else None


def load(folder: Path) -> Checkpoint | None:
    """The current checkpoint of `folder`, or None where there is none yet."""
    from safetensors.torch import load_file

    place = current(folder)
    if place is None:
        return None
    try:
        return Checkpoint(
            step=read_json(folder / LATEST)["step"],
            weights=load_file(place / "weights.safetensors"),
            optimizer=torch.load(place / "optimizer.pt", weights_only=True),
            rng=torch.load(place / "rng.pt", weights_only=True),
            history=read_json(place / "history.json"),
        )
    except UserError:
        raise
    except Exception as error:  # each of the libraries has exceptions of its own for a damaged file
        raise UserError(f"{place}: cannot be read ({error}). Start anew in another --output folder.") from None


def trainable(model: nn.Module) -> dict[str, Tensor]:
    """Copies, on the CPU, of the parameters that are trained, by name."""
    mine = {name: p.detach().cpu() for name, p in model.named_parameters() if p.requires_grad}
    return {name: p.clone(memory_format=torch.contiguous_format) for name, p in mine.items()}


@torch.no_grad()
def load_trainable(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Put back what `trainable` copied."""
    mine = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if mine.keys() != weights.keys():
        raise UserError(
            "the checkpoint holds other parameters than the model: was it made with another model or version?"
        )
    for name, p in mine.items():
        p.copy_(weights[name])


def rng_state() -> dict[str, Any]:
    """State of every random number generator that a step may draw from."""
    version, numbers, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "python": [version, list(numbers), gauss],
        "numpy": [kind, torch.from_numpy(np.asarray(keys, np.int64)), position, has_gauss, cached],
    }


def set_rng_state(state: dict[str, Any]) -> None:
    """Put back what `rng_state` noted."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.device_count() == len(state["cuda"]):
        torch.cuda.set_rng_state_all(state["cuda"])
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))
