"""A linear layer with adapters, as PEFT wants it."""

from __future__ import annotations

import math
import warnings
import zlib
from typing import Any, ClassVar

import torch
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from steepest.adapters.base import GRADIENT, Adapter, Source
from steepest.adapters.base_weight import is_plain, out_in, read, sizes, write
from steepest.adapters.bases import matches, probe, recover
from steepest.adapters.config import AdapterConfig
from steepest.linalg.precision import double
from steepest.manifolds.tensors import as_tuple
from steepest.optim.constrain import Constraint, constraints
from steepest.optim.groups import clean


class AdapterLayer(nn.Module, BaseTunerLayer):
    """A linear layer with adapters of one family, several by their names."""

    family: ClassVar[type[Adapter]]
    prefix: ClassVar[str]
    adapter_layer_names: tuple[str, ...]
    other_param_names: tuple[str, ...]

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: AdapterConfig, key: str) -> None:
        super().__init__()
        self.base_layer = base_layer
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        self._active_adapter = adapter_name
        base = self.get_base_layer()
        self.fan_in_fan_out = isinstance(base, Conv1D)
        self.in_features, self.out_features = sizes(base)
        for name in ("methods", "seeds", "awaited"):
            setattr(self, self.prefix + name, {})
        for name in self.family.trained:
            setattr(self, self.prefix + name, nn.ParameterDict())
        for name in (*self.family.frozen, "probe"):
            setattr(self, self.prefix + name, _Buffers())
        self.register_load_state_dict_post_hook(_check_bases)
        self.update_layer(adapter_name, config, key)

    def update_layer(self, adapter_name: str, config: AdapterConfig, key: str) -> None:
        """Add the adapter `adapter_name` to this layer, whose name in the model is `key`."""
        method, weight, seed = config.method(), self._unmerged(), _seed(config.seed, key)
        if weight.is_meta and method.frozen:
            raise ValueError(
                f"{key}: its weight is on the meta device, but {type(method).__name__} starts from its values; load "
                "the base model's weights first"
            )
        gradient = self._gradient(method, config, key)
        awaited = method.wants_gradient() and gradient is None
        source = Source(double(weight), torch.zeros_like(double(weight)) if awaited else gradient, seed)
        bases = method.bases(source)
        trained = method.start(source, bases)
        if not config.init_weights:
            trained = _shaken(method, trained, source)
        device, stored = weight.device, _stored_dtype(weight)
        self.methods[adapter_name], self._seeds[adapter_name] = method, seed
        for name, value in trained.items():
            self.tensors_of(name)[adapter_name] = nn.Parameter(value.to(device, stored).contiguous())
        self._declare(adapter_name, method)
        basis = method.basis
        saved = basis not in bases or config.save_bases or method.wants_gradient()
        for name, value in bases.items():
            kept = value.to(device, stored if value.is_floating_point() else value.dtype)
            self.tensors_of(name).put(adapter_name, kept.contiguous(), persistent=saved)
        if awaited:
            self._awaited[adapter_name] = True
            self.tensors_of(basis or "")[adapter_name].fill_(math.nan)
        if basis is not None and not saved:
            self.tensors_of("probe").put(adapter_name, probe(bases[basis]).to(device, stored), persistent=True)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def delete_adapter(self, adapter_name: str) -> None:
        """Take the adapter out of this layer, and what was said of its points."""
        super().delete_adapter(adapter_name)
        for names in [names for names in constraints(self) if names[0].endswith(f".{adapter_name}")]:
            del constraints(self)[names]

    def narrow(self, adapter_name: str) -> None:
        """Keep what is trained in the dtype of the base weight, unless that is quantised."""
        weight: Any = getattr(self.get_base_layer(), "weight", None)
        tables = (self.tensors_of(name) for name in self.family.trained)
        for table in (table for table in tables if adapter_name in table and is_plain(weight)):
            table[adapter_name] = nn.Parameter(table[adapter_name].to(weight.dtype), table[adapter_name].requires_grad)

    @property
    def methods(self) -> dict[str, Adapter]:
        """The parametrisation of each adapter."""
        return getattr(self, self.prefix + "methods")

    def tensors_of(self, name: str) -> Any:
        """All adapters' tensors of one name."""
        return getattr(self, self.prefix + name)

    def tensors(self, adapter_name: str) -> dict[str, Tensor]:
        """The adapter's tensors, trained and frozen, in the dtype of the trained ones, and in float32 at least."""
        tables = {n: self.tensors_of(n) for n in (*self.family.trained, *self.family.frozen)}
        found = {n: table[adapter_name] for n, table in tables.items() if adapter_name in table}
        if adapter_name in self._awaited:
            self._has_come(adapter_name)
        dtype = _stored_dtype(next(found[n] for n in self.family.trained if n in found))
        return {n: t.to(dtype) if t.is_floating_point() else t for n, t in found.items()}

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The layer's output, from its input."""
        if self.disable_adapters and self.merged:
            self.unmerge()
        if self.disable_adapters or self.merged:
            return self.base_layer(x, *args, **kwargs)
        dtype, added = x.dtype, None
        for name in reversed(self.active_adapters):  # merged one after the other, the last acts on the input first
            if name not in self.methods:
                continue
            t = self.tensors(name)
            x = self.methods[name].turn(t, self._cast_input_dtype(x, _dtype(t)))
            addition = self.methods[name].add(t, self._cast_input_dtype(x, _dtype(t)))
            added = added if addition is None else addition if added is None else added + addition
        y = self.base_layer(x.to(dtype), *args, **kwargs)
        return y if added is None else (y + added).to(y.dtype)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Write adapters into the base weight. With `safe_merge` a result that is not finite is refused."""
        base: Any = self.get_base_layer()
        if not is_plain(getattr(base, "weight", None)):
            raise ValueError(
                f"merge: the weight of {type(base).__name__} is quantised, and would be rounded anew; load the base "
                "model unquantised to merge, or keep the adapter beside it"
            )
        inner: Any = self.base_layer
        if isinstance(inner, BaseTunerLayer) and not (inner.merged or inner.disable_adapters):
            inner.merge(safe_merge=safe_merge)  # (W + B A) M, of LoRA below a rotation, is not W M + B A
        for name in check_adapters_to_merge(self, adapter_names):
            if name not in self.methods:
                continue
            weight = self._merged(name, self._weight())
            if safe_merge and not weight.isfinite().all():
                raise ValueError(f"NaNs detected in the merged weights. The adapter {name} seems to be broken")
            write(self.get_base_layer(), weight)
            self.merged_adapters.append(name)

    def unmerge(self) -> None:
        """Take all merged adapters out of the base weight again."""
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
            return
        write(self.get_base_layer(), self._unmerged())
        self.merged_adapters.clear()

    @torch.no_grad()
    def get_delta_weight(self, adapter: str, *_: Any) -> Tensor:
        """W' - W of one adapter, in the layout of the base layer's weight, whose own value PEFT may pass as well."""
        weight = self._unmerged()
        return out_in(self._merged(adapter, weight) - weight, self.fan_in_fan_out)

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """Whether `peft.convert_to_lora` can take the change of the weight."""
        return self.family.mergeable

    def penalty(self) -> Tensor | None:
        """What the active adapters add to the loss for this layer."""
        active = () if self.disable_adapters else self.active_adapters
        terms = [self.methods[n].penalty(self.tensors(n)) for n in active if n in self.methods]
        found = [term for term in terms if term is not None]
        return torch.stack(found).sum() if found else None

    def __repr__(self) -> str:
        return f"{self.prefix.removesuffix('_')}.{super().__repr__()}"

    def source(self, adapter_name: str) -> Source:
        """What an adapter in this layer starts from, but for a gradient."""
        return Source(double(self._unmerged()), seed=self._seeds[adapter_name])

    @property
    def _seeds(self) -> dict[str, int]:
        return getattr(self, self.prefix + "seeds")

    @property
    def _awaited(self) -> dict[str, bool]:
        """Adapters made of gradients whose bases are to be loaded."""
        return getattr(self, self.prefix + "awaited")

    def _has_come(self, adapter_name: str) -> None:
        """Raise unless a basis that is awaited has been loaded."""
        if not self.tensors_of(self.methods[adapter_name].basis or "")[adapter_name].isfinite().all():
            raise ValueError(
                f"{adapter_name}: its config is that of a saved adapter, made of gradients, but its weights have not "
                "been loaded. Load them with PeftModel.from_pretrained; or, to start anew, set config.calibrated = "
                "False and call steepest.adapters.calibrate"
            )
        del self._awaited[adapter_name]

    def _gradient(self, method: Adapter, config: AdapterConfig, key: str) -> Tensor | None:
        """The gradient `(out, in)` of `calibrate`, which is taken, and not kept; None where none is needed, as all that
        was made of it is about to be loaded."""
        if not method.wants_gradient():
            return None
        gradient = self.get_base_layer().__dict__.pop(GRADIENT, None)
        if gradient is not None:
            return double(out_in(gradient, self.fan_in_fan_out))
        if not config.calibrated or hasattr(config, GRADIENT):
            raise ValueError(
                f"{key}: {method} starts from gradients; call steepest.adapters.calibrate(model, config, step) "
                "before get_peft_model or add_adapter, each time"
            )
        return None

    def _declare(self, adapter_name: str, method: Adapter) -> None:
        """Say which of the trained tensors are points of a manifold."""
        for names, manifold in method.points().items():
            full = tuple(f"{self.prefix}{name}.{adapter_name}" for name in names)
            constraints(self, create=True)[full] = Constraint(manifold, (None,) * len(full), {})

    def _weight(self) -> Tensor:
        """W `(out, in)` of the base layer, whole where it is sharded; or what a quantised one stands for."""
        return read(self.get_base_layer())

    @torch.no_grad()
    def _unmerged(self) -> Tensor:
        """W `(out, in)` without the adapters that are merged into it."""
        weight = self._weight()
        for name in reversed(self.merged_adapters):
            if name in self.methods:
                weight = self.methods[name].unmerge(*self._wide(name, weight))
        return weight

    def _wide(self, adapter_name: str, weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """The adapter's tensors and a weight in the wider of their dtypes, and in float32 at least."""
        t = self.tensors(adapter_name)
        dtype = torch.promote_types(torch.promote_types(_dtype(t), weight.dtype), torch.float32)
        t = {n: v.detach().to(weight.device, dtype if v.is_floating_point() else v.dtype) for n, v in t.items()}
        return t, weight.detach().to(dtype)

    def _merged(self, adapter_name: str, weight: Tensor) -> Tensor:
        """W' `(out, in)`, in float32 at least."""
        if not self.family.mergeable:
            raise ValueError(
                f"{self.family.__name__} is not linear in the layer's input, so that no weight does what it does; "
                "keep the adapter beside the model instead of merging it"
            )
        return self.methods[adapter_name].merge(*self._wide(adapter_name, weight))


