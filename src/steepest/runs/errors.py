"""Mistakes that the user can mend, and the check that the optional packages are there."""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake that the user can mend; the message says what is wrong, where, and how to mend it."""


def check_packages(names: Iterable[str]) -> None:
    """Raise a `UserError` that names the extra to install, unless all these optional packages are there."""
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"missing package(s): {', '.join(missing)}. Install them with: pip install 'steepest[cli]'")


def unknown(option: str, value: str, choices: Iterable[str]) -> UserError:
    """The error for a value that is not among the choices, with the nearest choice as a hint."""
    choices = sorted(choices)
    near = difflib.get_close_matches(value, choices, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return UserError(f"{option} {value!r} is not known.{hint} Choose one of: {', '.join(choices)}.")
