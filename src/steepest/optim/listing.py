"""What users give as parameters, as groups of one form."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from steepest.optim.constrain import Constraint, constraints, contradiction, members, owners

MATRICES = ("matrix", "point")
"""Roles of what is seen as matrices."""
ROLES = ("point", "matrix", "embedding", "head", "other")
"""What a parameter can be to a model; see `param_groups`."""


def normalise(group: dict[str, Any]) -> dict[str, Any]:
    """A copy of the group with a list of tensors, and their names apart."""
    group = dict(group)
    params = group["params"]
    if isinstance(params, set):
        raise TypeError("params: got a set, which has no order; expected a list")
    params = [params] if isinstance(params, Tensor) else list(params)
    if named := [p for p in params if isinstance(p, tuple)]:
        if len(named) < len(params):
            raise ValueError(
                f"params: got {len(named)} named and {len(params) - len(named)} unnamed ones; name all or none"
            )
        group["param_names"] = [name for name, _ in params]
        params = [p for _, p in params]
    if not params:
        raise ValueError("params: got an empty list; does anything in the model require a gradient?")
    if wrong := [p for p in params if not isinstance(p, Tensor)]:
        raise TypeError(f"params: expected tensors, got {type(wrong[0]).__name__}")
    if len({id(p) for p in params}) < len(params):
        raise ValueError("params: the same parameter is given twice")
    return group | {"params": params}


def names_of(group: dict[str, Any]) -> list[str]:
    """The names of a group's parameters, or what to call them."""
    return group.get("param_names") or [f"parameter {i}" for i in range(len(group["params"]))]


def part_of(group: dict[str, Any], index: list[int]) -> dict[str, Any]:
    """The group restricted to some of its parameters."""
    lists: dict[str, Any] = {k: [group[k][i] for i in index] for k in ("params", "param_names") if k in group}
    return {**group, **lists}


def constrained(ids: set[int]) -> Iterator[tuple[Constraint, list[int]]]:
    """Constraints that any living module puts on tensors with these ids, each with the ids of its whole point."""
    seen: dict[int, Constraint] = {}
    for module in owners():
        for names, constraint in constraints(module).items():
            point = [id(t) for t in members(module, names)]
            if not ids & set(point):
                continue
            if not seen.keys() & set(point):
                seen.update(dict.fromkeys(point, constraint))
                yield constraint, point
            elif other := [seen.get(i) for i in point if seen.get(i) != constraint]:
                raise ValueError(contradiction(module, names, constraint, other[0]))
