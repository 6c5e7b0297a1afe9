"""Gradients of the layers that an adapter is about to adapt, from a few batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from steepest.adapters.plug import AdapterConfig

GRADIENT = "_steepest_gradient"
"""Attribute of a layer that holds the gradient of its weight, until an adapter takes it."""


def calibrate(model: nn.Module, config: AdapterConfig, step: Callable[[], Any]) -> AdapterConfig:
    """Compute the gradients that an adapter starts from, and leave them on the layers that `config` names.

    Call it before `get_peft_model(model, config)`, or before `add_adapter`; the adapter takes the gradients, and they
    are gone. Every adapter that is made of them needs a calibration of its own. While `step` runs, the weights of the
    layers require a gradient, so that memory for as many more numbers is needed as they have.

    Args:
        model: the model without the adapter, or with others.
        config: of an adapter that starts from gradients, as `LOFTConfig(support="gradient")`; its field `calibrated` is
            set, and so says in the saved adapter that its bases come from gradients and are saved.
        step: runs forward and backward passes on batches of the task, and nothing else: gradients add up.

    Returns:
        The config.

    >>> from peft import get_peft_model
    >>> from steepest.adapters import LOFTConfig, calibrate
    >>> model, x = torch.nn.Sequential(torch.nn.Linear(8, 8)), torch.randn(20, 8)
    >>> config = LOFTConfig(r=4, support="gradient", target_modules=["0"])
    >>> config = calibrate(model, config, lambda: (model(x) - x).square().mean().backward())
    >>> model = get_peft_model(model, config)
    """
    if not config.method().wants_gradient():
        raise ValueError(
            f"config: {config.method()} does not start from gradients, so that nothing is to be calibrated"
        )
    weights = _targets(model, config)
    before = {name: (p.requires_grad, p.grad) for name, p in model.named_parameters()}
    try:
        for p in model.parameters():
            p.requires_grad_(any(p is w for _, w in weights))
            p.grad = None
        with torch.enable_grad():
            step()
        found = [(layer, w, w.grad) for layer, w in weights]
    finally:
        for name, p in model.named_parameters():
            p.requires_grad_(before[name][0])
            p.grad = before[name][1]
    _check(found)
    for layer, _, gradient in found:
        setattr(layer, GRADIENT, gradient)
    config.calibrated = True
    return config


def _targets(model: nn.Module, config: AdapterConfig) -> list[tuple[nn.Module, nn.Parameter]]:
    """The layers that the config names, and their weights."""
    from peft.tuners.tuners_utils import BaseTunerLayer, check_target_module_exists

    whole: Any = model
    inner = whole.get_base_model() if hasattr(model, "get_base_model") else whole
    named: list[Any] = [m for key, m in inner.named_modules() if check_target_module_exists(config, key)]
    layers: list[Any] = [module.get_base_layer() if isinstance(module, BaseTunerLayer) else module for module in named]
    found = [(layer, layer.weight) for layer in layers if isinstance(getattr(layer, "weight", None), nn.Parameter)]
    if not found:
        raise ValueError(f"config: no layer of the model is named by target_modules={config.target_modules!r}")
    return found


def _check(found: list[tuple[nn.Module, nn.Parameter, torch.Tensor | None]]) -> None:
    """That the step has given every layer a finite gradient."""
    for layer, _, gradient in found:
        if gradient is None or not gradient.isfinite().all():
            what = "none" if gradient is None else "NaN or infinite entries"
            raise ValueError(
                f"step: the gradient of {layer} has {what}; it has to run the model on a batch, and backward from a "
                "finite loss that depends on every adapted layer"
            )
