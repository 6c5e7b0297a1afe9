"""The whole comparison: text, rehearsal, sweeps, seeds, report.

Each finished run is one file below `runs/` in the output folder. A comparison that was stopped starts over, and finds
those runs done; what it does next depends on nothing but the settings and the losses in these files.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from steepest.compare import corpus as corpora
from steepest.compare import report
from steepest.compare.corpus import Corpus
from steepest.compare.methods import Method, methods
from steepest.compare.progress import Progress
from steepest.compare.results import gather
from steepest.compare.settings import Settings, parsed
from steepest.compare.sweep import Sweep
from steepest.compare.train import Diverged, Trainer, fresh_model, train
from steepest.runs import files
from steepest.runs.errors import UserError, check_packages
from steepest.runs.settings import SETTINGS
from steepest.runs.versions import versions

NEEDED = ("matplotlib", "jinja2", "tqdm", "scipy")
PACKAGES = ("steepest", "torch", "numpy")
TEXT = "text.json"
"""File with the hash of the text, so that a resumed comparison can tell whether it is still the same."""
REHEARSED = 3
"""Steps of each method before anything is written: whether it works at all, and how long it takes."""
EXTENSIONS = 1.5
"""Learning rates that a sweep adds on average, for the estimate of the time."""


def compare(
    given: dict[str, Any],
    output: Path,
    *,
    resume: bool = False,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Run the comparison in the folder `output`, and return what `results.json` holds.

    Args:
        given: the options that differ from the defaults of `Settings`; `optimizers` may be a text with commas.
        output: folder of the results; made if it does not exist.
        resume: go on with the interrupted comparison in `output`; `given` must not contradict its settings.
        say: called with each line of progress.

    Raises:
        UserError: a mistake that the user can mend, with how.
        Interrupted: a signal came within an entered `Stop`; finished runs are kept, and the comparison can be resumed.
    """
    check_packages(NEEDED)
    by_name = bool(given.get("optimizers"))
    settings = Settings.of(output, parsed(given), resume)
    torch.set_num_threads(settings.threads)
    corpus = load_text(settings, output, resume)
    say(describe(settings, corpus))
    costs, refused = rehearse(methods(settings), settings, corpus, say)
    if refused and (by_name or not costs):
        raise refusal(refused, settings)
    files.make_folder(output)
    files.write_json(output / TEXT, {"source": corpus.source, "sha256": corpus.digest})
    files.write_json(output / SETTINGS, settings.to_json())  # from here on the comparison can be resumed
    say(estimate(costs, settings))
    left_out = {method.name: str(error) for method, error in refused.items()}
    return Job(settings, output, corpus, say).run(list(costs), left_out)


def load_text(settings: Settings, output: Path, resume: bool) -> Corpus:
    """The text, which must be that of the interrupted comparison if there is one."""
    corpus = corpora.load(settings.data, settings.context)
    if resume and (output / TEXT).is_file() and files.read_json(output / TEXT)["sha256"] != corpus.digest:
        raise UserError(
            f"--resume: {corpus.source} is not what it was when the comparison in {output} began, so that its runs "
            "would not compare with new ones. Put the old text (or the old Python) back, or start in another --output "
            "folder."
        )
    return corpus


def describe(settings: Settings, corpus: Corpus) -> str:
    """What every run has in common, in a line."""
    parameters = sum(p.numel() for p in fresh_model(settings, corpus).parameters())
    return (
        f"text: {corpus.source}; {len(corpus.train):,} characters to train on, {len(corpus.valid):,} held out\n"
        f"model: {parameters:,} parameters; each run: {settings.steps:,} steps, "
        f"{settings.steps * settings.tokens_per_step:,} characters"
    )


# Before anything is written. ----------------------------------------------------------------------------------------


def rehearse(
    chosen: list[Method], settings: Settings, corpus: Corpus, say: Callable[[str], None]
) -> tuple[dict[Method, float], dict[Method, Exception]]:
    """Seconds of a step of each method, and those that cannot do it, with their errors."""
    costs: dict[Method, float] = {}
    refused: dict[Method, Exception] = {}
    for method in chosen:
        try:
            costs[method] = seconds_per_step(method, settings, corpus)
        except (ValueError, TypeError, RuntimeError, NotImplementedError) as error:
            refused[method] = error
            say(f"left out: {method.name} ({error})")
    return costs, refused


def seconds_per_step(method: Method, settings: Settings, corpus: Corpus) -> float:
    """Measured over a few steps of a run that is then thrown away."""
    trainer = Trainer(builder(method, settings), settings, settings.seed, method.default_lr, corpus, method.geometry)
    try:
        for step in range(min(REHEARSED, settings.steps)):
            trainer.step(step)
    except Diverged:
        pass  # another learning rate may do
    return min(trainer.step_seconds, default=0.0)


