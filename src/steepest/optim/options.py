"""Options that every optimiser takes, and those that every one for matrices takes, each declared in one place."""

from __future__ import annotations

from typing import Any, TypedDict

from steepest.checks import check_range


class Shared(TypedDict, total=False):
    """What every optimiser takes by keyword, besides its own options."""

    maximize: bool
    """Ascend. Default False."""
    nonfinite: str
    """What becomes of a gradient with NaN or infinite entries: "raise" (the default) refuses the step before anything
    is changed, "skip" leaves out its point, "ignore" does not look, which saves one synchronisation a step on a GPU."""
    compile: bool
    """Compile the step of matrices and points by torch.compile, once for each layout; a change of any option but lr
    compiles anew. Default False."""
    rounding: str
    """How a bfloat16 parameter takes its new value, which is computed in float32: "nearest" (the default), or
    "stochastic", up or down at random so that the mean is right and steps smaller than its last bit are not lost; what
    is drawn depends on the parameter's name and the number of the step alone, so that replicas stay equal and runs can
    be resumed."""


class MatrixShared(Shared, total=False):
    """What every optimiser for matrices takes by keyword besides: the options of the AdamW that has the rest."""

    adamw_lr: float
    """Learning rate of what the method does not take: embeddings, heads, norms and biases as a rule. Default 3e-4."""
    adamw_betas: tuple[float, float]
    """Default (0.9, 0.95)."""
    adamw_eps: float
    """Default 1e-8."""
    adamw_weight_decay: float
    """Default 0."""


SHARED: Shared = {"maximize": False, "nonfinite": "raise", "compile": False, "rounding": "nearest"}
MATRIX_SHARED: MatrixShared = {
    **SHARED,
    "adamw_lr": 3e-4,
    "adamw_betas": (0.9, 0.95),
    "adamw_eps": 1e-8,
    "adamw_weight_decay": 0.0,
}


def options(arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments of an optimiser's `__init__`, its `locals()`, as the defaults of its groups. Those of `**shared`
    must be among the shared options of its class."""
    given, known = arguments.get("shared", {}), arguments["self"].shared
    if unknown := sorted(set(given) - set(known)):
        name = type(arguments["self"]).__name__
        own = [key for key in arguments if key not in _NOT_OPTIONS]
        raise TypeError(f"{name}: unknown option {unknown[0]!r}; it takes {', '.join([*own, *known])}")
    return {**known, **{key: value for key, value in arguments.items() if key not in _NOT_OPTIONS}, **given}


_NOT_OPTIONS = {"self", "params", "shared", "__class__"}


def check_options(group: dict[str, Any]) -> None:
    """Refuse values of the shared options that mean nothing."""
    for key, known in (("nonfinite", ("raise", "skip", "ignore")), ("rounding", ("nearest", "stochastic"))):
        if group[key] not in known:
            raise ValueError(f"{key}: got {group[key]!r}, expected one of {', '.join(map(repr, known))}")
    for key in ("adamw_lr", "adamw_eps", "adamw_weight_decay"):
        check_range(key, group.get(key, 0.0))
