"""Options of a run: their checks, and how they are kept beside its results and found again."""

from __future__ import annotations

import abc
import dataclasses
import math
from pathlib import Path
from typing import Any, Self

import torch

from steepest.runs.errors import UserError
from steepest.runs.files import read_json

SETTINGS = "settings.json"
"""The file in the output folder that holds a run's options; a folder without it holds no run."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}


@dataclasses.dataclass(frozen=True)
class SavedSettings(abc.ABC):
    """Base of each command's options, which are frozen fields with defaults that JSON can hold."""

    @abc.abstractmethod
    def checked(self) -> Self:
        """These settings with the automatic ones filled in; a `UserError` names the first that cannot be."""

    def to_json(self) -> dict[str, Any]:
        """The settings as a JSON object."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, saved: dict[str, Any], where: str) -> Self:
        """The settings that `to_json` wrote; `where` is their file, for the error."""
        try:
            return cls(**saved)
        except TypeError:
            raise UserError(
                f"{where}: was written by another version. Start anew in another --output folder."
            ) from None

    def agree(self, given: dict[str, Any]) -> None:
        """Raise a `UserError` if an option given beside --resume differs from these settings."""
        for field, value in given.items():
            mine = getattr(self, field)
            if value != mine and not (field == "device" and device_name(value) == mine):
                raise UserError(
                    f"{option(field)} {value} conflicts with the interrupted run, which has {mine}. Leave the option "
                    "out to go on with that run, or start another one in a new --output folder without --resume."
                )

    @classmethod
    def of(cls, output: Path, given: dict[str, Any], resume: bool) -> Self:
        """The settings of a new run in the folder `output`, or of the interrupted one that is there."""
        path = output / SETTINGS
        if resume:
            if not path.is_file():
                raise UserError(
                    f"--resume: {output} holds no interrupted run (no {SETTINGS}). Leave --resume out to start one."
                )
            settings = cls.from_json(read_json(path), str(path))
            settings.agree(given)
            return settings.checked()
        if path.exists():
            raise UserError(
                f"--output {output}: holds a run already. Add --resume to go on with it, or choose another folder."
            )
        return cls(**given).checked()


def option(field: str) -> str:
    """The command line's name of a field."""
    return "--" + field.replace("_", "-")


def check_positive(field: str, value: float) -> None:
    """A `UserError` unless the value is a positive number."""
    if not (value > 0 and math.isfinite(value)):
        raise UserError(f"{option(field)} {value}: must be a positive number.")


def check_least(settings: SavedSettings, **least: float) -> None:
    """A `UserError` if one of these fields is below its least value."""
    for field, bound in least.items():
        if not getattr(settings, field) >= bound:
            raise UserError(f"{option(field)} {getattr(settings, field)}: must be at least {bound}.")


def device_name(name: str) -> str:
    """The device's name, checked by putting a number there; `auto` means the GPU where there is one."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"--device {name}: cannot be used here ({reason}). Use cpu, cuda, cuda:1, mps or auto."
        ) from None
    return name
