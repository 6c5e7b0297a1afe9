"""The demo's task under AdamW on LoRA's factors, and Adam and Muon on FixedRank: `python benchmarks/finetune.py`.

Every method takes its learning rate from one grid, by the mean reciprocal rank of seed 0, and runs with it on three
seeds. (By the training loss every method would take the largest rate, and do worse on the held-out modules. The same
queries choose and report; four rates are few beside the standard error, and all of them are printed.) Reported:
recall and mean reciprocal rank on the held-out modules, the training loss, and at which step it, as the mean of ten
steps, first falls below AdamW's at its end. All seeds share data and split; a seed sets the adapter's start and the
order of the rows.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import tempfile
from pathlib import Path

from steepest.finetune import data
from steepest.finetune.job import Job
from steepest.finetune.settings import Settings
from steepest.finetune.train import chosen_optimizer, train
from steepest.runs.signals import Stop

METHODS = {
    "AdamW, factors": ("adamw", "euclidean"),
    "Adam, FixedRank": ("adam", "fixed-rank"),
    "Muon, FixedRank": ("muon", "fixed-rank"),
}
GRID = (1e-4, 3e-4, 1e-3, 3e-3)
SEEDS = (0, 1, 2)
WINDOW = 10


def smoothed(losses):
    return [statistics.fmean(losses[max(0, i + 1 - WINDOW) : i + 1]) for i in range(len(losses))]


class Bench:
    """Runs of one task; the model is loaded once for each seed."""

    def __init__(self, steps, folder):
        self.folder, self.split, self.jobs = Path(folder), data.load(None), {}
        self.base = Settings(steps=steps, baseline=False, save_every=10**6, measure_every=10**6)
        self.runs = {}

    def job(self, seed):
        if seed not in self.jobs:
            output = self.folder / str(seed)
            output.mkdir(parents=True, exist_ok=True)
            job = Job(dataclasses.replace(self.base, seed=seed).checked(), output, Stop(), lambda line: None)
            model, _, task = job.load(self.split)
            self.jobs[seed] = job, model, task, job.frozen(model, task)
        return self.jobs[seed]

    def run(self, method, lr, seed):
        if (method, lr, seed) not in self.runs:
            job, model, task, _ = self.job(seed)
            job.reset(model)
            optimizer, geometry = METHODS[method]
            settings = dataclasses.replace(job.settings, optimizer=optimizer, geometry=geometry, lr=lr)
            folder = job.output / f"{optimizer}-{lr}"
            history = train(model, task, chosen_optimizer, settings, folder, f"{method} {lr} seed {seed}", job.stop)
            metrics = task.evaluate(model).metrics
            self.runs[method, lr, seed] = {"loss": history.loss, **metrics}
            figures = ", ".join(f"{k} {v:.3f}" for k, v in metrics.items())
            print(f"{method}, lr {lr:g}, seed {seed}: loss {smoothed(history.loss)[-1]:.4f}, {figures}", flush=True)
        return self.runs[method, lr, seed]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=Settings.steps)
    parser.add_argument("--json", type=Path, help="where to keep all losses and metrics")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(arguments.steps, folder)
        best = {m: max(GRID, key=lambda lr, m=m: bench.run(m, lr, 0)["MRR"]) for m in METHODS}
        results = {m: [bench.run(m, best[m], seed) for seed in SEEDS] for m in METHODS}
        report(bench, best, results)
        if arguments.json:
            runs = [{"method": m, "lr": lr, "seed": s, **r} for (m, lr, s), r in bench.runs.items()]
            arguments.json.write_text(json.dumps(runs))


def report(bench, best, results):
    metrics = list(bench.jobs[0][3].metrics)
    print("\n| method | lr | " + " | ".join(metrics) + " | final loss | steps to AdamW's final loss |")
    print("|---|--:|" + "--:|" * (len(metrics) + 2))
    frozen = bench.jobs[0][3].metrics
    print("| frozen | | " + " | ".join(f"{frozen[m]:.3f}" for m in metrics) + " | | |")
    goals = [smoothed(run["loss"])[-1] for run in results["AdamW, factors"]]
    for method, runs in results.items():
        cells = [f"{statistics.fmean(r[m] for r in runs):.3f} ({_range(r[m] for r in runs)})" for m in metrics]
        losses = [smoothed(r["loss"]) for r in runs]
        reached = [next((i + 1 for i, v in enumerate(c) if v <= g), None) for c, g in zip(losses, goals, strict=True)]
        final = statistics.fmean(c[-1] for c in losses)
        steps = ", ".join("never" if s is None else str(s) for s in reached)
        print(f"| {method} | {best[method]:g} | " + " | ".join(cells) + f" | {final:.4f} | {steps} |")


def _range(values):
    values = list(values)
    return f"{min(values):.3f} to {max(values):.3f}"


if __name__ == "__main__":
    main()
