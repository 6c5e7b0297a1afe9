"""What one run of `steepest finetune` is told: its options, their defaults and their checks."""

from __future__ import annotations

import dataclasses

import torch

from steepest.runs.errors import unknown
from steepest.runs.optimizers import known_optimizers
from steepest.runs.settings import DTYPES, SavedSettings, check_least, check_positive, device_name

GEOMETRIES = ("fixed-rank", "euclidean")

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
class Settings(SavedSettings):
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
            check_positive(field, getattr(self, field))
        check_least(self, batch_size=2, max_tokens=4, eval_size=2, threads=0, measure_every=0, seed=0)
        lr = DEFAULT_LR.get((self.optimizer, self.geometry), FALLBACK_LR) if self.lr is None else self.lr
        check_positive("lr", lr)
        return dataclasses.replace(
            self,
            lr=lr,
            device=device_name(self.device),
            threads=self.threads or torch.get_num_threads(),
            measure_every=self.measure_every or max(1, self.steps // 30),
        )
