"""Does the best learning rate stay where it is when the model grows? docs/width.png.

Character-level transformers of three widths (heads of length 16, more of them in a wider model), trained on the
standard library's text with learning rates a factor apart: as they come, under muP relative to the narrowest, and under
u-muP. One rate is swept for all parameters; for Muon and Shampoo the rate of AdamW, which has the rest, moves with it.

    python benchmarks/width.py            # a quarter of an hour on one core
    python benchmarks/width.py --tokens 262144 --widths 64 128 256
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from steepest import AdamW, Muon, Shampoo, param_groups, width_transfer
from steepest.compare import corpus
from steepest.compare.model import GPT
from steepest.compare.settings import Settings
from steepest.compare.train import train
from steepest.runs.pictures import picture

DOCS = Path(__file__).parent.parent / "docs"
FACTOR = 2.0
POINTS = 5
HEAD_LENGTH = 16
# For each method its class, the middle of its sweep as it comes and under u-muP, and AdamW's rate over its own.
METHODS: dict[str, tuple[Any, dict[str, float], dict[str, float]]] = {
    "AdamW": (AdamW, {"standard": 1.2e-2, "mup": 1.2e-2, "u-mup": 0.3}, {}),
    "Muon": (Muon, {"standard": 0.04, "mup": 0.04, "u-mup": 0.08}, {"standard": 0.3, "mup": 0.3, "u-mup": 3.0}),
    "Shampoo": (Shampoo, {"standard": 0.2, "mup": 0.2, "u-mup": 0.4}, {"standard": 0.06, "mup": 0.06, "u-mup": 0.6}),
}
PARAMETRIZATIONS = ("standard", "mup", "u-mup")


def builder(name: str, parametrization: str, width: int, base: GPT) -> Any:
    family, _, rest = METHODS[name]

    def build(model: GPT, lr: float) -> Any:
        options = {"lr": lr} | ({"adamw_lr": lr * rest[parametrization]} if rest else {"betas": (0.9, 0.95)})
        if parametrization == "standard":
            return family(param_groups(model), **options)
        return width_transfer(
            family, model, base if parametrization == "mup" else None, parametrization=parametrization, **options
        )

    return build


def measure(widths: list[int], tokens: int, seed: int, keep: Path | None) -> dict[str, Any]:
    """Held-out losses by method, parametrisation, width and learning rate; what `keep` holds is not measured again."""
    settings = Settings(tokens=tokens, layers=2, threads=1, seeds=1)
    text = corpus.load(None, settings.context)
    torch.manual_seed(seed)
    base = GPT(len(text.characters), widths[0], 2, widths[0] // HEAD_LENGTH, settings.context)
    found: dict[str, Any] = json.loads(keep.read_text()) if keep and keep.is_file() else {}
    cells = [(m, p, w, k) for m in METHODS for p in PARAMETRIZATIONS for w in widths for k in range(POINTS)]
    for name, parametrization, width, k in tqdm(cells, unit="run"):
        lr = METHODS[name][1][parametrization] * FACTOR ** (k - POINTS // 2)
        losses = found.setdefault(name, {}).setdefault(parametrization, {}).setdefault(str(width), {})
        if f"{lr:.4g}" in losses:
            continue
        own = dataclasses.replace(settings, width=width, heads=width // HEAD_LENGTH).checked()
        record = train(builder(name, parametrization, width, base), own, seed, lr, text)
        losses[f"{lr:.4g}"] = record["loss"]
        if keep:
            keep.write_text(json.dumps(found, indent=1))
    return found


def draw(found: dict[str, Any]) -> bytes:
    """One panel for each method and parametrisation, one line for each width, a dot at each minimum."""
    with picture((10, 8.5)) as (figure, buffer):
        panels = figure.subplots(len(found), len(PARAMETRIZATIONS), sharey="row")
        for row, (name, by) in zip(panels, found.items(), strict=True):
            values = [v for widths in by.values() for line in widths.values() for v in line.values() if v]
            low = min(values)
            for axes, parametrization in zip(row, PARAMETRIZATIONS, strict=True):
                for i, (width, line) in enumerate(by[parametrization].items()):
                    points = sorted((float(lr), loss) for lr, loss in line.items() if loss)
                    color = ("#9ecae1", "#4292c6", "#08306b")[i % 3]
                    axes.plot(*zip(*points, strict=True), color=color, label=f"width {width}")
                    axes.plot(*min(points, key=lambda p: p[1]), "o", color=color)
                axes.set_xscale("log")
                axes.set_xticks(sorted(map(float, line)), sorted(line, key=float))
                axes.minorticks_off()
                axes.set_ylim(low - 0.05, min(max(values), low + 1.0))
                axes.set_title(f"{name}, {parametrization}")
            row[0].set_ylabel("held-out loss, nats")
        for axes in panels[-1]:
            axes.set_xlabel("learning rate")
        figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return buffer.getvalue()


def drift(found: dict[str, Any]) -> str:
    """A Markdown table: by how much the best learning rate moves from the narrowest to the widest model, and the loss
    of the widest at the narrowest one's best rate above its own best."""
    lines = ["| | " + " | ".join(PARAMETRIZATIONS) + " |", "|---|" + "--:|" * len(PARAMETRIZATIONS)]
    for name, by in found.items():
        cells = []
        for parametrization in PARAMETRIZATIONS:
            lines_ = [{k: v or math.inf for k, v in line.items()} for line in by[parametrization].values()]
            best = [min(line, key=lambda k: line[k]) for line in lines_]
            lost = lines_[-1][best[0]] - lines_[-1][best[-1]]
            cells.append(f"{float(best[-1]) / float(best[0]):.3g}x, {lost:.3f}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=[32, 64, 128])
    parser.add_argument("--tokens", type=int, default=49_152)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="where to keep the losses, and to go on")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = measure(arguments.widths, arguments.tokens, arguments.seed, arguments.json)
    (DOCS / "width.png").write_bytes(draw(found))
    print(drift(found))


if __name__ == "__main__":
    main()
