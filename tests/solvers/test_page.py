"""docs/solvers.md: its code runs, and it names every method."""

import re
from pathlib import Path

import torch

from steepest import solvers
from steepest.solvers.base import Method
from steepest.solvers.finite_sum import SumMethod
from steepest.testing import solvers as examples

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "solvers.md").read_text()


def test_code_runs(tmp_path, monkeypatch):
    blocks = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert len(blocks) >= 5
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    torch.manual_seed(0)
    for block in blocks:
        exec(compile(block, "docs/solvers.md", "exec"), names)


def test_names_every_method():
    ours = {type(m).__name__ for m in examples() if type(m).__module__.startswith("steepest.")}
    ours |= {name for name in (*Method.known, *SumMethod.known) if hasattr(solvers, name)}
    assert [name for name in sorted(ours) if f"`{name}" not in TEXT] == []


def test_pictures_are_there():
    pictures = re.findall(r"\]\(([\w./-]+\.png)\)", TEXT)
    assert len(pictures) >= 7
    assert [p for p in pictures if not (ROOT / "docs" / p).exists()] == []
