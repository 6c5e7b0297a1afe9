"""The page on manifolds is what its script writes from the classes."""

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parent.parent / "docs" / "manifolds.py"


def test_manifolds_page_is_current():
    """In a process of its own, which knows no classes that other tests define."""
    code = f"import runpy; print(runpy.run_path({str(SCRIPT)!r})['page'](), end='')"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert SCRIPT.with_suffix(".md").read_text() == run.stdout, "run `python docs/manifolds.py`"
