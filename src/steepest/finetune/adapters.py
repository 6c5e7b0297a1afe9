"""The adapters that `steepest finetune` can put on a model: those of this library, LoRA in its forms, PEFT's."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import sys
import types
import typing
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from steepest.finetune.encoder import linear_layers
from steepest.runs.errors import UserError, unknown

PEFT: dict[str, tuple[str, str, dict[str, Any]]] = {
    "lora": ("LoRA", "LoraConfig", {}),
    "rslora": ("rsLoRA", "LoraConfig", {"use_rslora": True}),
    "dora": ("DoRA", "LoraConfig", {"use_dora": True}),
    "pissa": ("PiSSA", "LoraConfig", {"init_lora_weights": "pissa"}),
    "olora": ("OLoRA", "LoraConfig", {"init_lora_weights": "olora"}),
    "mica": ("MiCA", "LoraConfig", {"init_lora_weights": "mica"}),
    "orthogonal": ("LoRA from orthogonal factors", "LoraConfig", {"init_lora_weights": "orthogonal"}),
    "asymmetric": ("asymmetric LoRA", "LoraConfig", {}),
    "delora": ("DeLoRA", "DeloraConfig", {}),
    "hira": ("HiRA", "HiraConfig", {}),
    "gralora": ("GraLoRA", "GraloraConfig", {}),
    "randlora": ("RandLoRA", "RandLoraConfig", {}),
    "miss": ("MiSS", "MissConfig", {}),
    "loha": ("LoHa", "LoHaConfig", {}),
    "lokr": ("LoKr", "LoKrConfig", {}),
    "vera": ("VeRA", "VeraConfig", {}),
    "shira": ("SHiRA", "ShiraConfig", {}),
    "oft": ("OFT", "OFTConfig", {}),
    "boft": ("BOFT", "BOFTConfig", {}),
    "psoft": ("PSOFT", "PsoftConfig", {}),
    "peft-hra": ("PEFT's HRA", "HRAConfig", {}),
    "road": ("RoAd", "RoadConfig", {}),
    "osf": ("OSF", "OSFConfig", {}),
    "ia3": ("IA3", "IA3Config", {"feedforward_modules": []}),
}
"""PEFT's methods by name: what the report calls one, its config, and the options that make it what it is. This
library's own are found by themselves."""
LORA = {"r": 8, "lora_alpha": 16.0}
"""Rank and scale of LoRA where none are given; other methods have the defaults of their configs."""
ORTHOGONAL = {"oft", "peft-hra"}
"""Methods of PEFT that turn the rows of weights and do nothing else to them; this library's own say it themselves."""
SEEDS = {"seed", "random_seed"}
"""Options that --seed sets."""
NO_OPTIONS = {"calibrated", "inference_mode"}
"""Fields of configs that say what has been done, not what is to be done."""


@dataclasses.dataclass(frozen=True)
class Method:
    """One name of --adapter: PEFT's config of it, and what is done to a model and an optimiser that have it."""

    name: str
    label: str
    """What the report calls it."""
    config: type[Any]
    fixed: dict[str, Any]
    """Options that make the method what it is."""
    defaults: dict[str, Any]
    """Options whose defaults differ from those of the config."""
    start: Callable[..., Any] | None = None
    """Called on the model that has got the adapter, with those of the options that it takes."""
    keep: Callable[[torch.optim.Optimizer, nn.Module], Any] | None = None
    """Called on each optimiser of such a model."""

    @property
    def ours(self) -> bool:
        """Whether an adapter that is saved needs `import steepest.adapters` to be loaded."""
        return self.config.__module__.startswith("steepest.")

    @property
    def pairs(self) -> bool:
        """Whether pairs of LoRA factors are trained, for which a geometry can be chosen."""
        return self.config.__name__ == "LoraConfig" and self.name not in ("mica", "asymmetric")

    def options(self) -> dict[str, Any]:
        """The type of each option."""
        from peft import PeftConfig

        common = {f.name for f in dataclasses.fields(PeftConfig)} | NO_OPTIONS | self.fixed.keys()
        hints = _hints(self.config)
        own = {f.name: hints[f.name] for f in dataclasses.fields(self.config) if f.init and f.name not in common}
        working = {name: hint for name, hint in own.items() if "dropout" not in name}  # always in evaluation mode
        return working | _keywords(self.start)

    def orthogonal(self, config: Any) -> bool:
        """Whether the adapted weights are to keep the singular values of the frozen ones."""
        from steepest.adapters import AdapterConfig

        return config.method().orthogonal() if isinstance(config, AdapterConfig) else self.name in ORTHOGONAL

    def rank(self) -> str | None:
        """The option that --rank sets, if there is one. Where its default is 0, r counts something else."""
        return "r" if self.default("r") else None

    def alpha(self) -> str | None:
        """The option that --alpha sets, if there is one."""
        return next((name for name in self.options() if name == "alpha" or name.endswith("_alpha")), None)

    def default(self, option: str) -> Any:
        """The value of an option that is not given."""
        return ({f.name: f.default for f in dataclasses.fields(self.config)} | self.defaults).get(option)

    def read(self, given: Iterable[str]) -> dict[str, Any]:
        """Options written `key=value`, as values of their types."""
        known, found = self.options(), {}
        for text in given:
            name, equals, value = text.partition("=")
            if not equals:
                raise UserError(f"--adapter-option {text}: write key=value; the keys are {', '.join(sorted(known))}.")
            if name not in known:
                raise unknown(f"--adapter-option of {self.name}", name, known)
            found[name] = parse(f"--adapter-option {text}", value, known[name])
        return found

    def configured(
        self, options: Iterable[str], rank: int | None, alpha: float | None, seed: int = 0
    ) -> tuple[Any, dict[str, Any]]:
        """PEFT's config, and the options of `start`."""
        found = self.read(options)
        for flag, name, value in (("rank", self.rank(), rank), ("alpha", self.alpha(), alpha)):
            if value is None:
                continue
            if name is None:
                raise UserError(f"--{flag} {value}: the adapter {self.name} has no {flag}; leave the option out.")
            if found.setdefault(name, value) != value:
                raise UserError(f"--{flag} {value}: --adapter-option says {name}={found[name]}; give one of the two.")
        for name in SEEDS & self.options().keys():
            found.setdefault(name, seed)
        later = {name: found.pop(name) for name in _keywords(self.start) if name in found}
        try:
            config = self.config(**{**self.defaults, **found, **self.fixed})
        except (ValueError, TypeError) as error:
            raise UserError(f"--adapter {self.name}: {error}") from None
        return config, later


