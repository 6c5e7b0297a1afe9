"""What is compared: an optimiser of the library with a geometry of the model."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

from torch import nn

from steepest.compare.settings import GEOMETRIES, Settings
from steepest.compare.variants import Variant
from steepest.optim.listing import MATRICES

FALLBACK_LR = 1e-3
"""Where an optimiser has no default learning rate."""


@dataclasses.dataclass(frozen=True)
class Method:
    """One optimiser, by its name in the registry and perhaps with options (see `Variant`), with one geometry."""

    optimizer: str
    geometry: str = "none"

    @property
    def variant(self) -> Variant:
        """The optimiser and its options."""
        return Variant(self.optimizer)

    @property
    def key(self) -> str:
        """Name in files."""
        return self.variant.key if self.geometry == "none" else f"{self.variant.key}-{self.geometry}"

    @property
    def name(self) -> str:
        """Name for readers."""
        name = self.variant.name
        return name if self.geometry == "none" else f"{name}, {self.geometry}"

    @property
    def default_lr(self) -> float:
        """The optimiser's own default: the middle of its sweep."""
        default = inspect.signature(self.variant.optimizer).parameters["lr"].default
        return float(default) if isinstance(default, int | float) and default > 0 else FALLBACK_LR

    def build(self, model: nn.Module, lr: float, settings: Settings) -> Any:
        """The optimiser on the matrices, and on the rest AdamW with the learning rate that it has in every run; an
        optimiser that has rules of its own for embeddings and heads has these as well."""
        from steepest import AdamW, param_groups
        from steepest.optim import MatrixOptimizer, RoleOptimizer

        cls, options = self.variant.optimizer, self.variant.options
        groups = [{"weight_decay": settings.weight_decay} | group for group in param_groups(model)]
        if issubclass(cls, RoleOptimizer):
            rate = {"adamw_lr": settings.adamw_lr} if issubclass(cls, MatrixOptimizer) else {}
            return cls(groups, lr=lr, **rate | options)
        rest = [group for group in groups if group["role"] not in MATRICES]
        matrices = cls([group for group in groups if group["role"] in MATRICES], lr=lr, **options)
        return [matrices, *([AdamW(rest, lr=settings.adamw_lr, betas=(0.9, 0.95))] if rest else [])]


def methods(settings: Settings) -> list[Method]:
    """All that the settings ask for."""
    return [Method(name, geometry) for name in settings.optimizers or () for geometry in GEOMETRIES[settings.geometry]]
