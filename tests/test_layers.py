"""Imports run down the layers only, and `import steepest` loads nothing heavy."""

import ast
import subprocess
import sys
from pathlib import Path

import steepest

ROOT = Path(steepest.__file__).parent
LAYERS = [
    {"spec", "checks"},
    {"linalg"},
    {"manifolds", "norms", "projectors"},
    {"bases"},
    {"transforms"},
    {"optim"},
    {"runs"},
    {"curvature", "solvers"},
    {"adapters"},
    {"testing"},
    {"finetune", "compare"},
    {"cli"},
]
"""From the bottom up; a module imports its own folder and layers below its own."""

HEAVY = ["transformers", "peft", "sklearn", "matplotlib", "scipy", "geoopt", "pymanopt", "pandas", "typer", "jinja2"]
HEAVY += ["torch._dynamo", "sympy"]  # with them the import takes twice as long as that of torch


def _layer(part: str) -> int:
    return next(i for i, names in enumerate(LAYERS) if part in names)


def _imports(path: Path) -> set[str]:
    """The parts of steepest that a file imports, wherever in it."""
    modules = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules += [
                f"{node.module}.{a.name}" if node.module == "steepest" else node.module or "" for a in node.names
            ]
    return {m.split(".")[1] for m in modules if m.startswith("steepest.")}


def test_imports_run_downward():
    seen = 0
    for path in ROOT.rglob("*.py"):
        part = path.relative_to(ROOT).parts[0].removesuffix(".py")
        if part == "__init__":
            continue  # the public names
        for other in _imports(path) - {part}:
            if other not in {name for names in LAYERS for name in names}:
                continue  # a public name of the package, as a user imports it
            seen += 1
            assert _layer(other) < _layer(part), f"{path.relative_to(ROOT)} imports steepest.{other} from above"
    assert seen > 50


def test_every_part_has_a_layer():
    parts = {p.name.removesuffix(".py") for p in ROOT.iterdir() if p.name[0] not in "_." and p.name != "py.typed"}
    assert parts == {name for names in LAYERS for name in names}


def test_import_is_light():
    code = f"import sys, steepest; print([m for m in {HEAVY} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
