"""Fine-tuning methods: one file for each parametrisation, and a plug that puts them into PEFT.

`import steepest.adapters` registers them with PEFT, if it is installed. Then each is used as LoRA is, by its config.

>>> from peft import get_peft_model
>>> from steepest.adapters import LOFTConfig
>>> model = get_peft_model(torch.nn.Sequential(torch.nn.Linear(8, 8)), LOFTConfig(r=4, target_modules=["0"]))
>>> model.print_trainable_parameters()
trainable params: 6 || all params: 78 || trainable%: 7.6923
"""

from __future__ import annotations

import importlib.util
from typing import Any

from steepest.adapters.asymmetric import asymmetric_
from steepest.adapters.base import Adapter, Source
from steepest.adapters.calibrate import calibrate
from steepest.adapters.hra import HRA
from steepest.adapters.loft import LOFT
from steepest.adapters.moelora import MoELoRA
from steepest.adapters.osf import keep_protected
from steepest.adapters.penalty import penalty
from steepest.adapters.qgoft import QGOFT
from steepest.adapters.riemannlora import RiemannLoRA
from steepest.adapters.soda import SODA
from steepest.adapters.spectral import SpectralAdapter

FAMILIES: dict[str, type[Adapter]] = Adapter.known
"""Every adapter by its name, a user's own as well; its config is `steepest.adapters.<name>Config`."""

if importlib.util.find_spec("peft"):
    from steepest.adapters.plug import AdapterConfig, register

    globals().update({f"{family.__name__}Config": register(family) for family in FAMILIES.values()})

__all__ = [
    "FAMILIES",
    "HRA",
    "LOFT",
    "QGOFT",
    "SODA",
    "Adapter",
    "AdapterConfig",
    "MoELoRA",
    "RiemannLoRA",
    "Source",
    "SpectralAdapter",
    "asymmetric_",
    "calibrate",
    "keep_protected",
    "penalty",
    "register",
]


def __getattr__(name: str) -> Any:
    family = FAMILIES.get(name.removesuffix("Config")) if name.endswith("Config") else None
    if family and "register" in globals():  # of a user's own
        return register(family)
    if family or name in ("AdapterConfig", "register"):
        raise ImportError(f"steepest.adapters.{name} needs PEFT; install it with: pip install 'steepest[hf]'")
    raise AttributeError(f"module 'steepest.adapters' has no attribute {name!r}")
