"""The page on fine-tuning: its code runs, and its formulas count what is trained."""

import re
from pathlib import Path

import pytest
import torch

pytest.importorskip("peft")
from steepest import adapters

PAGE = (Path(__file__).parents[2] / "docs" / "fine-tuning.md").read_text()
ROWS = re.findall(r"^\| `(\w+)Config\((.*?)\)` \| .*? \| `(.*?)` \|", PAGE, re.MULTILINE)
NUMBERS = {"r": 8, "b": 4, "k": 6, "l": 2, "e": 12, "q1": 4, "q2": 8, "m": 24, "n": 32}


@pytest.mark.parametrize(("family", "options", "formula"), ROWS, ids=[f"{f}({o})" for f, o, _ in ROWS])
def test_formulas(family, options, formula):
    adapter = eval(f"{family}({options})", vars(adapters) | NUMBERS)
    source = adapters.Source(torch.randn(NUMBERS["m"], NUMBERS["n"]).double(), torch.randn(24, 32).double())
    trained = adapter.start(source, adapter.bases(source))
    assert sum(t.numel() for t in trained.values()) == eval(formula, {"min": min}, NUMBERS)
    assert adapter.count(NUMBERS["m"], NUMBERS["n"]) == eval(formula, {"min": min}, NUMBERS)


def test_every_family_has_a_row():
    assert {family for family, _, _ in ROWS} >= {name for name, f in adapters.FAMILIES.items() if _is_ours(f)}


def test_code_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(adapters.Adapter, "known", dict(adapters.Adapter.known))  # the page adds one of its own
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(compile(block, "fine-tuning.md", "exec"), names)


def _is_ours(family: type) -> bool:
    return family.__module__.startswith("steepest.")
