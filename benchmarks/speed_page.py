"""docs/speed.md and docs/speed.png from docs/speed.json, without measuring anything.

python benchmarks/speed_page.py
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from harness import arguments, load
from problems import cells as all_cells
from problems import wrong

OURS = "steepest"
FORMULAS = "jax.jit"
"""Not a library of manifolds but our own formulas, compiled."""
CLOCKS = {"1": ("cpu", "one thread, CPU time"), "2": ("wall", "two threads, wall time")}

HEAD = """# Speed

Written by `make speed`; `python benchmarks/primitives.py --quick --output /tmp/speed.json` gives a first look in
minutes.

Every library runs in a process of its own, confined to as many cores as it has threads, with thread pools (OpenMP,
MKL, OpenBLAS, XLA) of that size; arguments are arrays of its own kind before the clock starts. The processes are asked
in turn, round after round: a figure is the median over 11 rounds of calls repeated for 20 ms (with `--quick` over 3 of
10 ms; over 3 where a call takes a second, one where it takes ten), of CPU time on one thread and of wall time on two.
What a library returns is
compared with a formula of its own in float64 on the same rounded input; the relative error, the worst of the batch,
stands behind the time.

**Ratio** is the time of the fastest peer over that of steepest: above one steepest is faster. A peer that is wrong, by
more than 1e-6 in float64 or 2e-3 in float32, is marked `!` and not counted; `^` marks a result in float64 of an input
in float32; a dash, what a library does not have; `x`, what it has and could not do, with the reason below the table.
**jax.jit** is no library of manifolds: it is steepest's formulas written anew in jax.numpy and compiled for each shape;
it counts as a peer.

Sizes are batch x rows (x columns); a single matrix has no batch dimension. **rgrad_retr** and **proj_retr** turn a
Euclidean gradient into the Riemannian one and retract -0.1 times that, `m.retract(x, -lr * m.grad(x, g))`: on SPD
X + V + V X^-1 V / 2, on Stiefel and Grassmann by QR or a polar factor, under the canonical metric the Cayley transform.
*As optimisers* is the same step in the coordinates of one frame, without the tangent vector between.
"""

STEPS = """## Steps of optimisers

One `step()` on parameters whose gradients are there, without weight decay. *GPT d x l*: l layers with q, k, v, o, an
MLP of 4 d and norms, embedding and head of 8,192 tokens. *LoRA d r*: 48 pairs, d x r and r x d. Matrices go to the
method, all else to AdamW, torch's fused one for the peers. The gradients of matrices have singular values from 1 to
0.01, logarithmically spaced, and known bases.

**direction**: 1 - cos of the angle between the first step and the exact one, the mean over matrices, of the worst
model: for Muon the polar factor of the momentum, for AdamW the formula. **spread**: the largest singular value of a
Muon step over its smallest, of the worst matrix; in the exact step it is one. A step of Shampoo, SOAP or PSGD is the
mean over as many as roots, bases or factors last.

