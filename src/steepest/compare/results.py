"""From the records of all runs to what can be said: means, spreads, and which differences seeds alone explain."""

from __future__ import annotations

import math
import statistics
from typing import Any

from steepest.compare.settings import Settings

LEVEL = 0.95
"""Confidence of the intervals."""


def gather(measured: list[dict[str, Any]], settings: Settings) -> dict[str, Any]:
    """`methods`, best first, each with its `summary`; and `best`, the key of the first, None if all diverged."""
    for method in measured:
        method["summary"] = summary(method)
    ranked = sorted(measured, key=_place)
    best = ranked[0] if ranked[0]["summary"]["loss"] is not None else None
    for method in ranked:
        method["summary"]["against_best"] = against(method, best) if best else None
    return {
        "best": best["key"] if best else None,
        "tokens_per_run": settings.steps * settings.tokens_per_step,
        "methods": ranked,
    }


def _place(method: dict[str, Any]) -> tuple[int, float]:
    """Methods that diverged on any seed come after those that did not."""
    loss = method["summary"]["loss"]
    return method["summary"]["diverged"], math.inf if loss is None else loss


def summary(method: dict[str, Any]) -> dict[str, Any]:
    """Numbers of a method over its seeds; those of losses are over the seeds that did not diverge."""
    runs = method["runs"]
    good = [run for run in runs if run["loss"] is not None]
    losses = [run["loss"] for run in good]
    return {
        "loss": statistics.fmean(losses) if losses else None,
        "sd": statistics.stdev(losses) if len(losses) > 1 else None,
        "least": min(losses, default=None),
        "greatest": max(losses, default=None),
        "seeds": len(good),
        "diverged": len(runs) - len(good),
        "state_bytes_per_parameter": runs[0]["state_bytes_per_parameter"],
        "condition": _mean([run["condition"] for run in good]),
        "activation_rms": _mean([run["activations"]["rms"] for run in good]),
        "largest_activation": _mean([run["activations"]["largest"] for run in good]),
        "residual": max((run["residual"] for run in good), default=None),
        "timing": {
            key: _mean([run["timing"][key] for run in good or runs]) for key in ("seconds", "step_ms", "optimizer_ms")
        },
    }


def _mean(values: list[float]) -> float | None:
    return statistics.fmean(values) if values else None


def against(method: dict[str, Any], best: dict[str, Any]) -> dict[str, Any]:
    """The method's loss minus that of the best, seed by seed (equal seeds have the same start and the same data), with
    Student's interval of the mean; `verdict` is "best", "worse", "within noise", "unclear" or "diverged"."""
    ours, theirs = ({run["seed"]: run["loss"] for run in m["runs"] if run["loss"] is not None} for m in (method, best))
    differences = [ours[seed] - theirs[seed] for seed in ours if seed in theirs]
    mean, interval = _mean(differences), student_interval(differences)
    if method is best:
        verdict = "best"
    elif mean is None:
        verdict = "diverged"
    elif interval is None:
        verdict = "unclear"
    else:
        verdict = "worse" if interval[0] > 0 else "within noise"
    return {"difference": mean, "interval": interval, "verdict": verdict}


def student_interval(values: list[float]) -> tuple[float, float] | None:
    """Interval of the mean of a Gaussian sample; None for fewer than two values."""
    from scipy.special import stdtrit

    if len(values) < 2:
        return None
    half = float(stdtrit(len(values) - 1, (1 + LEVEL) / 2)) * statistics.stdev(values) / len(values) ** 0.5
    mean = statistics.fmean(values)
    return mean - half, mean + half
