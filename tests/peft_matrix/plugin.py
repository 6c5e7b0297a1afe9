"""A plugin of pytest: those of PEFT's tests that take an adapter of ours, and how they went; for `run.py` alone."""

from __future__ import annotations

import collections
import gc
import re
from typing import Any

import pytest
import torch

from steepest.adapters import FAMILIES

COUNTS: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
REASONS: collections.Counter[str] = collections.Counter()
NO_CHECKPOINTS = "takes a checkpoint from the Hub"
ONE_EXPERT = "a single expert has the weight one, whatever its router says, which therefore is not trained"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[Any]) -> None:
    """Leave out what has no adapter of ours among its arguments; skip, with a reason, what does not apply to it."""
    others = [item for item in items if not _configs(item)]
    items[:] = [item for item in items if _configs(item)]
    config.hook.pytest_deselected(items=others)
    for item in items:
        if reason := _unfit(item):
            item.add_marker(pytest.mark.skip(reason=reason))


def pytest_collection_finish() -> None:
    """The tests collect garbage thousands of times, and need not look through all that they import."""
    torch.set_num_threads(1)
    gc.freeze()


def pytest_runtest_logreport(report: Any) -> None:
    """Count a test once, and why it was skipped."""
    if report.when == "call" or report.outcome != "passed":
        found = re.search(r"\b(\w+)Config\b", report.nodeid.split("[", 1)[1])
        COUNTS[found[1] if found else "?"][report.outcome] += 1
    if report.outcome == "skipped":
        REASONS[re.sub(r"<class [^>]*>", "the config", report.longrepr[2]).removeprefix("Skipped: ")] += 1


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """A line for each family, and one for each reason."""
    for name, counts in sorted(COUNTS.items()):
        told = ", ".join(f"{counts[outcome]} {outcome}" for outcome in ("passed", "skipped", "failed"))
        terminalreporter.write_line(f"{name}: {told}")
    for reason, number in REASONS.most_common():
        terminalreporter.write_line(f"{number} skipped: {reason}")
    terminalreporter.write_line("deselected: PEFT's tests of its own methods, that take no config from the table")


def _configs(item: Any) -> list[Any]:
    """The configs of ours among a test's arguments."""
    values = item.callspec.params.values() if hasattr(item, "callspec") else ()
    flat = [v for value in values for v in (value if isinstance(value, tuple) else (value,))]
    return [v for v in flat if getattr(v, "family", None) in FAMILIES.values()]


def _unfit(item: Any) -> str | None:
    """Why a test cannot be asked of an adapter."""
    if "PEFT_MODELS_TO_TEST" in item.function.__code__.co_names:
        return NO_CHECKPOINTS
    options = item.callspec.params.get("config_kwargs", {})
    if item.originalname == "test_only_params_are_updated" and options.get("experts") == 1:
        return ONE_EXPERT
    return None