torch, heavyball, muon-optimizer and pytorch_optimizer multiply in bfloat16, optimuon and the Gram variant in float16,
and give no choice but optimuon. Processors without instructions for these are slow at it; *float32* marks the same code
with the cast taken out. heavyball has no Shampoo: KLShampoo is a relative, which turns its bases by one QR
factorisation where Shampoo computes roots. pytorch_optimizer's Kron renews its factors at random, once in so many
steps.
"""


def page(data: dict[str, Any]) -> str:
    lines = [HEAD, _machine(data), "![Ratios of all cells](speed.png)", ""]
    primitives = {threads: _ordered(found) for threads, found in sorted(data.get("primitives", {}).items())}
    if primitives:
        lines += _summary(primitives)
    for threads in primitives:
        lines += _primitives(primitives[threads], *CLOCKS[threads])
    if "memory" in data:
        lines += _memory(data["memory"])
    if "import" in data:
        seconds = data["import"]["seconds"]
        lines += [
            "## Import",
            "",
            f"`import steepest` takes {seconds['steepest']:.2f} s, of which `import torch` alone is "
            f"{seconds['torch']:.2f} s: new processes, in turn, medians.",
            "",
        ]
    if "steps" in data:
        lines += [STEPS]
        for threads in sorted(data["steps"]):
            lines += _steps(data["steps"][threads], *CLOCKS[threads])
    return "\n".join(lines).rstrip() + "\n"


def _ordered(found: dict[str, Any]) -> dict[str, Any]:
    return {key: found[key] for key in map(str, all_cells()) if key in found}


def _machine(data: dict[str, Any]) -> str:
    m = data.get("machine", {})
    libraries = ", ".join(f"{name} {v}" for name, v in sorted(data.get("versions", {}).items()))
    rounds = ", ".join(f"{part} in {n} rounds" for part, n in data.get("rounds", {}).items())
    where = f"{m.get('processor')}, {m.get('cores')} cores, Python {m.get('python')}"
    return f"{where}, {m.get('date')}; {rounds}; {libraries}.\n"


# Ratios. --------------------------------------------------------------------------------------------------------------


def counts(key: str, name: str, entry: dict[str, Any]) -> bool:
    """Whether a contender is a peer with a right result."""
    dtype = key.rpartition(" | ")[2]
    fault = "fault" in entry or ("error" in entry and wrong(dtype, entry["error"]))
    return not name.startswith(OURS) and not fault


def fastest(key: str, found: dict[str, Any], clock: str, without: str = "") -> str | None:
    peers = [n for n, entry in found.items() if n != without and counts(key, n, entry)]
    return min(peers, key=lambda n: found[n][clock], default=None)


def ratio(key: str, found: dict[str, Any], clock: str, ours: str = OURS, without: str = "") -> float | None:
    """The fastest peer's time over ours; None where either is missing."""
    best = fastest(key, found, clock, without)
    if best is None or clock not in found.get(ours, {}):
        return None
    return found[best][clock] / found[ours][clock]


def _mean(ratios: Iterable[float | None]) -> str:
    logs = [math.log(r) for r in ratios if r]
    return f"{math.exp(sum(logs) / len(logs)):.2f}" if logs else "-"