@functools.cache
def methods() -> dict[str, Method]:
    """Every adapter by its name."""
    import peft

    from steepest import adapters
    from steepest.adapters.asymmetric import asymmetric_
    from steepest.adapters.osf import keep_protected

    starts, keeps = {"asymmetric": asymmetric_}, {"osf": keep_protected}
    known = {}
    for name, (label, config, fixed) in PEFT.items():
        defaults = LORA if config == "LoraConfig" else {}
        known[name] = Method(name, label, getattr(peft, config), fixed, defaults, starts.get(name), keeps.get(name))
    for name, family in adapters.FAMILIES.items():
        known[name.lower()] = Method(name.lower(), name, adapters.register(family), {}, {})
    return known


def method(name: str) -> Method:
    """The method of that name; a `UserError` lists all."""
    if name not in methods():
        raise unknown("--adapter", name, methods())
    return methods()[name]


def wants_calibration(config: Any) -> bool:
    """Whether an adapter starts from gradients."""
    from steepest.adapters import AdapterConfig

    return isinstance(config, AdapterConfig) and config.method().wants_gradient()


def adapt(backbone: nn.Module, chosen: Method, configured: tuple[Any, dict[str, Any]], step: Callable[[], Any]) -> Any:
    """The transformer with an adapter on all linear layers of its stack, or on those that an option names.

    Args:
        configured: what `Method.configured` gave.
        step: runs forward and backward on batches of the task, for an adapter that starts from gradients.
    """
    from peft import get_peft_model

    from steepest.adapters import calibrate

    config, later = configured
    if config.target_modules is None:
        config.target_modules = linear_layers(backbone)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of transformers, about a name that PEFT uses
        try:
            if wants_calibration(config):
                config = calibrate(backbone, config, step)
            model = get_peft_model(backbone, config).eval()
            if chosen.start is not None:
                chosen.start(model, **later)
        except (ValueError, NotImplementedError) as error:
            raise UserError(f"--adapter {chosen.name}: {error}") from None
    return model


def count(model: nn.Module) -> tuple[int, int]:
    """How many parameters are trained, and how many there are."""
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(n for n, trained in sizes if trained), sum(n for n, _ in sizes)


def parse(what: str, text: str, hint: Any) -> Any:
    """The value that `text` stands for, of the type `hint`; a `UserError`, which begins with `what`, where it is none.

    >>> from steepest.finetune.adapters import parse
    >>> parse("r", "8", int | None), parse("r", "none", int | None), parse("scales", "true", bool)
    (8, None, True)
    """
    kinds = _alternatives(hint)
    for kind in sorted(kinds, key=lambda k: _ORDER.index(k) if k in _ORDER else len(_ORDER) + (k is str)):
        try:
            return _read(text, kind)
        except (ValueError, KeyError):
            continue
    raise UserError(f"{what}: expected {' or '.join(map(_name, kinds))}.")


_ORDER = [type(None), bool, int, float]
"""Which types of a union are tried first; a string, which can be anything, is the last."""
_WORDS = {"true": True, "false": False}


def _read(text: str, kind: Any) -> Any:
    if typing.get_origin(kind) is typing.Literal:
        return {str(value): value for value in typing.get_args(kind)}[text]
    if kind is type(None):
        return {"none": None}[text.lower()]
    if kind is bool:
        return _WORDS[text.lower()]
    if kind in (int, float, str):
        return kind(text)
    value, kind = json.loads(text), typing.get_origin(kind) or kind
    if kind is tuple and isinstance(value, list):
        return tuple(value)
    if not isinstance(value, kind):
        raise ValueError(text)
    return value


def _alternatives(hint: Any) -> list[Any]:
    """The types of a union; one type, or a set of words, as it is."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return [kind for part in typing.get_args(hint) for kind in _alternatives(part)]
    return [str] if hint is Any else [hint]


def _name(kind: Any) -> str:
    if typing.get_origin(kind) is typing.Literal:
        return "one of " + ", ".join(map(str, typing.get_args(kind)))
    names = {type(None): "none", bool: "true or false", int: "a whole number", float: "a number", str: "a word"}
    return (
        names.get(kind)
        or f"a {'list' if typing.get_origin(kind) is tuple else getattr(kind, '__name__', kind)} as JSON"
    )


def _hints(config: type[Any]) -> dict[str, Any]:
    """The types of a config's fields; those that a family has brought are written in the family's module."""
    family = getattr(config, "family", config)
    return typing.get_type_hints(config, localns=vars(sys.modules[family.__module__]))


def _keywords(start: Callable[..., Any] | None) -> dict[str, Any]:
    """The types of a function's options: its parameters after the model, but for the adapter's name."""
    if start is None:
        return {}
    hints = typing.get_type_hints(start)
    names = list(inspect.signature(start).parameters)[1:]
    return {name: hints[name] for name in names if name != "adapter_name"}
