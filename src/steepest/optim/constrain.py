"""How a parameter gets its geometry: a plain dictionary on the module that owns it.

Attributes of a parameter, subclasses of it and registries by identity are lost, silently, under deepcopy,
`load_state_dict(assign=True)`, PEFT's casting, FSDP2 or tensor parallelism; an entry on the module survives all of
them.
"""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from steepest.linalg.precision import widen
from steepest.manifolds.base import Manifold
from steepest.manifolds.euclidean import Euclidean
from steepest.manifolds.tensors import as_tuple
from steepest.optim.axes import from_matrix, pattern_error, to_matrix

ATTRIBUTE = "_steepest"


@dataclasses.dataclass(frozen=True)
class Constraint:
    """The manifold of a point, and for each of its tensors the einops pattern that makes it a matrix."""

    manifold: Manifold
    matrix: tuple[str | None, ...]
    sizes: dict[str, int]

    def point(self, tensors: Sequence[Tensor]) -> Any:
        """The tensors as one point, computed with in at least float32."""
        parts = tuple(widen(to_matrix(t, p, self.sizes)) for t, p in zip(tensors, self.matrix, strict=True))
        return parts if self.manifold.arity > 1 else parts[0]

    def options(self) -> dict[str, Any]:
        """What a parameter group says of it; plain matrices are no points of a manifold."""
        plain = isinstance(self.manifold, Euclidean) and self.manifold.ndim == 2
        geometry = None if plain else self.manifold.to_spec()
        role = "matrix" if plain else "point"
        return {"role": role, "geometry": geometry, "matrix": list(self.matrix), "sizes": dict(self.sizes)}

    def write(self, tensors: Sequence[Tensor], x: Any) -> None:
        """Copy a point back into its tensors."""
        for t, part, p in zip(tensors, as_tuple(x), self.matrix, strict=True):
            t.copy_(from_matrix(part, p, t))


def constrain(
    module: nn.Module,
    names: str | Sequence[str],
    manifold: Manifold,
    *,
    matrix: str | Sequence[str | None] | None = None,
    project: bool = True,
    **sizes: int,
) -> nn.Module:
    """Declare that parameters of `module` form a point of `manifold`; optimisers of this library keep them there.

    Args:
        module: the owner of the parameters.
        names: the parameter's name, or the names that make up one point; a dotted name reaches into a submodule.
        manifold: where they live; `Euclidean()` only to say which axes form the matrix.
        matrix: einops pattern from the parameter to `(..., rows, columns)`, where it is not a matrix of that shape:
            "o i -> i o" for orthonormal rows, "o i h w -> o (i h w)" for a convolution; one for each name, or one for
            all.
        project: move the parameters to the nearest point now. With False a point off the manifold is refused.
        sizes: lengths of axes that the pattern takes apart, such as `s=3` for "(s o) i -> s o i".

    Returns:
        The module.

    >>> layer = constrain(torch.nn.Linear(8, 3), "weight", Stiefel(), matrix="o i -> i o")
    >>> bool((layer.weight @ layer.weight.T - torch.eye(3)).abs().max() < 1e-5)
    True
    """
    if not isinstance(manifold, Manifold):
        raise TypeError(f"manifold: expected an instance such as Stiefel(), got {manifold!r}")
    names = (names,) if isinstance(names, str) else tuple(names)
    if len(names) != manifold.arity:
        raise ValueError(
            f"names: a point of {manifold} is made of {manifold.arity} tensor(s), got {len(names)}: {names}"
        )
    patterns = (matrix,) * len(names) if matrix is None or isinstance(matrix, str) else tuple(matrix)
    if len(patterns) != len(names):
        raise ValueError(f"matrix: got {len(patterns)} patterns for {len(names)} names")
    if sizes and not any(patterns):
        raise TypeError(f"constrain: {', '.join(sizes)} is neither an argument nor, without a pattern, an axis of one")
    tensors = [_parameter(module, name) for name in names]
    if len({id(t) for t in tensors}) < len(tensors):
        raise ValueError(f"names: {names} are not {len(names)} different parameters")
    for name, t, pattern in zip(names, tensors, patterns, strict=True):
        if fault := dtype_error(t):
            raise ValueError(f"names: {name!r} {fault}")
        if pattern is not None and (fault := pattern_error(tuple(t.shape), pattern, sizes)):
            raise ValueError(f"{type(module).__name__}.{name}: {fault}")
    constraint = Constraint(manifold, patterns, dict(sizes))
    label = f"{type(module).__name__}.{', '.join(names)}"
    if not any(t.is_meta for t in tensors):
        move_there(constraint, tensors, label, project)
    _forget(module, tensors)
    constraints(module, create=True)[names] = constraint
    return module


