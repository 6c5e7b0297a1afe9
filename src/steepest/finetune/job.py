"""The whole job: data, model, baselines, the chosen run, AdamW beside it, adapter and report.

The output folder holds the state of the job. Each stage leaves a file when it is done; a resumed job skips those stages
and enters the one that was interrupted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from steepest.finetune import adapters, checkpoint, data, encoder, report
from steepest.finetune.scores import Scores
from steepest.finetune.settings import Settings
from steepest.finetune.tasks import TASKS, Classifier, Task
from steepest.finetune.train import History, baseline_optimizer, batch, chosen_optimizer, train
from steepest.runs import files
from steepest.runs.errors import check_packages
from steepest.runs.optimizers import known_optimizers
from steepest.runs.settings import DTYPES, SETTINGS
from steepest.runs.signals import Stop
from steepest.runs.versions import versions

NEEDED = ("transformers", "peft", "safetensors", "sklearn", "matplotlib", "jinja2", "tqdm")
PACKAGES = ("steepest", "torch", "transformers", "peft", "scikit-learn", "numpy")


def finetune(
    given: dict[str, Any],
    output: Path,
    *,
    resume: bool = False,
    stop: Stop | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Run the job in the folder `output`, and return what `report.json` holds.

    Args:
        given: the options that differ from the defaults of `Settings`.
        output: folder of the results; made if it does not exist.
        resume: go on with the interrupted job in `output`, with its settings; `given` must not contradict them.
        stop: an entered `Stop`, for a job that saves itself when a signal comes.
        say: called with each line of progress.

    Raises:
        UserError: a mistake that the user can mend, with how.
        Interrupted: a signal came; the job can be resumed.
    """
    check_packages(NEEDED)
    settings = Settings.of(output, given, resume)
    files.make_folder(output)
    torch.set_num_threads(settings.threads)
    job = Job(settings, output, stop or Stop(), say)
    return job.run()


