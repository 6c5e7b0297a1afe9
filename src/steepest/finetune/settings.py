"""What one run of `steepest finetune` is told: its options, their defaults and their checks."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from steepest.finetune import adapters
from steepest.runs.errors import UserError, unknown
from steepest.runs.optimizers import known_optimizers
from steepest.runs.settings import DTYPES, SavedSettings, check_least, check_positive, device_name

GEOMETRIES = ("fixed-rank", "euclidean")
"""Of pairs of LoRA factors; other adapters have a geometry of their own."""

DEFAULT_LR: dict[tuple[str, str], float] = {
    ("adam", "fixed-rank"): 3e-4,
    ("adam", "euclidean"): 1e-3,
    ("adamw", "fixed-rank"): 3e-4,
    ("adamw", "euclidean"): 1e-3,
    ("muon", "fixed-rank"): 1e-3,
}
"""Learning rates by optimiser and geometry of LoRA; benchmarks/finetune.py measures them."""
ADAPTER_LR: dict[str, float] = {
    "asymmetric": 1e-3,
    "hra": 3e-4,
    "loft": 3e-4,
    "moelora": 1e-3,
    "oft": 3e-4,
    "osf": 3e-3,
    "peft-hra": 3e-4,
    "psoft": 3e-4,
    "qgoft": 1e-2,
    "riemannlora": 3e-4,
    "soda": 1e-3,
    "spectraladapter": 1e-4,
}
"""Adam's and AdamW's learning rates for other adapters; benchmarks/adapters.py measures them."""
POSITIVE = ("rank", "alpha", "calibration_batches", "lr", "baseline_lr", "steps", "save_every", "temperature")
"""Fields that are positive numbers where they are given."""
FALLBACK_LR = 1e-3
"""For what is in no table."""
CALIBRATION_BATCHES = 4
"""For adapters that start from gradients."""


@dataclasses.dataclass(frozen=True)
class Settings(SavedSettings):
    """Options of one run. Equal settings on one machine give equal runs, bit for bit."""

    model: str | None = None
    data: str | None = None
    optimizer: str = "adam"
    adapter: str = "lora"
    adapter_option: list[str] = dataclasses.field(default_factory=list)
    geometry: str | None = None
    rank: int | None = None
    alpha: float | None = None
    calibration_batches: int | None = None
    lr: float | None = None
    baseline_lr: float | None = None
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
        chosen = adapters.method(self.adapter)
        if self.dtype not in DTYPES:
            raise unknown("--dtype", self.dtype, DTYPES)
        for field in POSITIVE:
            if getattr(self, field) is not None:
                check_positive(field, getattr(self, field))
        check_least(self, batch_size=2, max_tokens=4, eval_size=2, threads=0, measure_every=0, seed=0)
        geometry = _geometry(chosen, self.geometry)
        config, _ = self.configured()
        lr = default_lr(self.optimizer, self.adapter, geometry)
        baseline_lr = default_lr("adamw", self.adapter, "euclidean" if chosen.pairs else None)
        return dataclasses.replace(
            self,
            geometry=geometry,
            rank=getattr(config, chosen.rank() or "", None),
            alpha=getattr(config, chosen.alpha() or "", None),
            calibration_batches=_calibration_batches(config, self.adapter, self.calibration_batches),
            lr=lr if self.lr is None else self.lr,
            baseline_lr=baseline_lr if self.baseline_lr is None else self.baseline_lr,
            device=device_name(self.device),
            threads=self.threads or torch.get_num_threads(),
            measure_every=self.measure_every or max(1, self.steps // 30),
        )

    def method(self) -> adapters.Method:
        """The kind of adapter."""
        return adapters.method(self.adapter)

    def configured(self) -> tuple[Any, dict[str, Any]]:
        """PEFT's config of the adapter, and the options of the function that is called on the adapted model."""
        return self.method().configured(self.adapter_option, self.rank, self.alpha, self.seed)


def default_lr(optimizer: str, adapter: str, geometry: str | None) -> float:
    """The learning rate where none is given."""
    if adapter in ADAPTER_LR:
        return ADAPTER_LR[adapter] if optimizer in ("adam", "adamw") else FALLBACK_LR
    return DEFAULT_LR.get((optimizer, geometry or ""), FALLBACK_LR)


def _geometry(chosen: adapters.Method, given: str | None) -> str | None:
    """The geometry of LoRA's pairs; None for an adapter without pairs, which has its own."""
    if chosen.pairs:
        if given is not None and given not in GEOMETRIES:
            raise unknown("--geometry", given, GEOMETRIES)
        return given or GEOMETRIES[0]
    if given is not None:
        raise UserError(
            f"--geometry {given}: says where pairs of LoRA factors live; {chosen.name} has a geometry of its own. "
            "Leave the option out."
        )
    return None


def _calibration_batches(config: Any, name: str, given: int | None) -> int | None:
    """How many batches give the gradients that an adapter starts from; None where it does not."""
    if adapters.wants_calibration(config):
        return CALIBRATION_BATCHES if given is None else given
    if given is not None:
        raise UserError(
            f"--calibration-batches {given}: {name} with these options does not start from gradients, so that there is "
            "nothing to calibrate. Leave the option out."
        )
    return None