class _Buffers(BufferDict):
    """Buffers by the names of adapters, each of which says whether it is saved."""

    def put(self, key: str, value: Tensor, *, persistent: bool) -> None:
        if key in self:
            del self[key]
        self.register_buffer(key, value, persistent=persistent)

    def __setitem__(self, key: str, value: Tensor) -> None:
        self.register_buffer(key, value, persistent=key not in self._non_persistent_buffers_set)


def _check_bases(layer: AdapterLayer, _: Any) -> None:
    """After weights were loaded: are the frozen bases those that the adapter was trained with? If not, find these."""
    for adapter_name, stored in layer.tensors_of("probe").items():
        method = layer.methods[adapter_name]
        name = method.basis or ""
        basis = layer.tensors_of(name)[adapter_name]
        if stored.is_meta or basis.is_meta or layer.merged or matches(basis, stored):
            continue
        source = layer.source(adapter_name)
        found = recover(basis, stored)
        if found is None:  # the base weights may have been loaded as well, after the adapter was made
            found = recover(method.bases(source)[name], stored)
        if found is None:
            raise ValueError(
                f"{type(layer).__name__} {tuple(source.weight.shape)}: the basis that the adapter {adapter_name!r} was "
                "trained with is not that of this base weight. Load the base model that it was trained on, in the same "
                "dtype; or train with save_bases=True, which keeps the bases in the adapter's file."
            )
        for other, value in method.bases(source, found).items():
            kept = value.to(basis.device, basis.dtype if value.is_floating_point() else value.dtype)
            layer.tensors_of(other)[adapter_name] = kept.contiguous()


def _shaken(method: Adapter, trained: dict[str, Tensor], source: Source) -> dict[str, Tensor]:
    """A start that is not the identity: random numbers added, and points brought back to their manifolds."""
    shaken = {n: t + 0.1 * source.normal(*t.shape, purpose=f"shake {n}") for n, t in trained.items()}
    for names, manifold in method.points().items():
        x = tuple(shaken[n] for n in names)
        x = manifold.project(x if manifold.arity > 1 else x[0])
        shaken.update(zip(names, as_tuple(x), strict=True))
    return shaken


def _stored_dtype(weight: Tensor) -> torch.dtype:
    """Adapters are kept in float32 at least: half precision would take their orthogonality."""
    return torch.promote_types(weight.dtype, torch.float32)


def _dtype(t: dict[str, Tensor]) -> torch.dtype:
    return next(v.dtype for v in t.values() if v.is_floating_point())


def _seed(seed: int, key: str) -> int:
    """Another seed for each layer, by its name without what wrappers put in."""
    return zlib.crc32(f"{seed} {clean(key)}".encode())
