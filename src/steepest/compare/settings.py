"""What one `steepest compare` is told: its options, their defaults and their checks."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from steepest.compare.schedule import SCHEDULES
from steepest.compare.variants import Variant
from steepest.runs.errors import UserError, unknown
from steepest.runs.optimizers import known_optimizers
from steepest.runs.settings import (
    DTYPES,
    SavedSettings,
    check_least,
    check_positive,
    device_name,
)

GEOMETRIES = {"none": ("none",), "orthogonal": ("orthogonal",), "both": ("none", "orthogonal")}
"""Values of --geometry, and the geometries with which each optimiser then runs."""


@dataclasses.dataclass(frozen=True)
class Settings(SavedSettings):
    """Options of one comparison. Equal settings on one machine give equal losses, bit for bit."""

    optimizers: list[str] | None = None
    """Names, each perhaps with options (see `Variant`), in the order of the alphabet; None for all."""
    data: str | None = None
    tokens: int = 262_144
    batch_size: int = 8
    context: int = 128
    width: int = 64
    layers: int = 2
    heads: int = 4
    seeds: int = 3
    lrs: int = 3
    lr_factor: float = 3.0
    extend: int = 6
    warmup: float = 0.1
    schedule: str = "cosine"
    adamw_lr: float = 3e-2
    """Of AdamW, which has all but matrices in every run. High, as embeddings and head bear more than matrices do: with
    the default settings and its default rate Muon ends at 2.32 with 3e-3 here, 2.24 with 1e-2 and 2.12 with 3e-2."""
    weight_decay: float = 0.0
    geometry: str = "none"
    device: str = "auto"
    dtype: str = "float32"
    threads: int = 0
    seed: int = 0
    evaluations: int = 8
    eval_tokens: int = 8_192

    @property
    def tokens_per_step(self) -> int:
        """Characters in one batch."""
        return self.batch_size * self.context

    @property
    def steps(self) -> int:
        """Steps of every run: as many whole batches as the tokens give."""
        return self.tokens // self.tokens_per_step

    @property
    def all_seeds(self) -> list[int]:
        """The seeds; the first is that of the sweep."""
        return [self.seed + i for i in range(self.seeds)]

    def checked(self) -> Settings:
        """These settings with the automatic ones filled in; a `UserError` names the first that cannot be."""
        known = known_optimizers()
        for name in self.optimizers or ():
            Variant(name).check()
        if self.optimizers == []:
            raise UserError(f"--optimizers: names none. Choose from: {', '.join(sorted(known))}; or leave it out.")
        for field, choices in (("geometry", GEOMETRIES), ("schedule", SCHEDULES), ("dtype", DTYPES)):
            if getattr(self, field) not in choices:
                raise unknown(f"--{field}", getattr(self, field), choices)
        check_positive("adamw_lr", self.adamw_lr)
        check_least(self, batch_size=1, context=2, width=4, layers=1, heads=1, seeds=1, lrs=1, extend=0, threads=0)
        check_least(self, seed=0, weight_decay=0, evaluations=1, eval_tokens=1, lr_factor=1.1)
        self._check_shape()
        self._check_budget()
        return dataclasses.replace(
            self,
            optimizers=sorted(set(self.optimizers or known)),
            device=device_name(self.device),
            threads=self.threads or torch.get_num_threads(),
        )

    def _check_shape(self) -> None:
        if self.width % (2 * self.heads):
            raise UserError(
                f"--width {self.width}: must be a multiple of twice --heads ({self.heads}), as each head has an even "
                f"number of channels. Give --width {2 * self.heads * max(1, round(self.width / 2 / self.heads))}, say."
            )

    def _check_budget(self) -> None:
        if self.steps < 2:
            raise UserError(
                f"--tokens {self.tokens}: are less than two steps of --batch-size {self.batch_size} times --context "
                f"{self.context}. Give at least {2 * self.tokens_per_step}."
            )
        if not 0 <= self.warmup < 1:
            raise UserError(f"--warmup {self.warmup}: is a share of the steps. Give a number from 0 to below 1.")


def parsed(given: dict[str, Any]) -> dict[str, Any]:
    """The given options, with names that are separated by commas as the sorted list that settings hold."""
    names = given.get("optimizers")
    if not isinstance(names, str):
        return given
    return given | {"optimizers": sorted({n.strip().lower() for n in names.split(",") if n.strip()})}
