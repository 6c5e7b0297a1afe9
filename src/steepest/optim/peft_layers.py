"""Parameters of PEFT's own adapters that are points of a manifold by the definition of their method, recognised by
their names; PEFT itself is not imported.

What `param_groups` makes of the trainable parameters of each method (PEFT 0.21); vectors, wherever they occur, are
"other" without weight decay:

| method | parameters | |
|---|---|---|
| LoRA, with all initialisations and variants | `lora_B`, `lora_A` | one point W = B A, of `FixedRank` |
| MiCA, asymmetric LoRA | `lora_A` or `lora_B` | matrix: the other one is frozen |
| HRA | `hra_u` | `Oblique`: the reflection I - 2 u u^T / <u, u> does not see the length of u |
| DeLoRA | `delora_A` | `Oblique`, by its rows, which the layer divides by their norms |
| | `delora_B` | other: it starts from zero, which has no direction |
| AdaLoRA | `lora_A`, `lora_B` | `Stiefel` each: P and Q of P diag(E) Q with P^T P = Q Q^T = I |
| DEFT, `para=True`, "qr" (PaRa) | `deft_P` | `Grassmann`: of P only the span counts |
| DEFT | `deft_P`, `deft_R` | other: of P the Q of a QR counts, and its columns' signs may jump |
| OFT, BOFT, PSOFT | `oft_R`, `boft_R`, `psoft_R` | other: entries of a skew matrix, any of which is allowed |
| RoAd | `road_theta`, `road_alpha` | other: angles and gains |
| OSF | `U_low`, `S_low`, `V_low` | other: orthonormal at the start only; see `keep_protected` |
| AdaMSS, GLoRA, GraLoRA, HiRA, LoHa, LoKr, Poly | their factors | other |
| C3A, MiSS, RandLoRA, trainable tokens, VB-LoRA | their matrices | other |
| Lily, PEANuT; GraLoRA's and Super-Tuning's LoRA | linear layers | matrix |
| LN tuning | the layers that it thaws | as in the model itself |
| BEFT, FourierFT, FRoD, IA3, PVeRA, SHiRA, TinyLoRA, Uni-LoRA, VeRA, WaveFT | vectors | other |

The manifolds ask for lengths, or for orthonormal columns, that PEFT's start does not have. Such parameters are moved
there when groups are made. That changes the model by rounding only, for none of these functions depends on what is
lost; AdaLoRA's does as soon as E is not zero, so that singular vectors that were trained without a constraint have
the role "other". AdaLoRA's penalty is zero then, up to rounding, and `orth_reg_weight=0` saves its time.

Yuan et al. 2024 (2405.17484), HRA; Bini et al. 2025 (2503.18225), DeLoRA; Zhang et al. 2023 (2303.10512), AdaLoRA,
equations 3 and 4; Chen et al. 2024 (2406.05641), PaRa.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from steepest.linalg.precision import widen
from steepest.linalg.sharded import is_sharded, whole
from steepest.manifolds.base import Manifold
from steepest.manifolds.grassmann import Grassmann
from steepest.manifolds.oblique import Oblique
from steepest.manifolds.stiefel import Stiefel
from steepest.optim.constrain import Constraint, dtype_error, members, move_there

TRANSPOSED = "r i -> i r"
"""Of factors that have their vectors in rows."""


def peft_points(module: nn.Module) -> Iterator[tuple[tuple[str], Constraint]]:
    """Name and geometry of each such parameter of a layer of PEFT's."""
    for name, manifold, pattern in (*_hra(module), *_delora(module), *_adalora(module), *_para(module)):
        constraint, tensors = Constraint(manifold, (pattern,), {}), members(module, (name,))
        if tensors and _can_be_moved(constraint, tensors):
            yield (name,), constraint


def settle(constraint: Constraint, names: Sequence[str], tensors: Sequence[Tensor]) -> None:
    """Move such parameters onto their manifold; the shards of one are left to the optimiser, which refuses them."""
    if not any(t.is_meta or is_sharded(t) for t in tensors):
        move_there(constraint, tensors, ", ".join(names), project=True)


@torch.no_grad()
def _can_be_moved(constraint: Constraint, tensors: Sequence[Tensor]) -> bool:
    """Whether the tensors have the shape of a point, finite entries, and no column without direction."""
    if any(dtype_error(t) for t in tensors) or constraint.manifold.shape_error(constraint.point(tensors)):
        return False  # the rank may exceed a side
    if any(t.is_meta or is_sharded(t) for t in tensors):
        return True
    x = constraint.point(tensors)
    return bool(x.isfinite().all() and (x != 0).any(-2).all())


def _hra(module: nn.Module) -> Iterator[tuple[str, Manifold, str | None]]:
    """Directions of reflections, in columns."""
    for adapter in _adapters(module, "hra_u"):
        yield f"hra_u.{adapter}", Oblique(), None


def _delora(module: nn.Module) -> Iterator[tuple[str, Manifold, str | None]]:
    """Rows that are divided by their norms."""
    for adapter in _adapters(module, "delora_A"):
        yield f"delora_A.{adapter}", Oblique(), TRANSPOSED


def _adalora(module: nn.Module) -> Iterator[tuple[str, Manifold, str | None]]:
    """Singular vectors, Q in rows and P in columns; what a rank allocator masks is E."""
    for adapter in _adapters(module, "lora_E"):
        q, p, e = (getattr(module, name)[adapter] for name in ("lora_A", "lora_B", "lora_E"))
        if e.is_meta or not whole(e).any() or (_orthonormal(whole(q).mT) and _orthonormal(whole(p))):
            yield f"lora_A.{adapter}", Stiefel(), TRANSPOSED
            yield f"lora_B.{adapter}", Stiefel(), None


def _para(module: nn.Module) -> Iterator[tuple[str, Manifold, str | None]]:
    """A basis of what PaRa removes."""
    for adapter in _adapters(module, "deft_P"):
        if module.deft_para[adapter] and module.deft_decomposition[adapter] == "qr":  # type: ignore[index]
            yield f"deft_P.{adapter}", Grassmann(), None


def _adapters(module: nn.Module, name: str) -> Iterator[str]:
    """Names of the adapters that have such a parameter."""
    table = getattr(module, name, None)
    yield from table.keys() if isinstance(table, nn.ParameterDict) else ()


@torch.no_grad()
def _orthonormal(x: Tensor) -> bool:
    """Whether columns are orthonormal, up to the rounding of some steps, or of entries in a half precision."""
    tolerance = max(1e-5, 2 * torch.finfo(x.dtype).eps)
    return not Stiefel().shape_error(x) and bool(Stiefel().residual(widen(x)).max() <= tolerance)
