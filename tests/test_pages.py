"""The page on manifolds is what its script writes from the classes."""

import importlib.util
from pathlib import Path

SCRIPT = Path(__file__).parent.parent / "docs" / "manifolds.py"


def test_manifolds_page_is_current():
    spec = importlib.util.spec_from_file_location("manifolds_page", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.PAGE.read_text() == module.page(), "run `python docs/manifolds.py`"
