"""Put our adapters through PEFT's own tests: `python tests/peft_matrix/run.py PEFT_SDIST [options of pytest]`.

PEFT_SDIST is the unpacked source distribution of the installed version of PEFT, the only one with tests; they need
diffusers, datasets and parameterized. `make peft-matrix` sees to all of it.
"""

from __future__ import annotations

import pathlib
import sys

import pytest


def main() -> int:
    """What pytest returns."""
    if len(sys.argv) < 2 or not (pathlib.Path(sys.argv[1]) / "tests" / "test_custom_models.py").is_file():
        raise SystemExit(f"usage: {sys.argv[0]} PEFT_SDIST [options of pytest]; PEFT_SDIST has PEFT's tests/ in it")
    here = pathlib.Path(__file__).resolve().parent
    sys.path[:0] = [sys.argv[1], str(here)]  # workers of pytest-xdist take it over
    ours = [str(here / "matrix.py"), "-p", "plugin", "-c", "/dev/null", f"--rootdir={here}", "--import-mode=importlib"]
    return int(pytest.main([*ours, "-q", "-p", "no:cacheprovider", "-p", "no:warnings", *sys.argv[2:]]))


if __name__ == "__main__":
    sys.exit(main())
