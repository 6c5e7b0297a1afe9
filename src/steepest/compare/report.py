"""What came of the comparison: results.json, a table as Markdown and CSV, pictures, one HTML file with all of it."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path
from typing import Any

from steepest.compare import figures
from steepest.compare.results import student_interval
from steepest.runs import files, pages

BASELINE = "adamw"
"""Whose loss the winner's is also told against, where it takes part."""

CAPTIONS = {
    "losses": "Each dot is one seed, the bar their mean. Where the dots of two optimisers mix, chance may have "
    "decided which comes first. An arrow: too far to the right for this picture.",
    "loss-tokens": "How the loss went down on text that no run trains on. Line: mean over the seeds; band: "
    "from the best to the worst seed. Only the end of each line counts: before, the learning rate is still high, and "
    "lines that cross later are no sign of anything.",
    "loss-time": "The same against seconds of computing on this machine, which also counts what the optimiser itself "
    "costs.",
    "sweeps": "Held-out loss at the end against the learning rate, on one seed. Ringed: the rate that was then used "
    "on all seeds. A cross: training diverged; an arrow: far above. A flat valley means that the "
    "optimiser forgives a rate that is not quite right.",
    "updates": "Root mean square of what one step changes in an entry of the weights, at the best learning rate, "
    "from the start to the end of training. Optimisers for matrices leave embedding, head and gains to "
    "AdamW as a rule.",
    "memory": "What the optimiser keeps besides the weights, which themselves take 4 bytes each in float32. AdamW "
    "keeps two numbers for each weight.",
}
VERDICTS = {
    "best": "lowest loss",
    "within noise": "within noise of the best",
    "worse": "worse than the best",
    "unclear": "one seed: unclear",
    "diverged": "diverged",
}


def write(folder: Path, results: dict[str, Any]) -> None:
    """Write all files of the report."""
    files.write_json(folder / "results.json", results)
    files.write_text(folder / "table.md", markdown(results) + "\n")
    files.write_text(folder / "table.csv", comma_separated(results))
    pictures = figures.draw(results)
    files.write_pictures(folder, pictures)
    files.write_text(folder / "report.html", render(results, pictures))


def render(results: dict[str, Any], pictures: dict[str, bytes]) -> str:
    """The report as HTML, with its pictures inside."""
    return pages.render(
        "steepest.compare",
        pictures,
        **results,
        summary=summary(results),
        noise=noise(results),
        captions=CAPTIONS,
        rows=rows(results),
        verdicts=VERDICTS,
        pairs=pairs(results),
    )


# In words. ----------------------------------------------------------------------------------------------------------


def summary(results: dict[str, Any]) -> str:
    """Who won and by how much, in a few sentences."""
    best, *others = results["methods"]
    if results["best"] is None:
        return "Every optimiser diverged at every learning rate that it tried; nothing can be compared."
    s = best["summary"]
    spread = f" ± {s['sd']:.3f} (mean and standard deviation over {s['seeds']} seeds)" if s["sd"] is not None else ""
    text = f"{best['name']} reached the lowest held-out loss: {s['loss']:.3f}{spread} nats per character."
    finished = [m for m in others if m["summary"]["loss"] is not None]
    if finished:
        text += f" Next is {finished[0]['name']}, {_gap(finished[0])}."
    for method in finished[1:]:
        if method["key"] == BASELINE:
            text += f" {method['name']} is {_gap(method)}."
    return text


def _gap(method: dict[str, Any]) -> str:
    found = method["summary"]["against_best"]
    share = found["difference"] / (method["summary"]["loss"] - found["difference"])
    return f"{found['difference']:.3f} higher ({share:.1%}; {VERDICTS[found['verdict']]})"


def noise(results: dict[str, Any]) -> str:
    """Which methods cannot be told from the best one."""
    methods = results["methods"][1:]
    if results["best"] is None:
        return ""
    if results["settings"]["seeds"] == 1:
        return "With one seed nothing can be said about chance; run it with --seeds 3 or more."
    near = [m["name"] for m in methods if m["summary"]["against_best"]["verdict"] == "within noise"]
    best = results["methods"][0]["name"]
    if not near:
        return f"All others are worse than {best} by more than the seeds' spread explains."
    return f"Not told apart from {best} by these seeds: {', '.join(near)}."


