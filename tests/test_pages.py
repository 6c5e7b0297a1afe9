"""The page on manifolds is what its script writes from the classes, and the README names every optimiser."""

import subprocess
import sys
from pathlib import Path

from steepest.testing.discover import optimizers

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "docs" / "manifolds.py"


def test_manifolds_page_is_current():
    """In a process of its own, which knows no classes that other tests define."""
    code = f"import runpy; print(runpy.run_path({str(SCRIPT)!r})['page'](), end='')"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert SCRIPT.with_suffix(".md").read_text() == run.stdout, "run `python docs/manifolds.py`"


def test_readme_names_every_optimizer():
    text = (ROOT / "README.md").read_text()
    ours = [c.__name__ for c in optimizers().values() if c.__module__.startswith("steepest.")]
    assert [name for name in ours if f"`{name}`" not in text] == []
