"""OSF with its promise kept: no optimiser moves weights into the protected subspaces."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from steepest.linalg.precision import widen
from steepest.linalg.sharded import is_sharded, whole
from steepest.optim.groups import clean


class Factor(NamedTuple):
    """A trained factor as it is now, U_low `(n, k)` or the transpose of V_low."""

    value: Tensor
    gradient: Tensor | None
    """Where PEFT does not project it."""
    protected: Tensor | None
    """What it must not contain, in orthonormal columns, where PEFT keeps that."""
    allowed: Tensor
    """And else what it may."""


class Kept:
    """What `keep_protected` returns: `remove()`, or the end of a `with`, takes the projection off."""

    def __init__(self, *handles: RemovableHandle) -> None:
        self._handles = handles

    def remove(self) -> None:
        """Leave the optimiser as it was."""
        for handle in self._handles:
            handle.remove()

    def __enter__(self) -> Kept:
        return self

    def __exit__(self, *_: Any) -> None:
        self.remove()


def keep_protected(optimizer: torch.optim.Optimizer, model: nn.Module, *, project: bool = False) -> Kept:
    """Keep what an optimiser does to PEFT's OSF adapters out of the subspaces that OSF protects, exactly.

    OSF splits each weight W = U_high S_high V_high + U_low S_low V_low by its singular values, freezes the first part
    and trains the second, so that the change of W leaves the span of U_high on its left and that of V_high on its right
    alone: what earlier tasks needed is there. PEFT projects the gradients for that, and gradients only. SGD and what
    acts on singular values (Muon) stay in the span of their gradients; an optimiser that scales entry by entry (Adam)
    does not, and with AdamW a fifth of the change of W ends up in the protected subspaces. Where a host replaces
    parameters (half precision, FSDP2), even the hooks that project gradients are lost, without a warning.

    Here U_low and V_low are projected after each step, whatever has made it: scaling, momentum and weight decay
    included. They start in the allowed subspaces, so that this is the same as to project what the step has changed; it
    keeps no copies, and rounding does not add up. Gradients whose hooks are lost are projected before the step.

    Works with every optimiser that has torch's step hooks, under schedulers, inside Trainer and accelerate, for the
    shards of FSDP2 as well, and leaves `state_dict` as it is: a run that is resumed attaches it anew. So do those who
    pickle or copy an optimiser, which loses hooks. A step inside the backward pass runs none.

    Args:
        optimizer: whatever steps the adapters.
        model: contains OSF layers of PEFT. Of their adapters those are kept that require gradients at the time of a
            step, also where another one was active at first.
        project: move adapters that are off already, after training without this, say; it changes the model. By default
            they are refused.

    Returns:
        A handle; its `remove()` takes the projections off.

    Raises:
        ValueError: no OSF layer in the model, an adapter that is off by more than rounding or not finite, or one that a
            host has flattened (FSDP1); it names the layer.

    Nayak et al. 2025, "Sculpting Subspaces" (2504.07097), equation 5, which projects gradients too.

    >>> import peft
    >>> from steepest.adapters import keep_protected
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 6), torch.nn.ReLU(), torch.nn.Linear(6, 4))
    >>> model = peft.get_peft_model(model, peft.OSFConfig(target_modules=["0", "2"], effective_rank=2))
    >>> optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    >>> handle = keep_protected(optimizer, model)
    >>> model(torch.randn(5, 8)).square().sum().backward(); optimizer.step()
    >>> layer = model.base_model.model[0]
    >>> u = torch.linalg.svd(layer.base_layer.weight)[0][:, :2]  # protected
    >>> bool((u.T @ layer.get_delta_weight("default")).abs().max() < 1e-6)
    True
    """
    layers = {clean(name): m for name, m in model.named_modules() if _is_osf(m)}
    if not layers:
        raise ValueError("model: has no OSF layers; make them with peft.get_peft_model(model, peft.OSFConfig(...))")

    @torch.no_grad()
    def before_step(*_: Any) -> None:
        for name, layer in layers.items():
            for factor in _trained(name, layer):
                if factor.gradient is not None:
                    _take_out(factor.gradient, factor)

    @torch.no_grad()
    def after_step(*_: Any) -> None:
        for name, layer in layers.items():
            for factor in _trained(name, layer):
                _take_out(factor.value, factor)

    for name, layer in layers.items():
        _check(name, layer, project)
    if project:
        after_step()
    wrapped: torch.optim.Optimizer = getattr(optimizer, "optimizer", optimizer)  # by accelerate
    return Kept(wrapped.register_step_pre_hook(before_step), wrapped.register_step_post_hook(after_step))


def _is_osf(module: nn.Module) -> bool:
    return isinstance(getattr(module, "osf_svd_params", None), nn.ModuleDict)


def _trained(name: str, layer: Any) -> Iterator[Factor]:
    for adapter, factors in layer.osf_svd_params.items():
        for side in "UV":
            key, table = f"{side}_low", dict(getattr(layer, f"_osf_{side}_high").items())
            factor, low, high = factors[key], getattr(layer, f"_osf_{key}_init")[adapter], table.get(adapter)
            if not factor.requires_grad:
                continue
            if factor.shape != low.shape:
                raise ValueError(
                    f"{name}: {key} of {adapter!r} has shape {tuple(factor.shape)}, expected {tuple(low.shape)}: "
                    "something has flattened it, as FSDP1 does. Use fully_shard (FSDP2) or DistributedDataParallel."
                )
            found = factor, None if factor._backward_hooks else factor.grad, high, low
            yield Factor(*(found if side == "U" else (None if t is None else t.mT for t in found)))


def _excess(x: Tensor, factor: Factor) -> Tensor:
    """The part of x `(n, k)` that is in the protected subspace, in at least float32.

    PEFT keeps one basis Q, of that subspace or of its complement, rounded to the precision that the weights had. A
    power of I - Q Q^T is the exact projection: its error e, 1e-6 in float32 and 1e-2 in bfloat16, becomes e^power.
    """
    x = widen(whole(x))
    basis = factor.allowed if factor.protected is None else factor.protected
    q = basis.to(x.dtype)
    rest = x
    for _ in range(2 if torch.finfo(basis.dtype).eps < 1e-6 else 4):
        rest = rest - q @ (q.mT @ rest)
    return rest if factor.protected is None else x - rest


def _take_out(x: Any, factor: Factor) -> None:
    excess = _excess(x, factor).to(x.dtype)
    if is_sharded(x):
        from torch.distributed.tensor import distribute_tensor

        excess = distribute_tensor(excess, x.device_mesh, x.placements)
    x.sub_(excess)


@torch.no_grad()
def _check(name: str, layer: nn.Module, project: bool) -> None:
    """Refuse a layer whose factors are not finite or, unless they will be moved, not in the allowed subspaces."""
    for factor in _trained(name, layer):
        value = factor.value
        if value.is_meta or not value.numel():  # without memory, or where all of the weight is protected
            continue
        x, q = widen(whole(value)), widen(factor.allowed)
        part = (_excess(value, factor).norm() / x.norm().clamp_min(torch.finfo(x.dtype).tiny)).item()
        if not math.isfinite(part):
            raise ValueError(f"{name}: a trained factor has NaN or infinite entries; load the adapter anew")
        rounding = (q.mT @ q - torch.eye(q.shape[-1], device=q.device)).norm() / q.shape[-1] ** 0.5
        if not project and part > max(1e-5, 8 * rounding.item(), 4 * torch.finfo(value.dtype).eps):
            raise ValueError(
                f"{name}: {part:.2g} of a trained factor's norm lies in the subspace that OSF protects, expected none "
                "but rounding: it was trained without projection, or not started from the weight. Pass project=True to "
                "take that part out, which changes the model."
            )
