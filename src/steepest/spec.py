"""Values that travel in checkpoints as plain JSON."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any, ClassVar, Self

import torch
from torch import Tensor


class Spec:
    """A frozen dataclass that can be written down as its class's name and its fields, and built again from them.

    Each family (manifolds, norms, transforms) has a direct subclass with a dictionary `known` of its own; every class
    defined below it, in this package or in a user's, enters that dictionary by being defined. So an optimiser's groups
    hold nothing but strings, numbers and dictionaries, and load with `weights_only=True`.
    """

    known: ClassVar[dict[str, Any]]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if Spec in cls.__bases__:
            cls.known = {}
        elif not inspect.isabstract(cls):
            cls.known[cls.__name__] = cls

    def to_spec(self) -> dict[str, Any]:
        """`{"kind": class name, **fields}`, with nested values written the same way."""
        fields = dataclasses.fields(self)  # type: ignore[arg-type]
        return {"kind": type(self).__name__, **{f.name: _write(getattr(self, f.name)) for f in fields}}

    # For classes with a field that is a tensor, declared with `eq=False, repr=False`; dataclass writes the others' own.
    def __repr__(self) -> str:
        fields = [(f.name, getattr(self, f.name)) for f in dataclasses.fields(self)]  # type: ignore[arg-type]
        shown = [f"{n}=tensor{tuple(v.shape)}" if isinstance(v, Tensor) else f"{n}={v!r}" for n, v in fields]
        return f"{type(self).__name__}({', '.join(shown)})"

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and all(
            _same(getattr(self, f.name), getattr(other, f.name))
            for f in dataclasses.fields(self)  # type: ignore[arg-type]
        )

    def __hash__(self) -> int:
        fields = [getattr(self, f.name) for f in dataclasses.fields(self)]  # type: ignore[arg-type]
        return hash((type(self), *(tuple(v.shape) if isinstance(v, Tensor) else v for v in fields)))

    @classmethod
    def from_spec(cls, spec: dict[str, Any] | str | Self) -> Self:
        """The value that `to_spec` wrote; a bare name means the class with its default fields."""
        if isinstance(spec, Spec):
            return spec
        spec = {"kind": spec} if isinstance(spec, str) else dict(spec)
        kind = spec.pop("kind", None)
        if kind not in cls.known:
            names = ", ".join(sorted(cls.known)) or "none"
            raise ValueError(
                f"unknown {cls.__name__.lower()} {kind!r}: known are {names}. "
                "If it is your own class, import the module that defines it first."
            )
        return cls.known[kind](**{name: cls._read(value) for name, value in spec.items()})

    @classmethod
    def _read(cls, value: Any) -> Any:
        if isinstance(value, dict) and "kind" in value:
            family = next((f for f in Spec.__subclasses__() if value["kind"] in f.known), cls)
            return family.from_spec(value)
        return tuple(cls._read(v) for v in value) if isinstance(value, list | tuple) else value


def tensor_field(value: Spec, name: str) -> Tensor | None:
    """The field `name` of a frozen value as a tensor, put in place: nested lists, as they come from JSON, in float64; a
    tensor as it is, with its gradient."""
    field = getattr(value, name)
    if isinstance(field, dict) and "complex" in field:
        field = torch.view_as_complex(torch.tensor(field["complex"], dtype=torch.float64))
    elif isinstance(field, list | tuple):
        field = torch.tensor(field, dtype=torch.float64)
    object.__setattr__(value, name, field)
    if field is not None and not isinstance(field, Tensor):
        raise TypeError(f"{name}: expected a tensor or nested lists of numbers, got {type(field).__name__}")
    return field


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):  # single precision comes back from JSON in double
        wide = [t.to(a.device, torch.promote_types(t.dtype, torch.float64)) for t in (a, b)]
        return a is b or (a.shape == b.shape and wide[0].dtype == wide[1].dtype and torch.equal(*wide))
    return type(a) is type(b) and bool(a == b)


def _write(value: Any) -> Any:
    if isinstance(value, Spec):
        return value.to_spec()
    if isinstance(value, Tensor):
        return {"complex": torch.view_as_real(value).tolist()} if value.is_complex() else value.tolist()
    return [_write(v) for v in value] if isinstance(value, list | tuple) else value
