"""Which options of which adapters go through PEFT's tests, on which of its test models: all that steepest registers."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch

import steepest.adapters as adapters
from steepest.adapters.base import Adapter, Source

SITES = {
    ("MLP", "lin0"): (20, 10),
    ("MLP", "lin1"): (2, 20),
    ("EmbConv1D", "conv1d"): (1, 5),
    ("EmbConv1D", "lin0"): (2, 10),
    ("MLP2", "lin0"): (32, 10),
    ("MLP2", "lin1"): (2, 32),
    ("MHA", "lin0"): (2, 10),
    ("Conv2d", "lin0"): (2, 10),
}
"""Outputs and inputs of linear layers of the test models. What else these have, convolutions say, stays as it is."""

THOROUGH: list[tuple[str, Any, dict[str, Any]]] = [
    ("MLP", "lin0", {}),
    ("MLP", ["lin0", "lin1"], {}),
    ("MLP", ["lin0"], {"modules_to_save": ["lin1"]}),
    ("MLP", ["lin0"], {"save_bases": True}),
    ("EmbConv1D", ["conv1d", "lin0"], {}),
    ("MHA", ["lin0"], {}),
    ("Conv2d", ["lin0"], {}),
]
"""Models, targets and further options for the first option of each family; the others get the first site that fits."""


def config_of(family: type[Adapter]) -> type:
    """The config that PEFT knows."""
    return getattr(adapters, f"{family.__name__}Config")


def ready_config_of(family: type[Adapter]) -> type:
    """One that needs no options: if by default it starts from gradients, it says that it has been calibrated."""
    config = config_of(family)
    if not family().wants_gradient():
        return config
    return dataclasses.make_dataclass(config.__name__, [("calibrated", bool, True)], bases=(config,))


def single_rows() -> list[tuple[str, str, type, dict[str, Any]]]:
    """Rows of TEST_CASES: name, model, config, its arguments."""
    return [row for family in adapters.FAMILIES.values() for row in _single(family)]


def multi_rows() -> list[tuple[str, str, type, dict[str, Any], dict[str, Any]]]:
    """Rows of MULTIPLE_ACTIVE_ADAPTERS_TEST_CASES: name, kind, config, arguments of the first and of the second."""
    return [row for family in adapters.FAMILIES.values() for row in _multi(family)]


def _single(family: type[Adapter]) -> Iterator[tuple[str, str, type, dict[str, Any]]]:
    config = config_of(family)

    def row(model: str, targets: Any, options: dict[str, Any], more: dict[str, Any]) -> Any:
        text = ", ".join(f"{k}={v}" for k, v in (options | more).items())
        name = f"{family.__name__} {model} {targets if isinstance(targets, str) else '+'.join(targets)} {text}"
        return name, model, config, {"target_modules": targets, **options, **more}

    first, *others = family.examples()
    for model, targets, more in THOROUGH:
        options = fitted(first, *(SITES[model, t] for t in ([targets] if isinstance(targets, str) else targets)))
        if options is not None and (family.frozen or "save_bases" not in more):
            yield row(model, targets, options, more)
    for method in others:
        for (model, target), shape in SITES.items():
            options = fitted(method, shape)
            if options is not None:
                yield row(model, [target], options, {})
                break


def _multi(family: type[Adapter]) -> Iterator[tuple[str, str, type, dict[str, Any], dict[str, Any]]]:
    config, start = config_of(family), {"init_weights": False}
    for i, method in enumerate(family.examples()):
        wide, narrow = fitted(method, SITES["MLP", "lin0"]), fitted(method, SITES["MLP", "lin1"])
        name = f"{family.__name__} {i} {method}"
        if wide is not None:
            here = {"target_modules": ["lin0"], **start, **wide}
            yield f"{name} Same", "steepest", config, here, here | {"seed": 1}
        if wide is not None and narrow is not None:
            there = {"target_modules": ["lin1"], **start, **narrow}
            yield f"{name} Different", "steepest", config, here, there


def fitted(method: Adapter, *shapes: tuple[int, int]) -> dict[str, Any] | None:
    """Options for layers of these shapes `(out, in)`: the method's own, or those with one number changed as little as
    will do, such that something is trained; None if there are none. What starts from gradients starts from what is made
    of a zero one."""
    numbers = [f.name for f in dataclasses.fields(method) if type(getattr(method, f.name)) is int]
    near = ((n, getattr(method, n) + d * s) for d in range(1, 16) for n in numbers for s in (-1, 1))
    for change in ({}, *({name: value} for name, value in near if value > 0)):
        try:
            changed = dataclasses.replace(method, **change)
        except ValueError:
            continue
        if all(_fits(changed, shape) and changed.count(*shape) > 0 for shape in shapes):
            options = {f.name: getattr(changed, f.name) for f in dataclasses.fields(changed)}
            default = {f.name: f.default for f in dataclasses.fields(changed)}
            options = {name: value for name, value in options.items() if value != default[name]}
            return options | ({"calibrated": True} if changed.wants_gradient() else {})
    return None


def _fits(method: Adapter, shape: tuple[int, int]) -> bool:
    """Whether the method accepts such a layer: any error but a refusal is a fault that the tests are to show."""
    weight = Source(torch.empty(0)).normal(*shape)
    source = Source(weight, torch.zeros_like(weight) if method.wants_gradient() else None)
    try:
        method.start(source, method.bases(source))
    except ValueError:
        return False
    return True
