"""What Muon and Shampoo share: matrices and points go one way, everything else goes to AdamW."""

from __future__ import annotations

import abc
from collections.abc import Iterator
from typing import Any, ClassVar

from steepest.optim.engine import Optimizer
from steepest.optim.listing import names_of, part_of
from steepest.transforms import AdamScale, Chain, WeightDecay, chain


class MatrixOptimizer(Optimizer):
    """An optimiser for matrices, which gives parameters of the role "other" to AdamW under options of their own.

    `param_groups(model)` finds the roles. Among bare tensors, matrices are "matrix" and vectors "other"; a tensor of
    three axes or more is refused, as it does not say which of them form the matrix.
    """

    needs_matrices: ClassVar[bool] = True

    @abc.abstractmethod
    def matrix_chain(self, group: dict[str, Any]) -> Chain:
        """The method with the options of one group."""

    def chain(self, group: dict[str, Any]) -> Chain:
        """The method, or AdamW."""
        if group["role"] != "other":
            return self.matrix_chain(group)
        adam = AdamScale(tuple(group["adamw_betas"]), group["adamw_eps"])
        return chain(adam, WeightDecay(group["weight_decay"]))

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As `Optimizer`; the role "other" takes `adamw_lr` and `adamw_weight_decay` unless its group has its own."""
        if isinstance(param_group, dict) and param_group.get("role") == "other":
            param_group = {**self._adamw_options(), **param_group}
        super().add_param_group(param_group)

    def _sort(self, group: dict[str, Any]) -> Iterator[dict[str, Any]]:
        for part in super()._sort(group):
            if "role" in part:
                yield part
            elif part["geometry"] is not None or part["matrix"] is not None:
                yield {**part, "role": "point" if part["geometry"] is not None else "matrix"}
            else:
                yield from self._sort_by_shape(part)

    def _sort_by_shape(self, group: dict[str, Any]) -> Iterator[dict[str, Any]]:
        for name, p in zip(names_of(group), group["params"], strict=True):
            if p.ndim > 2:
                raise ValueError(
                    f"{name}: shape {tuple(p.shape)} does not say which axes form the matrix. Use "
                    "`param_groups(model)`, which knows convolutions; or give it a group of its own with "
                    "matrix='o i h w -> o (i h w)' and the like, or with role='other' for AdamW."
                )
        for role, options in (("matrix", {}), ("other", self._adamw_options())):
            if index := [i for i, p in enumerate(group["params"]) if (p.ndim == 2) == (role == "matrix")]:
                yield {**part_of(group, index), **options, "role": role}

    def _adamw_options(self) -> dict[str, Any]:
        return {"lr": self.defaults["adamw_lr"], "weight_decay": self.defaults["adamw_weight_decay"]}
