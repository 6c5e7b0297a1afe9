"""An optimiser under options of its own, as the command line spells it."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
from typing import Any

from steepest.runs.errors import UserError, unknown
from steepest.runs.optimizers import known_optimizers

NOT_OPTIONS = {"self", "params", "lr"}
"""What is no option here: the sweep gives learning rates."""


@dataclasses.dataclass(frozen=True)
class Variant:
    """`muon`, or `galore:rank=0.125+moved=rotate`: an optimiser's name, and options that are not its defaults."""

    text: str

    @property
    def optimizer(self) -> Any:
        """The class."""
        return known_optimizers()[self.text.partition(":")[0]]

    @property
    def options(self) -> dict[str, Any]:
        """By name; what is no Python literal is a text."""
        _, _, said = self.text.partition(":")
        pairs = (pair.partition("=") for pair in said.split("+") if pair)
        return {name.strip(): _value(value.strip()) for name, _, value in pairs}

    @property
    def key(self) -> str:
        """Name in files."""
        return re.sub(r"[^a-z0-9._=-]+", "-", self.text)

    @property
    def name(self) -> str:
        """Name for readers."""
        said = ", ".join(f"{name} {value}" for name, value in self.options.items())
        return self.optimizer.__name__ + (f", {said}" if said else "")

    def check(self) -> None:
        """Refuse an unknown name, and options that it has not."""
        name, colon, said = self.text.partition(":")
        if name not in (known := known_optimizers()):
            raise unknown("--optimizers", name, known)
        parameters = inspect.signature(self.optimizer).parameters.values()
        options = [p.name for p in parameters if p.name not in NOT_OPTIONS and p.kind is not p.VAR_KEYWORD]
        for pair in said.split("+") if colon else ():
            option, equal, value = pair.partition("=")
            if not (equal and value.strip()):
                raise UserError(f"--optimizers {self.text}: {pair!r} is no option; write {name}:{options[0]}=VALUE.")
            if option.strip() not in options:
                raise unknown(f"--optimizers {name}:", option.strip(), options)


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
