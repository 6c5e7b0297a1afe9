"""Every method of `minimize` finds the known optimum of every problem of the gallery, to the accuracy of its order."""

from __future__ import annotations

import itertools
import math
import pathlib
import runpy
import sys
from typing import Any

import pytest
import torch

from steepest.solvers import Method, Result
from steepest.testing.discover import solvers

FOLDER = pathlib.Path(__file__).parents[2] / "examples" / "gallery"
sys.path.insert(0, str(FOLDER))

from example import Example, gallery  # noqa: E402

GAPS = {0: 1e-2, 1: 1e-6, 2: 1e-10}
"""Of what the start is above the optimum: values alone find a minimum to the root of their precision at best, and are
not asked for that; first derivatives converge linearly, second ones so fast that rounding is the limit."""
DIMENSIONS = 4
"""Up to which methods without derivatives are tried."""
FAMILIES = {family.__name__: family for family in gallery()}
COMMON = {"TrustRegion", "LBFGS"}
"""Methods that the common run tries on all problems; the others have one problem each there, a different one."""
COSTLY = {"GaussianBarycenter"}
"""Where the manifold has no formula for Hessians: they come from derivatives of the frame."""
PROBLEMS = [(name, i) for name, family in FAMILIES.items() for i in range(len(family.tiny()))]


def first_of_each_kind() -> list[Method]:
    """The first example of each method: options are the common suite's matter. Methods that stay within a region have
    another optimum."""
    found: dict[str, Method] = {}
    for method in (m for m in solvers() if not hasattr(m, "region")):
        found.setdefault(type(method).__name__, method)
    return list(found.values())


def dimension(example: Example) -> int:
    x0 = example.x0
    return example.manifold.dim(x0.shape if isinstance(x0, torch.Tensor) else tuple(t.shape for t in x0))


def cases() -> list[Any]:
    """Each method on each problem on which it works."""
    found = []
    for number, method in enumerate(first_of_each_kind()):
        name = type(method).__name__
        fits = [(f, i) for f, i in PROBLEMS if not method.fault(tiny(f, i).manifold, tiny(f, i).x0)]
        fits = [(f, i) for f, i in fits if method.order or dimension(tiny(f, i)) <= DIMENSIONS]
        for place, (family, i) in enumerate(fits):
            often = name in COMMON or place in (number % len(fits), (number + 7) % len(fits))
            costly = method.order == 2 and family in COSTLY
            marks = () if often and not costly else pytest.mark.slow
            found.append(pytest.param(method, family, i, marks=marks, id=f"{name}-{family}-{i}"))
    return found


TINY: dict[str, list[Example]] = {}


def tiny(family: str, i: int) -> Example:
    if family not in TINY:
        TINY[family] = FAMILIES[family].tiny()
    return TINY[family][i]


def reached(example: Example, method: Method | str, gap: float, **options: Any) -> Result:
    """The run, ended as soon as the gap is closed that far."""
    return example.solve(method, callback=lambda record, x: example.gap(record.value) <= gap, tolerance=0.0, **options)


@pytest.mark.parametrize(("method", "family", "i"), cases())
def test_reaches_the_optimum(method: Method, family: str, i: int) -> None:
    example = tiny(family, i)
    result = reached(example, method, GAPS[method.order], max_iterations=3000)
    found = example.gap(result.value)
    # the least value is the oracle's but for rounding, and the interior-point method's gap in MaxCut
    assert -1e-11 <= found <= GAPS[method.order], f"{example}\n{result}"


@pytest.mark.parametrize("family", FAMILIES)
def test_the_point_is_the_oracles(family: str) -> None:
    """Not its value alone: a gap of 1e-14 is a distance of its root, times what the least curvature makes of it."""
    for example in FAMILIES[family].tiny():
        result = example.solve("LBFGS", tolerance=1e-9)
        assert result.gradient_norm <= 1e-7, f"{example}\n{result}"
        assert example.error(result.x) <= 1e-5, f"{example}: {example.error(result.x)}"


@pytest.mark.parametrize("family", ["DominantSubspace", "Procrustes", "SPDMean", "TruncatedSVD", "RobustSubspace"])
def test_the_tail_is_quadratic(family: str) -> None:
    """The last steps of trust regions square the gradient's norm: digits at least grow by the half from step to step,
    which no linear rate does."""
    example = FAMILIES[family]()
    result = example.solve("TrustRegion", tolerance=1e-12 * example.solve("LBFGS", max_iterations=0).gradient_norm)
    norms = [r.gradient_norm for r in result.history]
    digits = [-math.log10(g / norms[0]) for g in norms]
    late = [(a, b) for a, b in itertools.pairwise(digits) if a >= 2 and b <= 11]
    assert late, digits
    assert all(b >= 1.5 * a for a, b in late[-1:]), digits


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.stem)
def test_files_run(path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    if path.stem == "example":
        pytest.skip("what they have in common")
    monkeypatch.setattr(sys, "argv", [str(path), "--every", "1"])
    runpy.run_path(str(path), run_name="__main__")
    shown = capsys.readouterr().out
    assert "optimum by other means" in shown
    assert "success=True" in shown
