"""Configs of adapters, as PEFT wants them."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any, ClassVar

from peft.config import PeftConfig
from peft.utils.peft_types import PeftType

from steepest.adapters.base import Adapter


class ExternalPeftType(str):
    """A type for PEFT's dictionaries: equal to the string in `adapter_config.json`."""

    value = property(str.__str__)
    name = property(str.__str__)


@dataclasses.dataclass
class AdapterConfig(PeftConfig):
    """What the configs of all adapters share.

    Args:
        target_modules: names of the layers to adapt, a pattern, or "all-linear"; None for those that PEFT's LoRA takes
            in a model of this type.
        exclude_modules: names of layers to leave alone, or a pattern.
        modules_to_save: names of modules that are trained and saved as they are, such as a new head.
        layers_to_transform: numbers of the model's blocks to adapt; all by default.
        layers_pattern: the name of the list of blocks, where PEFT does not know it.
        init_weights: start at the identity; False starts next to it, at random, which is of use in tests alone.
        save_bases: save frozen bases with the adapter. By default those that are orthonormal are computed anew from the
            base weights when it is loaded, and a stored probe says whether they are the same, or turns them until they
            are; others, and what was made of gradients, are always saved.
        seed: of what is drawn at the start.
        calibrated: set by `steepest.adapters.calibrate`.
    """

    target_modules: list[str] | str | None = None
    exclude_modules: list[str] | str | None = None
    modules_to_save: list[str] | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None
    init_weights: bool = True
    save_bases: bool = False
    seed: int = 0
    calibrated: bool = False

    family: ClassVar[type[Adapter]]

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = type_of(self.family)
        for name in ("target_modules", "exclude_modules"):
            if isinstance(given := getattr(self, name), list):
                setattr(self, name, set(given))
        if self.layers_pattern and self.layers_to_transform is None:
            raise ValueError("layers_pattern: is of use with layers_to_transform only; give both or none")
        self.method()

    def method(self) -> Adapter:
        """The parametrisation with these options; raises what is wrong with them."""
        return self.family(**{f.name: getattr(self, f.name) for f in dataclasses.fields(self.family)})  # type: ignore[arg-type]

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """Write the config, and into PEFT's model card beside it what has to be imported to load the adapter."""
        super().save_pretrained(save_directory, **kwargs)
        module = self.family.__module__
        package = "steepest.adapters" if module.startswith("steepest.adapters.") else module
        note = f"To load this adapter, `import {package}` before PEFT loads it (`pip install 'steepest[hf]'`)."
        folder = pathlib.Path(save_directory)
        for card in (folder / "README.md", folder.parent / "README.md"):  # named adapters have a folder of their own
            if card.is_file() and "library_name: peft" in (text := card.read_text("utf-8")) and note not in text:
                card.write_text(f"{text.rstrip()}\n\n{note}\n", "utf-8")


def type_of(family: type[Adapter]) -> Any:
    """The family's type: a member of PEFT's enumeration where PEFT has come to know the name."""
    name = f"STEEPEST_{family.__name__.upper()}"
    return PeftType(name) if name in PeftType._value2member_map_ else ExternalPeftType(name)
