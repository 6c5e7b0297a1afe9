"""Writes docs/manifolds.md from the classes: `python docs/manifolds.py`."""

from __future__ import annotations

import inspect
import re
from itertools import groupby
from pathlib import Path

from steepest import testing
from steepest.manifolds import Manifold
from steepest.manifolds.base import OPERATIONS

PAGE = Path(__file__).with_name("manifolds.md")

HEAD = """# Manifolds

Written by `python docs/manifolds.py` from the classes themselves; do not edit it.

Every optimiser works on every manifold below. Shapes are `(*b, n, p)`: any leading batch dimensions, then one matrix.
`push` takes coordinates to tangent vectors and is orthonormal for the metric; `pull`, its adjoint, takes Euclidean
gradients to coordinates. Optimisers work in the coordinates, block by block.

**Own formulas** says which of `exp`, `log`, `dist`, `transport`, `hessian` and `mean` a manifold computes by a closed
form or an algorithm of its own. The others work as well: geodesics are integrated from the frame to rounding, `log`
shoots along them, `dist` is the length of `log`, `hessian` comes from derivatives of the frame, `mean` is Karcher's
iteration, all differentiable. **Transport** is the parallel one along the shortest geodesic where it says so, and else
the way in which momentum is carried: through the coordinates, with a projection where the frame needs one.
"""


def page() -> str:
    """The whole page."""
    groups = [(family, list(cases)) for family, cases in groupby(testing.manifolds(), key=lambda e: type(e[0]))]
    return "\n".join(
        [HEAD, *_overview(groups), *(line for family, cases in groups for line in _section(family, cases))]
    )


def _overview(groups: list) -> list[str]:
    lines = ["| manifold | entries | dimension | own formulas | transport |", "|---|---|---|---|---|"]
    for family, cases in groups:
        first = cases[0][0]
        dimension = inspect.getdoc(family.dim).splitlines()[0].rstrip(".")
        lines.append(
            f"| [{family.__name__}](#{family.__name__.lower()}) | {', '.join(first.scalars)} | {dimension} "
            f"| {_closed(first)} | {_transport(first)} |"
        )
    return [*lines, ""]


def _section(family: type[Manifold], cases: list) -> list[str]:
    paragraphs = inspect.cleandoc(family.__doc__ or "").split("\n\n")
    text = [p for p in paragraphs if not p.startswith(">>>")]
    cited = len(text) > 1 and re.search(r"\b(19|20)\d\d\b", text[-1])
    body, source = (text[:-1], text[-1]) if cited else (text, "")
    lines = [f"## {family.__name__}", ""]
    for paragraph in body:
        lines += [_arguments(paragraph) if paragraph.startswith("Args:") else paragraph, ""]
    lines += ["| | coordinates | own formulas | transport |", "|---|---|---|---|"]
    seen = set()
    for m, _ in cases:
        row = f"| `{_short(m)}` | {', '.join(m.blocks)} | {_closed(m)} | {_transport(m)} |"
        lines += [row] if row not in seen else []
        seen.add(row)
    return [*lines, "", *([f"Source: {source}", ""] if source else [])]


def _arguments(paragraph: str) -> str:
    """`name: text` lines as a list."""
    out: list[str] = []
    for line in paragraph.splitlines()[1:]:
        if line.startswith("    ") and not line.startswith("     "):
            name, _, rest = line.strip().partition(":")
            out.append(f"- `{name}`:{rest}")
        else:
            out.append("  " + line.strip())
    return "\n".join(out)


def _closed(m: Manifold) -> str:
    return ", ".join(name for name in OPERATIONS if name in m.closed) or "none"


def _transport(m: Manifold) -> str:
    return "parallel" if m.parallel else "as momentum"


def _short(m: Manifold) -> str:
    text = " ".join(repr(m).split())
    return text if len(text) < 90 else text[:87] + "..."


if __name__ == "__main__":
    PAGE.write_text(page())
    print(f"wrote {PAGE}")