def constraints(module: nn.Module, *, create: bool = False) -> dict[tuple[str, ...], Constraint]:
    """The module's own constraints, by the names of their parameters; empty where it has none."""
    return module.__dict__.setdefault(ATTRIBUTE, {}) if create else module.__dict__.get(ATTRIBUTE, {})


def members(module: nn.Module, names: Sequence[str]) -> tuple[nn.Parameter, ...]:
    """The tensors of one of the module's constraints now; empty where one of them is a parameter no more, as after
    pruning or `torch.nn.utils.parametrize`."""
    try:
        return tuple(module.get_parameter(name) for name in names)
    except AttributeError:
        return ()


def contradiction(module: nn.Module, names: Sequence[str], here: Constraint, elsewhere: Constraint | None) -> str:
    """What to tell of a parameter that two modules constrain each in its own way."""
    there = elsewhere.manifold if elsewhere else "nothing"
    return (
        f"{', '.join(names)} of {type(module).__name__} is constrained to {here.manifold} there, and to {there} by "
        "another module that holds it; constrain it on one of them only."
    )


def owners() -> list[nn.Module]:
    """Every living module with constraints: how an optimiser that is handed bare tensors finds their geometry. It asks
    the garbage collector, as only that knows of copies and of unpickled modules."""
    frozen = gc.get_freeze_count()
    if frozen:
        gc.unfreeze()  # else it keeps them to itself, and weights would leave their manifold unnoticed
    found = [t for t in gc.get_objects() if issubclass(type(t), nn.Module) and ATTRIBUTE in t.__dict__]
    if frozen:
        gc.freeze()
    return found


def _forget(module: nn.Module, tensors: Sequence[Tensor]) -> None:
    """Drop what `module` and the modules in it say of these tensors."""
    ids = {id(t) for t in tensors}
    for part in module.modules():
        for entry in [e for e in constraints(part) if ids & {id(t) for t in members(part, e)}]:
            del constraints(part)[entry]


def dtype_error(t: Tensor) -> str:
    """What is wrong with a parameter's dtype; empty when nothing is. In complex32 torch computes next to nothing."""
    fits = t.is_floating_point() or t.dtype in (torch.complex64, torch.complex128)
    return "" if fits else f"has dtype {t.dtype}, expected a floating point one, or complex64 or complex128"


def stored_precision(t: Tensor) -> torch.dtype:
    """The dtype that a parameter's values can be trusted to: its own, but float32 for float64, as a model that was cast
    keeps the rounding that it had; the first steps mend it."""
    return {torch.float64: torch.float32, torch.complex128: torch.complex64}.get(t.dtype, t.dtype)


def _parameter(module: nn.Module, name: str) -> nn.Parameter:
    try:
        return module.get_parameter(name)
    except AttributeError:
        known = ", ".join(n for n, _ in module.named_parameters()) or "none"
        raise ValueError(f"names: {type(module).__name__} has no parameter {name!r}; it has {known}") from None


@torch.no_grad()
def move_there(constraint: Constraint, tensors: Sequence[Tensor], label: str, project: bool) -> None:
    """Move tensors onto the manifold, where they are not there up to rounding; refused without `project`."""
    manifold, x = constraint.manifold, constraint.point(tensors)
    if fault := manifold.shape_error(x):
        raise ValueError(f"{label}: {fault}")
    if not all(t.isfinite().all() for t in tensors):
        raise ValueError(f"{label}: has NaN or infinite entries; initialise it first")
    if project and not manifold.residual(x).max() <= 8 * torch.finfo(as_tuple(x)[0].dtype).eps:
        x = manifold.project(x)
    try:
        manifold.check_point(x, label, None if project else stored_precision(tensors[0]))
    except ValueError as error:
        raise ValueError(f"{error} (nothing was changed)" if project else f"{error} Or pass project=True.") from None
    constraint.write(tensors, x)
