"""Adapters inside PEFT: for each one a config, a layer and a tuner, registered under a type of its own.

PEFT knows its methods by three dictionaries. A string with the two attributes that PEFT asks of its types goes into
them as well as a member of PEFT's enumeration does, and nothing of PEFT is changed. Wherever an adapter is loaded,
`import steepest.adapters` has to come first: a file of weights cannot tell PEFT where the code is, and without it PEFT
knows no more to say than `KeyError: 'STEEPEST_LOFT'`. The model card that is saved with an adapter says so.
"""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any

from peft import mapping
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from steepest.adapters.base import Adapter
from steepest.adapters.base_weight import sizes
from steepest.adapters.config import AdapterConfig, type_of
from steepest.adapters.layer import AdapterLayer


class AdapterTuner(BaseTuner):
    """Puts the layers of one family into a model."""

    tuner_layer_cls: Any
    target_module_mapping: Any = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

    def _create_and_replace(
        self,
        peft_config: AdapterConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        *,
        parameter_name: str | None = None,
    ) -> None:
        if isinstance(target, self.tuner_layer_cls):
            target.update_layer(adapter_name, peft_config, current_key)
            return
        base = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
        if sizes(base) is None:
            raise ValueError(
                f"target_modules: {current_key} is a {type(base).__name__}, but {peft_config.peft_type} adapts linear "
                "layers only"
            )
        if isinstance(base, NonDynamicallyQuantizableLinear):
            raise ValueError(
                f"target_modules: {current_key} belongs to torch.nn.MultiheadAttention, which reads its weight and "
                "never calls it, so that an adapter would do nothing; leave it out, with exclude_modules say"
            )
        layer = self.tuner_layer_cls(target, adapter_name, peft_config, current_key)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        self._replace_module(parent, target_name, layer, target)

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        """What is trained starts in float32 at least, where `start` is exact; other dtypes are a wish of the caller."""
        super()._cast_adapter_dtype(adapter_name, autocast_adapter_dtype)
        if not autocast_adapter_dtype:
            for layer in (m for m in self.model.modules() if isinstance(m, AdapterLayer)):
                layer.narrow(adapter_name)

    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse what PEFT would drop in silence."""
        if kwargs.get("adapter_names") is not None:
            raise ValueError(
                f"adapter_names: {type(self).__name__} cannot take another adapter for each row of a batch; call "
                "set_adapter and pass one batch for each adapter"
            )
        return contextlib.nullcontext()


def register(family: type[Adapter]) -> type[AdapterConfig]:
    """Make the config, the layer and the tuner of a family, and enter them into PEFT; the config is what users take.

    >>> from steepest.adapters import LOFTConfig
    >>> LOFTConfig(r=4, target_modules=["query"]).method().r
    4
    """
    name, prefix, key = family.__name__, f"steepest_{family.__name__.lower()}_", type_of(family)
    made = globals().get(f"{name}Config")
    if made is not None and made.family is family:
        return made
    _refuse_namesake(family, made)
    fields = [
        (f.name, f.type, dataclasses.field(default=f.default, default_factory=f.default_factory))
        for f in dataclasses.fields(family)  # type: ignore[arg-type]
    ]
    named = {"__module__": __name__, "family": family, "__doc__": _config_doc(family)}
    config = dataclasses.make_dataclass(f"{name}Config", fields, bases=(AdapterConfig,), namespace=named, kw_only=True)
    layer = type(
        f"{name}Linear",
        (AdapterLayer,),
        {
            "__module__": __name__,
            "__doc__": f"A linear layer adapted by `{name}`.",
            "family": family,
            "prefix": prefix,
            "adapter_layer_names": tuple(prefix + n for n in family.trained),
            "other_param_names": tuple(prefix + n for n in ("methods", "seeds", "awaited", *family.frozen, "probe")),
        },
    )
    described = f"A model whose linear layers are adapted by `{name}`."
    members = {"__module__": __name__, "__doc__": described, "prefix": prefix, "tuner_layer_cls": layer}
    tuner = type(f"{name}Model", (AdapterTuner,), members)
    for made in (config, layer, tuner):
        globals()[made.__name__] = made  # where pickle looks for them
    mapping.PEFT_TYPE_TO_PREFIX_MAPPING[key] = prefix
    mapping.PEFT_TYPE_TO_CONFIG_MAPPING[key] = config
    mapping.PEFT_TYPE_TO_TUNER_MAPPING[key] = tuner
    return config


def _refuse_namesake(family: type[Adapter], made: type[AdapterConfig] | None) -> None:
    """A family of this library stays what its name says; one's own may be defined anew, as in a notebook."""
    if made is not None and made.family.__module__.startswith("steepest.adapters."):
        raise ValueError(f"family: {family.__name__} is a method of this library; give your own another name")


def _config_doc(family: type[Adapter]) -> str:
    return f"Config of `steepest.adapters.{family.__name__}`: its options, and those of `AdapterConfig`.\n\n" + (
        family.__doc__ or ""
    )
