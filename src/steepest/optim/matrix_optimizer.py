"""What Muon and its kind share: matrices and points go one way, everything else goes another."""

from __future__ import annotations

import abc
from collections.abc import Iterator
from typing import Any, ClassVar

from steepest.optim.engine import Optimizer
from steepest.optim.listing import MATRICES, names_of, part_of
from steepest.optim.options import MATRIX_SHARED
from steepest.transforms import AdamScale, Chain, WeightDecay, chain


class RoleOptimizer(Optimizer):
    """An optimiser to which every parameter has a role, `group["role"]`: what it is to the model.

    `param_groups(model)` finds the roles. Among bare tensors, matrices are "matrix" and vectors "other"; a tensor of
    three axes or more is refused, as it does not say which of them form the matrix.
    """

    needs_matrices: ClassVar[bool] = True

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
                    "matrix='o i h w -> o (i h w)' and the like, or with role='other', as vectors have."
                )
        for role in ("matrix", "other"):
            index = [i for i, p in enumerate(group["params"]) if (p.ndim == 2) == (role == "matrix")]
            if len(index) == len(group["params"]):
                yield {**self._options_of(role), **group, "role": role}
            elif index:  # in a mixed group what is said is said of the matrices
                yield {**part_of(group, index), **self._options_of(role), "role": role}

    def _options_of(self, role: str) -> dict[str, Any]:
        """Options of this role that differ from the defaults."""
        return {}


class MatrixOptimizer(RoleOptimizer):
    """An optimiser for matrices, which gives what has another role than `roles` to AdamW, under options of their own:
    see `MatrixShared`."""

    shared: ClassVar[Any] = MATRIX_SHARED
    roles: ClassVar[tuple[str, ...]] = MATRICES
    """What the method itself takes."""

    @abc.abstractmethod
    def matrix_chain(self, group: dict[str, Any]) -> Chain:
        """The method with the options of one group."""

    def chain(self, group: dict[str, Any]) -> Chain:
        """The method, or AdamW."""
        if group["role"] in self.roles:
            return self.matrix_chain(group)
        adam = AdamScale(tuple(group["adamw_betas"]), group["adamw_eps"])
        return chain(adam, WeightDecay(group["weight_decay"]))

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As `Optimizer`; what goes to AdamW takes `adamw_lr` and `adamw_weight_decay` unless its group has its own."""
        if isinstance(param_group, dict) and "role" in param_group:
            param_group = {**self._options_of(param_group["role"]), **param_group}
        super().add_param_group(param_group)

    def _options_of(self, role: str) -> dict[str, Any]:
        if role in self.roles:
            return {}
        return {"lr": self.defaults["adamw_lr"], "weight_decay": self.defaults["adamw_weight_decay"]}
