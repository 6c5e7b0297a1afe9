"""What one run of `steepest finetune` is told: its options, their defaults and their checks."""

from __future__ import annotations

import dataclasses
import inspect
import math
from typing import Any

import torch

from steepest.finetune.errors import UserError, unknown

GEOMETRIES = ("fixed-rank", "euclidean")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}

DEFAULT_LR: dict[tuple[str, str], float] = {
    ("adam", "fixed-rank"): 3e-4,
    ("adam", "euclidean"): 1e-3,
    ("adamw", "fixed-rank"): 3e-4,
    ("adamw", "euclidean"): 1e-3,
    ("muon", "fixed-rank"): 1e-3,
}
"""Learning rates by optimiser and geometry; benchmarks/finetune.py measures them."""
FALLBACK_LR = 1e-3
"""For the pairs that are not in the table."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """Options of one run. Equal settings on one machine give equal runs, bit for bit."""

    model: str | None = None
    data: str | None = None
    optimizer: str = "adam"
    geometry: str = "fixed-rank"
    rank: int = 8
    alpha: float = 16.0
    lr: float | None = None
    baseline_lr: float = 1e-3
    steps: int = 60
    batch_size: int = 32
    max_tokens: int = 64
    temperature: float = 0.05
    seed: int = 0
    device: str = "auto"
    dtype: str = "float32"
    threads: int = 0
    baseline: bool = True
    save_every: int = 20
    measure_every: int = 0
    eval_size: int = 500

    def checked(self) -> Settings:
        """These settings with the automatic ones filled in; a `UserError` names the first that cannot be."""
        optimizers = known_optimizers()
        if self.optimizer not in optimizers:
            raise unknown("--optimizer", self.optimizer, optimizers)
        if self.geometry not in GEOMETRIES:
            raise unknown("--geometry", self.geometry, GEOMETRIES)
        if self.dtype not in DTYPES:
            raise unknown("--dtype", self.dtype, DTYPES)
        for field in ("rank", "alpha", "baseline_lr", "steps", "save_every", "temperature"):
            _positive(field, getattr(self, field))
        for field, least in (
            ("batch_size", 2),
            ("max_tokens", 4),
            ("eval_size", 2),
            ("threads", 0),
            ("measure_every", 0),
            ("seed", 0),
        ):
            if getattr(self, field) < least:
                raise UserError(f"{_option(field)} {getattr(self, field)}: must be at least {least}.")
        lr = DEFAULT_LR.get((self.optimizer, self.geometry), FALLBACK_LR) if self.lr is None else self.lr
        _positive("lr", lr)
        return dataclasses.replace(
            self,
            lr=lr,
            device=_device(self.device),
            threads=self.threads or torch.get_num_threads(),
            measure_every=self.measure_every or max(1, self.steps // 30),
        )

    def to_json(self) -> dict[str, Any]:
        """The settings as a JSON object."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, saved: dict[str, Any], where: str) -> Settings:
        """The settings that `to_json` wrote; `where` is their file, for the error."""
        try:
            return cls(**saved)
        except TypeError:
            raise UserError(
                f"{where}: was written by another version. Start anew in another --output folder."
            ) from None

    def agree(self, given: dict[str, Any]) -> None:
        """Raise a `UserError` if an option given beside --resume differs from these settings."""
        for field, value in given.items():
            mine = getattr(self, field)
            if value != mine and not (field == "device" and _device(value) == mine):
                raise UserError(
                    f"{_option(field)} {value} conflicts with the interrupted run, which has {mine}. Leave the option "
                    "out to go on with that run, or start another one in a new --output folder without --resume."
                )


def known_optimizers() -> dict[str, Any]:
    """The library's optimisers by name: those that can be built from parameters and a learning rate alone."""
    from steepest.optim import OPTIMIZERS

    return {name: cls for name, cls in OPTIMIZERS.items() if _takes_lr_alone(cls)}


def _takes_lr_alone(cls: Any) -> bool:
    parameters = list(inspect.signature(cls).parameters.values())[1:]
    return "lr" in [p.name for p in parameters] and all(p.default is not p.empty for p in parameters if p.name != "lr")


def _option(field: str) -> str:
    return "--" + field.replace("_", "-")


def _positive(field: str, value: float) -> None:
    if not (value > 0 and math.isfinite(value)):
        raise UserError(f"{_option(field)} {value}: must be a positive number.")


def _device(name: str) -> str:
    """The device's name, checked by putting a number there; `auto` means the GPU where there is one."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"--device {name}: cannot be used here ({reason}). Use cpu, cuda, cuda:1, mps or auto."
        ) from None
    return name