@dataclasses.dataclass
class Job:
    """One run of the command: its settings, and the folder that holds its state."""

    settings: Settings
    output: Path
    stop: Stop
    say: Callable[[str], None]
    trained: int = 0
    total: int = 0
    """Parameters of the model, once it is loaded."""

    def run(self) -> dict[str, Any]:
        """All stages, in their order."""
        s = self.settings
        split = data.load(s.data)
        self.say(f"data: {split.source}; {len(split.train)} rows to train on, {len(split.test)} held out")
        model, backbone, task = self.load(split)
        files.write_json(self.output / SETTINGS, s.to_json())  # from here on the job can be resumed
        scores = {"TF-IDF": self.scored("tfidf", task.tfidf), "frozen": self.frozen(model, task)}
        names = {"chosen": run_name(s)} | ({"baseline": "AdamW (torch)"} if s.baseline else {})
        builders = {"chosen": chosen_optimizer, "baseline": baseline_optimizer}
        histories = {}
        for key, name in names.items():
            self.reset(model)
            histories[name] = train(model, task, builders[key], s, self.output / "runs" / key, name, self.stop)
            if key == "chosen":
                save_adapter(model, backbone, self.output / "adapter")
            scores[name] = self.scored(f"runs/{key}/scores", lambda: task.evaluate(model))
        return self.report(split, task, scores, histories)

    def load(self, split: data.Split) -> tuple[nn.Module, Any, Task]:
        """Model with a fresh adapter, the same for equal seeds; PEFT's part of it; and the task with its tokens."""
        s = self.settings
        base, tokenizer = encoder.load(s.model, DTYPES[s.dtype], torch.device(s.device))
        task, pad = TASKS[split.kind](split, tokenizer, s), tokenizer.pad_token_id or 0
        torch.manual_seed(s.seed)
        backbone = adapters.adapt(base, s.method(), s.configured(), lambda: self.calibrate(base, task, pad))
        model = task.model(backbone, pad)
        self.trained, self.total = adapters.count(model)
        name = s.model or encoder.DEFAULT_PACKAGE
        self.say(f"model: {name}; {self.trained:,} of {self.total:,} parameters are trained")
        return model, backbone, task

    def calibrate(self, base: nn.Module, task: Task, pad: int) -> None:
        """Gradients of the task's loss on the first batches, for an adapter that starts from them."""
        model = task.model(base, pad)
        task.prepare(model)
        for step in range(self.settings.calibration_batches or 0):
            task.loss(model, batch(step, len(task.train), self.settings.batch_size, self.settings.seed)).backward()

    def scored(self, name: str, compute: Callable[[], Scores]) -> Scores:
        """The scores in the file `name`, computed first where there are none."""
        path = self.output / f"{name}.json"
        if not path.is_file():
            files.write_json(path, compute().to_json())
        scores = Scores(**files.read_json(path))
        figures = ", ".join(f"{metric} {value:.3f}" for metric, value in scores.metrics.items())
        self.say(f"{name.removesuffix('/scores')}: {figures}")
        return scores

    def frozen(self, model: nn.Module, task: Task) -> Scores:
        """Scores of the pre-trained model; the weights from which every run starts are kept beside them."""
        from safetensors.torch import save_file

        def compute() -> Scores:
            scores = task.frozen(model)
            with files.atomic(self.output / "initial.safetensors") as path:
                save_file(checkpoint.trainable(model), path)
            return scores

        return self.scored("frozen", compute)

    def reset(self, model: nn.Module) -> None:
        """Put the trained weights back to where every run starts."""
        from safetensors.torch import load_file

        checkpoint.load_trainable(model, load_file(self.output / "initial.safetensors"))

    def adapter(self) -> dict[str, Any]:
        """What the report says of the adapter."""
        s, method = self.settings, self.settings.method()
        named = {name: value for name, value in (("rank", s.rank), ("alpha", s.alpha)) if value is not None}
        shown = {method.rank(), method.alpha()}
        given = [text for text in s.adapter_option if text.partition("=")[0] not in shown]
        return {
            "name": method.name,
            "label": method.label,
            "ours": method.ours,
            "orthogonal": method.orthogonal(s.configured()[0]),
            "options": [f"{name} {value:g}" for name, value in named.items()] + given,
            "trained": self.trained,
            "total": self.total,
        }

    def report(
        self, split: data.Split, task: Task, scores: dict[str, Scores], runs: dict[str, History]
    ) -> dict[str, Any]:
        """Write the report, and return what its JSON file holds."""
        results = {
            "task": {
                "kind": task.kind,
                "question": task.question,
                "source": split.source,
                "train_rows": len(split.train),
                "test_rows": len(task.test),
                "held_out_rows": len(split.test),
                "train_groups": len({r.group for r in split.train}),
                "test_groups": len({r.group for r in split.test}),
            },
            "adapter": self.adapter(),
            "settings": self.settings.to_json(),
            "versions": versions(PACKAGES),
            "scores": {name: s.to_json() | {"interval": s.interval()} for name, s in scores.items()},
            "gains": report.gains(scores, list(runs)),
            "runs": {name: dataclasses.asdict(history) for name, history in runs.items()},
            "examples": report.examples(task.test, scores["frozen"], scores[next(iter(runs))]),
        }
        report.write(self.output, results)
        self.say(report.summary(results))
        self.say(f"report: {self.output / 'report.html'}; adapter: {self.output / 'adapter'}")
        return results


def run_name(settings: Settings) -> str:
    """The chosen optimiser, the adapter where it is not LoRA, and its geometry, as the report calls them."""
    label = "" if settings.adapter == "lora" else settings.method().label
    words = [word for word in (label, settings.geometry) if word]
    return f"{known_optimizers()[settings.optimizer].__name__} ({', '.join(words)})"


def save_adapter(model: nn.Module, backbone: Any, folder: Path) -> None:
    """The adapter in PEFT's format, and the head of a classifier beside it."""
    from safetensors.torch import save_file

    backbone.save_pretrained(folder)
    if isinstance(model, Classifier):
        with files.atomic(folder / "head.safetensors") as path:
            save_file({k: v.contiguous() for k, v in model.head.state_dict().items()}, path)
