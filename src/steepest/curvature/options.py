"""What every preconditioner of layers takes by keyword, declared in one place."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypedDict

import torch

from steepest.checks import check_range
from steepest.curvature.rescale import Rescale


class Shared(TypedDict, total=False):
    """What every preconditioner of layers takes by keyword, besides its own options."""

    every: int
    """Steps from one look at the layers, and one update of the factors, to the next. Default 1."""
    loss: str
    """What the loss is of its examples: their "mean" (the default; examples are the first dimension of a layer's
    output), the mean over examples and positions, "token_mean", as of language models, or their "sum"."""
    scale: float | Callable[[], float]
    """What the loss was multiplied by before `backward()` and `.grad` no longer is: with a GradScaler
    `scaler.get_scale`. Default 1."""
    fisher: str
    """"empirical" (the default): every backward pass counts; "sampled": only those within `sampling()`."""
    rescale: Rescale | None
    """What becomes of the length of a preconditioned gradient. Default None, nothing."""
    dtype: torch.dtype | None
    """Of the factors that are kept; what is computed with them is so in the weight's dtype, or in this one where it is
    the wider one, and at least in float32. Default None: the dtype of computing."""
    skip: Iterable[str]
    """Names of layers, or patterns of them, that are left alone. Default ()."""
    max_side: int
    """A layer with more rows or columns is left alone: its factor would be that number squared. Default 8192."""


SHARED: dict[str, Any] = {
    "every": 1,
    "loss": "mean",
    "scale": 1.0,
    "fisher": "empirical",
    "rescale": None,
    "dtype": None,
    "skip": (),
    "max_side": 8192,
}
CHOICES = {"loss": ("mean", "token_mean", "sum"), "fisher": ("empirical", "sampled")}


def options(arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a preconditioner's `__init__`, its `locals()`, with those that all take."""
    own = {k: v for k, v in arguments.items() if k not in ("self", "model", "shared", "__class__")}
    if unknown := sorted(set(arguments["shared"]) - set(SHARED)):
        name = type(arguments["self"]).__name__
        raise TypeError(f"{name}: unknown option {unknown[0]!r}; it takes {', '.join([*own, *SHARED])}")
    return {**SHARED, **own, **arguments["shared"]}


def check_options(said: dict[str, Any]) -> None:
    """Refuse values of the shared options that mean nothing."""
    check_range("every", said["every"], 1)
    check_range("max_side", said["max_side"], 1)
    if not callable(said["scale"]):
        check_range("scale", said["scale"], open_low=True)
    for key, known in CHOICES.items():
        if said[key] not in known:
            raise ValueError(f"{key}: got {said[key]!r}, expected one of {', '.join(map(repr, known))}")
    if said["dtype"] is not None and not said["dtype"].is_floating_point:
        raise ValueError(f"dtype: got {said['dtype']}, expected a real floating-point one")