def refusal(refused: dict[Method, Exception], settings: Settings) -> UserError:
    """The error of the first method that does not work."""
    method, error = next(iter(refused.items()))
    where = f" with --geometry {settings.geometry}" if method.geometry != "none" else ""
    return UserError(
        f"--optimizers {method.optimizer}: cannot train this model{where} ({error}). Leave it out of --optimizers"
        + (", or choose --geometry none." if where else ".")
    )


def estimate(costs: dict[Method, float], settings: Settings) -> str:
    """How long it may take, in a line."""
    runs = settings.lrs + settings.seeds - 1 + (EXTENSIONS if settings.lrs > 1 else 0)
    evaluation = (settings.evaluations + 1) * settings.eval_tokens / settings.tokens_per_step / 3
    seconds = {m: runs * (settings.steps + evaluation) * cost for m, cost in costs.items()}
    slowest = max(seconds, key=lambda m: seconds[m])
    return (
        f"estimate: about {runs * len(costs):.0f} runs, {minutes(sum(seconds.values()))}; "
        f"the slowest optimiser, {slowest.name}, {minutes(seconds[slowest])}, "
        f"the median one {minutes(statistics.median(seconds.values()))}"
    )


def minutes(seconds: float) -> str:
    """A time as one reads it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def builder(method: Method, settings: Settings) -> Callable[..., Any]:
    """The method as `train` wants it."""
    return lambda model, lr: method.build(model, lr, settings)


# The runs. ----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Job:
    """One comparison: its settings, its text, and the folder that holds the finished runs."""

    settings: Settings
    output: Path
    corpus: Corpus
    say: Callable[[str], None]

    def run(self, chosen: list[Method], left_out: dict[str, str]) -> dict[str, Any]:
        """All runs of the chosen methods that are not there yet, and the report, which names those left out."""
        s = self.settings
        with Progress(len(chosen) * (s.lrs + s.seeds - 1), s.steps, self.say) as progress:
            measured = [self.method(method, progress) for method in chosen]
        results = {
            "settings": s.to_json(),
            "text": self._text(),
            "versions": versions(PACKAGES),
            "left_out": left_out,
            **gather(measured, s),
        }
        report.write(self.output, results)
        self.say(report.markdown(results))
        self.say(report.summary(results))
        self.say(f"report: {self.output / 'report.html'}")
        return results

    def method(self, method: Method, progress: Progress) -> dict[str, Any]:
        """The sweep of one method on the first seed, then its best learning rate on the others."""
        s = self.settings
        sweep = Sweep(method.default_lr, s.lr_factor, s.lrs, s.extend)
        records: dict[int, dict[str, Any]] = {}
        losses: dict[int, float] = {}
        while (k := sweep.following(losses)) is not None:
            if len(losses) >= s.lrs:
                progress.foresee(1)
            records[k] = self.single(method, sweep.lr(k), s.seed, progress)
            losses[k] = math.inf if records[k]["loss"] is None else records[k]["loss"]
        best = sweep.best(losses)
        repeated = [records[best]]
        if math.isfinite(losses[best]):
            repeated += [self.single(method, sweep.lr(best), seed, progress) for seed in s.all_seeds[1:]]
        else:
            progress.foresee(1 - s.seeds)
        return {
            "key": method.key,
            "name": method.name,
            "optimizer": method.optimizer,
            "geometry": method.geometry,
            "default_lr": method.default_lr,
            "lr": sweep.lr(best),
            "at_edge": sweep.at_edge(losses),
            "sweep": [{key: records[k][key] for key in ("lr", "loss", "diverged")} for k in sorted(records)],
            "runs": repeated,
        }

    def single(self, method: Method, lr: float, seed: int, progress: Progress) -> dict[str, Any]:
        """The record of one run: from its file, or from doing it."""
        label = f"{method.name}, lr {lr:.3g}, seed {seed}"
        path = self.output / "runs" / method.key / f"lr{lr:.3g}-seed{seed}.json"
        if path.is_file():
            record = files.read_json(path)
        else:
            with progress.run(label) as tick:
                build = builder(method, self.settings)
                record = train(build, self.settings, seed, lr, self.corpus, geometry=method.geometry, tick=tick)
            files.write_json(path, record)
        outcome = "diverged" if record["loss"] is None else f"held-out loss {record['loss']:.4f}"
        progress.done(f"{label}: {outcome} ({record['timing']['seconds']:.1f} s)")
        return record

    def _text(self) -> dict[str, Any]:
        c = self.corpus
        model = fresh_model(self.settings, c)
        return {
            "source": c.source,
            "sha256": c.digest,
            "train": len(c.train),
            "held_out": len(c.valid),
            "vocabulary": len(c.characters),
            "parameters": sum(p.numel() for p in model.parameters()),
            "evaluated": self.corpus.held_out(self.settings.eval_tokens, self.settings.context)[0].numel(),
        }
