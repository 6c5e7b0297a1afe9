"""The command `steepest`. Each module of this package is one subcommand: its function `command`; here is no logic."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import sys
from typing import Any


def build() -> Any:
    """The typer app with every subcommand of this package."""
    import typer

    app = typer.Typer(
        name="steepest",
        help="Steepest descent under any norm, on any matrix manifold, for PyTorch.",
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
    )
    app.callback()(lambda: None)  # so that a single subcommand keeps its name
    for module in pkgutil.iter_modules(__path__):
        app.command(module.name)(importlib.import_module(f"{__name__}.{module.name}").command)
    return app


def app() -> None:
    """Run the command line."""
    if importlib.util.find_spec("typer") is None:
        sys.exit("steepest: missing package: typer. Install it with: pip install 'steepest[cli]'")
    build()()