def _summary(primitives: dict[str, Any]) -> list[str]:
    lines = [
        "## Geometric means of the ratios",
        "",
        "| | all cells | without log and dist on Stiefel | the same, without jax.jit | cells with a peer | slower |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for threads, cells in primitives.items():
        clock, title = CLOCKS[threads]
        for manifold in (None, *dict.fromkeys(_parts(key)[0] for key in cells)):
            chosen = {k: v for k, v in cells.items() if manifold in (None, _parts(k)[0])}
            usual = {k: v for k, v in chosen.items() if not _slow_peers(k)}
            all_ = [ratio(k, v, clock) for k, v in chosen.items()]
            known = [r for r in all_ if r]
            lines.append(
                f"| {manifold or title.join(('**', '**'))} | {_mean(all_)} "
                f"| {_mean(ratio(k, v, clock) for k, v in usual.items())} "
                f"| {_mean(ratio(k, v, clock, without=FORMULAS) for k, v in usual.items())} "
                f"| {len(known)} | {sum(r < 1 for r in known)} |"
            )
    return [*lines, ""]


def _slow_peers(key: str) -> bool:
    """Where a peer's iteration takes seconds, which would rule any mean."""
    manifold, op, *_ = _parts(key)
    return manifold.startswith("Stiefel") and op in ("log", "dist")


def _parts(key: str) -> list[str]:
    return key.split(" | ")


# Tables. --------------------------------------------------------------------------------------------------------------


def _primitives(cells: dict[str, Any], clock: str, title: str) -> list[str]:
    lines = [f"## Primitives, {title}", ""]
    manifolds = dict.fromkeys(_parts(key)[0] for key in cells)
    for manifold in manifolds:
        chosen = {k: v for k, v in cells.items() if _parts(k)[0] == manifold}
        names = list(dict.fromkeys(n for found in chosen.values() for n in found))
        names.sort(key=lambda n: (not n.startswith(OURS), n == FORMULAS))
        lines += [
            f"### {manifold}",
            "",
            f"| op | size | dtype | {' | '.join(names)} | fastest peer | ratio |",
            "|---|---|---|" + "--:|" * len(names) + "---|--:|",
        ]
        for key, found in chosen.items():
            best, r = fastest(key, found, clock), ratio(key, found, clock)
            entries = " | ".join(_entry(key, found.get(n), clock, n == best) for n in names)
            _, op, size, dtype = _parts(key)
            lines.append(f"| {op} | {size} | {dtype} | {entries} | {best or '-'} | {_ratio(r)} |")
        lines += ["", *_faults(chosen)]
    lines += _slower(cells, clock, f"the fastest library ({title})", FORMULAS)
    lines += _slower(cells, clock, f"the fastest library or {FORMULAS} ({title})", "")
    return lines


def _slower(cells: dict[str, Any], clock: str, title: str, without: str) -> list[str]:
    slower = {k: r for k, v in cells.items() if (r := ratio(k, v, clock, without=without)) and r < 1}
    return [
        f"Slower than {title}: {len(slower)} cells.",
        "",
        *(
            f"- {k.replace(' | ', ' ')}: {slower[k]:.2f} ({fastest(k, cells[k], clock, without)})"
            for k in sorted(slower, key=slower.__getitem__)
        ),
        "",
    ]


def _entry(key: str, entry: dict[str, Any] | None, clock: str, bold: bool) -> str:
    if entry is None:
        return "-"
    if "fault" in entry:
        return "x"
    mark = "!" if wrong(_parts(key)[-1], entry["error"]) else ""
    mark += "^" if entry.get("note", "").startswith("float") else ""
    text = duration(entry[clock])
    return f"{f'**{text}**' if bold else text}{mark} {entry['error']:.0e}".replace("e-0", "e-")


def _ratio(r: float | None) -> str:
    return "-" if r is None else f"{r:.2f}"


def duration(seconds: float) -> str:
    for unit, name in ((1, "s"), (1e-3, "ms"), (1e-6, "us")):
        if seconds >= unit:
            return f"{seconds / unit:.3g} {name}"
    return f"{seconds * 1e9:.0f} ns"


def _faults(cells: dict[str, Any]) -> list[str]:
    """One line for each library and reason."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for key, found in cells.items():
        for name, entry in found.items():
            if "fault" in entry:
                reasons.setdefault((name, entry["fault"]), []).append(" ".join(_parts(key)[1:]))
    lines = [f"- {name}: {reason} ({', '.join(where)})" for (name, reason), where in reasons.items()]
    return [*lines, ""] if lines else []


def _memory(cells: dict[str, Any]) -> list[str]:
    operations = list(dict.fromkeys(_parts(k)[1] for k in cells))
    lines = [
        "## Memory",
        "",
        "The most bytes that torch's allocator had given out at once during a call of steepest, its results among",
        "them, over the bytes of arguments and results, in float32 and float64 (torch.profiler; what LAPACK allocates",
        "by itself is not seen).",
        "",
        f"| manifold | size | {' | '.join(operations)} |",
        "|---|---|" + "--:|" * len(operations),
    ]
    for manifold, size in dict.fromkeys((_parts(k)[0], _parts(k)[2]) for k in cells):
        entries = [
            ", ".join(
                f"{cells[key]['ratio']:.3g}"
                for dtype in ("float32", "float64")
                if (key := f"{manifold} | {op} | {size} | {dtype}") in cells
            )
            for op in operations
        ]
        lines.append(f"| {manifold} | {size} | {' | '.join(e or '-' for e in entries)} |")
    return [*lines, ""]


def _steps(cells: dict[str, Any], clock: str, title: str) -> list[str]:
    lines = []
    for family in dict.fromkeys(_parts(k)[0] for k in cells):
        chosen = {k: v for k, v in cells.items() if _parts(k)[0] == family}
        names = list(dict.fromkeys(n for found in chosen.values() for n in found))
        names.sort(key=lambda n: n.startswith(OURS))
        models = [_parts(k)[1] for k in chosen]
        measures = [m for m in ("direction", "spread") if any(m in e for v in chosen.values() for e in v.values())]
        lines += [
            f"### {family}, {title}",
            "",
            f"| | {' | '.join(models)} | {''.join(m + ' | ' for m in measures)}",
            "|---|" + "--:|" * (len(models) + len(measures)),
        ]
        for name in names:
            entries = [_step(found.get(name), clock, name == fastest(k, found, clock)) for k, found in chosen.items()]
            worst = [_worst(measure, [found.get(name, {}) for found in chosen.values()]) for measure in measures]
            lines.append(f"| {name} | {' | '.join(entries + worst)} |")
        for name in (n for n in names if n.startswith(OURS)):
            ratios = [_ratio(ratio(k, found, clock, name)) for k, found in chosen.items()]
            lines.append(f"| *fastest peer / {name}* | {' | '.join(ratios + [''] * len(measures))} |")
        lines += ["", *_faults(chosen)]
    return lines


def _step(entry: dict[str, Any] | None, clock: str, bold: bool) -> str:
    if entry is None:
        return "-"
    text = "x" if "fault" in entry else duration(entry[clock])
    return f"**{text}**" if bold else text


def _worst(measure: str, entries: list[dict[str, Any]]) -> str:
    """Over the models of the table."""
    values = [e[measure] for e in entries if measure in e]
    return f"{max(values):.2g}" if values else "-"


# The chart. -----------------------------------------------------------------------------------------------------------


def chart(data: dict[str, Any], path: Path) -> None:
    """Every cell's ratio, a row for operation and size, a panel for each manifold."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    threads = min(data["primitives"])
    cells, (clock, title) = _ordered(data["primitives"][threads]), CLOCKS[threads]
    ratios = {tuple(_parts(k)): r for k, v in cells.items() if (r := ratio(k, v, clock))}
    rows: dict[str, list[str]] = {}
    for manifold, op, size, _ in ratios:
        names = rows.setdefault(manifold, [])
        names += [f"{op} {size}"] * (f"{op} {size}" not in names)
    heights = [len(names) + 2 for names in rows.values()]
    figure, axes = plt.subplots(
        len(rows), 1, sharex=True, squeeze=False, figsize=(8, 0.17 * sum(heights) + 1), height_ratios=heights
    )
    for axis, (manifold, names) in zip(axes[:, 0], rows.items(), strict=True):
        for (where, op, size, dtype), r in ratios.items():
            if where == manifold:
                color = "tab:blue" if r >= 1 else "tab:red"
                face = color if dtype == "float64" else "none"
                axis.scatter(r, names.index(f"{op} {size}"), s=24, edgecolors=color, facecolors=face, zorder=2)
        axis.set(xscale="log", ylim=(len(names) - 0.4, -0.6))
        axis.set_yticks(range(len(names)), names, fontsize=7)
        axis.set_title(manifold, fontsize=9, loc="left")
        axis.axvline(1, color="black", linewidth=0.8)
        axis.grid(linewidth=0.3)
        axis.tick_params(axis="x", labelbottom=True, labelsize=7)
    label = f"time of the fastest peer / time of steepest ({title}); ring float32, dot float64"
    axes[-1, 0].set_xlabel(label, fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def write(results: Path) -> None:
    """The page and the chart, beside the results."""
    data = load(results)
    results.with_suffix(".md").write_text(page(data))
    if data.get("primitives"):
        chart(data, results.with_suffix(".png"))
    print(f"wrote {results.with_suffix('.md')}")


if __name__ == "__main__":
    write(arguments(__doc__ or "").output)
