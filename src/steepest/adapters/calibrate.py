"""Gradients of the layers that an adapter is about to adapt, from a few batches."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from steepest.adapters.base import GRADIENT

if TYPE_CHECKING:
    from steepest.adapters.config import AdapterConfig


def calibrate(model: nn.Module, config: AdapterConfig, step: Callable[[], Any]) -> AdapterConfig:
    """Compute the gradients that an adapter starts from, and leave them on the layers that `config` names.

    Call it before `get_peft_model(model, config)`, or before `add_adapter`; the adapter takes the gradients, and they
    are gone. Every adapter that is made of them needs a calibration of its own. While `step` runs, the weights of the
    layers require a gradient, so that memory for as many more numbers is needed as they have.

    Args:
        model: the model without the adapter, or with others.
        config: of an adapter that starts from gradients, as `LOFTConfig(support="gradient")`; its field `calibrated` is
            set, and so says in the saved adapter that its bases come from gradients and are saved.
        step: runs forward and backward passes on batches of the task, and nothing else: gradients add up. What
            parameters had as `.grad` and `requires_grad` they have again afterwards, whatever happens in it.

    Returns:
        The config.

    >>> from peft import get_peft_model
    >>> from steepest.adapters import LOFTConfig, calibrate
    >>> model, x = torch.nn.Sequential(torch.nn.Linear(8, 8)), torch.randn(20, 8)
    >>> config = LOFTConfig(r=4, support="gradient", target_modules=["0"])
    >>> config = calibrate(model, config, lambda: (model(x) - x).square().mean().backward())
    >>> model = get_peft_model(model, config)
    """
    method = getattr(config, "method", None)  # PEFT's own configs have none
    if method is None or not method().wants_gradient():
        made = type(config).__name__ if method is None else method()
        raise ValueError(f"config: {made} does not start from gradients, so that nothing is to be calibrated")
    layers = _targets(model, config)
    before = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    wanted = {id(weight) for _, _, weight in layers}
    try:
        for p, _, _ in before:
            p.requires_grad_(id(p) in wanted)
            p.grad = None
        with torch.enable_grad():
            step()
        found = [(name, layer, weight.grad) for name, layer, weight in layers]
    finally:
        for p, required, grad in before:
            p.requires_grad_(required)
            p.grad = grad
    for name, _, grad in found:
        _check(name, grad)
    for _, layer, grad in found:
        setattr(layer, GRADIENT, grad)
    config.calibrated = True
    setattr(config, GRADIENT, True)
    return config


def _targets(model: nn.Module, config: AdapterConfig) -> list[tuple[str, nn.Module, nn.Parameter]]:
    """The layers that the config names, as PEFT understands it, with their names and weights."""
    from peft.tuners.tuners_utils import (
        BaseTunerLayer,
        _maybe_include_all_linear_layers,  # what "all-linear" is only this knows
        check_target_module_exists,
    )
    from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

    whole: Any = model
    inner = whole.get_base_model() if hasattr(model, "get_base_model") else whole
    modules = dict(inner.named_modules())
    parts = tuple(f"{name}." for name, module in modules.items() if isinstance(module, BaseTunerLayer))
    wanted: Any = copy.copy(config)
    if wanted.target_modules is None:  # what the tuner will take
        kind = getattr(getattr(inner, "config", None), "model_type", "")
        wanted.target_modules = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(kind, [])
    wanted = _maybe_include_all_linear_layers(wanted, inner)
    named = {n: m for n, m in modules.items() if check_target_module_exists(wanted, n)}
    layers = {n: _base(m) for n, m in named.items() if not n.startswith(parts)}
    found = [(n, m, _weight(n, m)) for n, m in layers.items() if getattr(m, "weight", None) is not None]
    if not found:
        raise ValueError(f"config: no layer of the model is named by target_modules={config.target_modules!r}")
    return found


def _base(module: Any) -> nn.Module:
    """What is under other adapters."""
    return module.get_base_layer() if hasattr(module, "get_base_layer") else module


def _weight(name: str, layer: Any) -> nn.Parameter:
    """The weight, if it can have a gradient of its own."""
    weight = layer.weight
    if isinstance(weight, nn.Parameter) and weight.is_floating_point():
        return weight
    what = f"quantised ({weight.dtype})" if isinstance(weight, nn.Parameter) else "made by a parametrisation"
    raise ValueError(
        f"model: the weight of {name} is {what}, and has no gradient. Start the adapter on the model with plain "
        "weights, save it, and load it from its file here; or choose a start without gradients"
    )


def _check(name: str, gradient: torch.Tensor | None) -> None:
    """That the step has given the layer a finite gradient."""
    if gradient is None or not gradient.isfinite().all():
        what = "there is none" if gradient is None else "it has NaN or infinite entries"
        raise ValueError(
            f"step: of the gradient of {name}, {what}; it has to run the model on a batch, and backward from a finite "
            "loss that depends on every adapted layer"
        )