# Tables. ------------------------------------------------------------------------------------------------------------


def rows(results: dict[str, Any]) -> list[dict[str, Any]]:
    """A dictionary for each method, best first; the keys are the columns of the CSV file."""
    return [_row(place, method) for place, method in enumerate(results["methods"], 1)]


def _row(place: int, method: dict[str, Any]) -> dict[str, Any]:
    s, found = method["summary"], method["summary"]["against_best"] or {}
    low, high = found.get("interval") or (None, None)
    return {
        "place": place,
        "method": method["name"],
        "optimizer": method["optimizer"],
        "geometry": method["geometry"],
        "lr": method["lr"],
        "default_lr": method["default_lr"],
        "lr_at_edge": method["at_edge"],
        "loss": s["loss"],
        "sd": s["sd"],
        "seeds": s["seeds"],
        "diverged_seeds": s["diverged"],
        "above_best": found.get("difference"),
        "above_best_low": low,
        "above_best_high": high,
        "verdict": found.get("verdict", "diverged"),
        "step_ms": s["timing"]["step_ms"],
        "optimizer_ms": s["timing"]["optimizer_ms"],
        "state_bytes_per_parameter": s["state_bytes_per_parameter"],
        "condition": s["condition"],
        "activation_rms": s["activation_rms"],
        "residual": s["residual"],
    }


def comma_separated(results: dict[str, Any]) -> str:
    """The table as CSV, with all digits."""
    table, buffer = rows(results), io.StringIO()
    writer = csv.DictWriter(buffer, list(table[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    return buffer.getvalue()


def markdown(results: dict[str, Any]) -> str:
    """The table for readers."""
    lines = [
        "| | optimiser | lr | held-out loss | above the best | | step, ms | of it optimiser | state, bytes/param |",
        "|--:|---|--:|--:|--:|---|--:|--:|--:|",
    ]
    for r in rows(results):
        loss = "diverged" if r["loss"] is None else f"{r['loss']:.4f}" + (f" ± {r['sd']:.4f}" if r["sd"] else "")
        above = "" if r["above_best"] is None else f"{r['above_best']:.4f}"
        if r["above_best_low"] is not None and r["verdict"] != "best":
            above += f" ({r['above_best_low']:.4f} to {r['above_best_high']:.4f})"
        lines.append(
            f"| {r['place']} | {r['method']} | {r['lr']:.3g}{' (edge)' if r['lr_at_edge'] else ''} | {loss} | {above} "
            f"| {VERDICTS[r['verdict']]} | {r['step_ms']:.1f} | {r['optimizer_ms']:.1f} | "
            f"{r['state_bytes_per_parameter']:.2f} |"
        )
    return "\n".join(lines)


def pairs(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Each optimiser without and with the geometry, for those that ran with it: `name`, `plain` (None where only the
    constrained one ran), `constrained`, and the difference of their losses seed by seed with its interval."""
    plain = {m["optimizer"]: m for m in results["methods"] if m["geometry"] == "none"}
    out = []
    for method in results["methods"]:
        if method["geometry"] != "none" and method["summary"]["loss"] is not None:
            other = plain.get(method["optimizer"])
            change = _differences(method, other) if other else []
            out.append(
                {
                    "name": method["name"].partition(",")[0],
                    "plain": other["summary"] if other and other["summary"]["loss"] is not None else None,
                    "constrained": method["summary"],
                    "difference": math.fsum(change) / len(change) if change else None,
                    "interval": student_interval(change),
                }
            )
    return out


def _differences(method: dict[str, Any], other: dict[str, Any]) -> list[float]:
    """Losses of the one minus those of the other, on the seeds that both have."""
    theirs = {run["seed"]: run["loss"] for run in other["runs"] if run["loss"] is not None}
    ours = {run["seed"]: run["loss"] for run in method["runs"] if run["loss"] is not None}
    return [ours[seed] - theirs[seed] for seed in ours if seed in theirs]
