"""The report: one HTML file that needs no other, its pictures beside it, and all figures as JSON."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from steepest.finetune import figures
from steepest.finetune.data import Row
from steepest.finetune.encoder import DEFAULT_PACKAGE, DEFAULT_VERSION
from steepest.finetune.scores import Scores
from steepest.runs import files, pages

CAPTIONS = {
    "scores": "Longer is better. The thin line is a 95% bootstrap interval over the held-out rows. "
    "Grey: without training. Colour: after training.",
    "loss-step": "What training minimises; lower is better. Faint: each batch. Bold: running mean.",
    "loss-time": "The same against seconds of computing, which also counts what the optimiser itself costs.",
    "change": "How far the adapter has moved the weights, in Frobenius norms. Line: median layer; band: all layers.",
    "condition-B": "Largest over smallest singular value of LoRA's factor B. Line: median layer; band: all layers. "
    "Large numbers mean that some directions of the adapter are hardly used.",
    "condition-A": "The same for the factor A.",
    "stable-rank": "How many directions one step really uses: 1 means a single one, twice the rank is the most. "
    "Line: median layer; band: all layers.",
    "cost": "What one step costs, and what the optimiser keeps in memory besides the weights.",
}


def write(folder: Path, results: dict[str, Any]) -> None:
    """Write report.json, the pictures and report.html."""
    files.write_json(folder / "report.json", results)
    pictures = figures.draw(results)
    files.write_pictures(folder, pictures)
    files.write_text(folder / "report.html", render(results, pictures))


def render(results: dict[str, Any], pictures: dict[str, bytes]) -> str:
    """The report as HTML, with its pictures inside."""
    return pages.render(
        "steepest.finetune",
        pictures,
        **results,
        summary=summary(results),
        captions=CAPTIONS,
        alts={name: title for name, (_, title, _) in figures.MEASURED.items()},
        inside=[name for name in figures.MEASURED if name in pictures],
        costs=costs(results["runs"]),
        default_values={"model": f"{DEFAULT_PACKAGE} {DEFAULT_VERSION}", "data": results["task"]["source"]},
    )


def summary(results: dict[str, Any]) -> str:
    """What came of the run, in one or two sentences."""
    scores, gains = results["scores"], results["gains"]
    chosen, *others = results["runs"]
    metric = next(iter(scores["frozen"]["metrics"]))
    before, after = (scores[name]["metrics"][metric] for name in ("frozen", chosen))
    verb = "left" if f"{before:.3f}" == f"{after:.3f}" else "raised" if after > before else "lowered"
    change = _change(gains["frozen"])
    text = f"Fine-tuning with {chosen} {verb} {metric} from {before:.3f} (frozen) to {after:.3f}{change}."
    for other in others:
        value = scores[other]["metrics"][metric]
        text += f" {other} on the same adapter reached {value:.3f}{_comparison(gains[other], chosen)}."
    return text


def _change(gain: list[float]) -> str:
    difference, low, high = gain
    return f", a change of {difference:+.3f} (95% interval {low:+.3f} to {high:+.3f})"


def _comparison(gain: list[float], chosen: str) -> str:
    difference, low, high = gain
    interval = f"{difference:+.3f}, 95% interval {low:+.3f} to {high:+.3f}"
    if low <= 0 <= high:
        return f"; the difference ({interval}) may be chance"
    return f"; {chosen} is {'better' if difference > 0 else 'worse'} ({interval})"


def gains(scores: dict[str, Scores], runs: list[str]) -> dict[str, list[float]]:
    """Headline metric of the chosen run minus that of each other method, with the 95% interval of the difference."""
    chosen = scores[runs[0]]
    return {name: list(chosen.gain(other)) for name, other in scores.items() if name != runs[0]}


def examples(rows: list[Row], before: Scores, after: Scores, best: int = 3, worst: int = 2) -> list[dict[str, Any]]:
    """The held-out rows that gained most from training, and those that lost most."""
    change = [b - a for a, b in zip(before.each, after.each, strict=True)]
    order = sorted(range(len(rows)), key=lambda i: -change[i])
    gained = [i for i in order[:best] if change[i] > 0]
    lost = [i for i in order[-worst:] if change[i] < 0]
    return [
        {
            "text": rows[i].text,
            "target": rows[i].target,
            "group": rows[i].group,
            "gained": change[i] > 0,
            "before": {"answer": before.answers[i], "correct": before.correct[i], "score": before.each[i]},
            "after": {"answer": after.answers[i], "correct": after.correct[i], "score": after.each[i]},
        }
        for i in gained + lost
    ]


def costs(runs: dict[str, Any]) -> list[dict[str, Any]]:
    """Time and memory of each run, for the table."""
    return [
        {
            "name": name,
            "gradient_ms": statistics.median(run["gradient_seconds"]) * 1e3,
            "optimizer_ms": statistics.median(run["optimizer_seconds"]) * 1e3,
            "seconds": sum(run["gradient_seconds"]) + sum(run["optimizer_seconds"]),
            "mebibytes": run["state_bytes"] / 2**20,
            "residual": max(m["residual"] for m in run["measured"]),
            "drift": run.get("drift"),
        }
        for name, run in runs.items()
    ]
