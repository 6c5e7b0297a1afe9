"""Adapters at one budget of trained parameters, and LOFT's supports beside each other, for docs/adapters.md.

    python benchmarks/adapters.py                  # under an hour; writes docs/adapters.md and its picture
    python benchmarks/adapters.py --only hra,loft  # the runs of these rows alone, as names begin; writes no page
    python benchmarks/adapters.py --page           # the page from the runs that are there, and no more runs

The task is that of `steepest finetune`, smaller: shorter texts, smaller batches, fewer steps, fewer held-out rows.
Every row takes its learning rate by the mean reciprocal rank of one seed from a grid of three, which gets a fourth
where the best is at its edge, and runs with it on three other seeds. Each run is a file in --output, and found there
when the script is started again. All seeds share data and split; a seed sets the adapter's start, its calibration, and
the order of the rows.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import gc
import math
import statistics
import tempfile
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from low_rank import Live
from torch import nn

from steepest.adapters import penalty
from steepest.compare.results import student_interval
from steepest.finetune import checkpoint, data, measure
from steepest.finetune.adapters import method, wants_calibration
from steepest.finetune.job import Job
from steepest.finetune.settings import Settings
from steepest.finetune.tasks import Task
from steepest.finetune.train import batch, chosen_optimizer, schedule, set_rates
from steepest.runs import files
from steepest.runs.pictures import picture
from steepest.runs.signals import Stop
from steepest.runs.versions import versions

PAGE = Path(__file__).parent.parent / "docs" / "adapters.md"
SEEDS = (0, 1, 2)
SWEEP_SEED = 3
"""Chooses the learning rate, and is not reported."""
FACTOR, EXTEND = 3.0, 1
"""Ratio of neighbouring learning rates, and how many may be added to the three."""
COMMON: dict[str, Any] = {
    "optimizer": "adam",
    "steps": 30,
    "batch_size": 12,
    "max_tokens": 20,
    "eval_size": 200,
    "baseline": False,
    "threads": 1,
    "calibration_batches": 4,
}
NEAR = 0.15
"""How far from the budget a row may be without a mark."""
WINDOW = 10
"""Steps over which the loss at the end is averaged."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One way to fine-tune: the adapter with its options, and the middle of its learning rates."""

    key: str
    label: str
    adapter: str
    lr: float
    options: tuple[str, ...] = ()
    geometry: str | None = None
    peft: bool = False
    rate_of: str | None = None
    """A row with the same function of the same numbers, whose learning rate is taken: a sweep would cost too much."""

    def settings(self, seed: int, lr: float) -> Settings:
        """The options of `steepest finetune`."""
        given = COMMON if _calibrates(self) else {k: v for k, v in COMMON.items() if k != "calibration_batches"}
        return Settings(
            adapter=self.adapter, adapter_option=list(self.options), geometry=self.geometry, seed=seed, lr=lr, **given
        ).checked()


def _calibrates(row: Row) -> bool:
    config, _ = method(row.adapter).configured(row.options, None, None)
    return wants_calibration(config)


def loft(support: str, r: int, lr: float) -> Row:
    """LOFT with a support that is a basis."""
    return Row(f"loft-{support}-{r}", f"LOFT, {support}", "loft", lr, (f"support={support}", f"r={r}"))


WIDTH = 136
"""Of LOFT's supports, at which a rotation of them has as many numbers as LoRA of rank 8 in all layers together."""
ROWS = (
    Row("lora", "LoRA", "lora", 1e-3, ("r=8", "lora_alpha=16"), "euclidean", True),
    Row("pissa", "PiSSA", "pissa", 3e-4, ("r=8", "lora_alpha=8"), "euclidean", True),
    Row("oft", "OFT", "oft", 1e-3, ("oft_block_size=32",), None, True),
    Row("psoft", "PSOFT", "psoft", 3e-4, ("r=134",), None, True),
    Row("peft-hra", "HRA", "peft-hra", 1e-3, ("r=16",), None, True, rate_of="hra"),
    Row("lora-fixed-rank", "LoRA on FixedRank", "lora", 3e-4, ("r=8", "lora_alpha=16"), "fixed-rank"),
    loft("principal", WIDTH, 3e-4),
    loft("gradient", WIDTH, 3e-4),
    loft("random", WIDTH, 3e-4),
    Row("loft-coordinates", "LOFT, coordinates", "loft", 3e-4, ("support=coordinates", f"r={WIDTH}")),
    Row("loft-butterfly", "LOFT, butterfly", "loft", 1e-3, ("support=butterfly", "r=none", "block=16", "levels=2")),
    Row("hra", "HRA", "hra", 1e-3, ("r=16",)),
    Row("qgoft", "QGOFT", "qgoft", 3e-3),
    Row("soda", "SODA", "soda", 1e-3, ("factors=2",)),
    Row("spectral-additive", "SpectralAdapter, additive", "spectraladapter", 1e-3, ("r=8", "form=additive")),
    Row("spectral-rotational", "SpectralAdapter, rotational", "spectraladapter", 1e-3, ("r=96", "form=rotational")),
    Row("riemannlora", "RiemannLoRA", "riemannlora", 1e-3, ("r=8",)),
    Row("moelora", "MoELoRA", "moelora", 3e-4, ("r=2", "experts=3", "top_k=2", "alpha=4")),
    Row("asymmetric", "asymmetric LoRA", "asymmetric", 1e-3, ("r=16", "lora_alpha=32")),
    Row("osf", "OSF, projected", "osf", 1e-3, ("effective_rank=376",)),
)
SUPPORTS = ("gradient", "principal", "random")
WIDTHS = {16: 3e-3, WIDTH: 3e-4}
"""Widths of the supports that are compared, and the middles of their learning rates."""
CLAIMS = (("gradient", "random", True), ("gradient", "principal", True), ("principal", "random", False))
"""Two supports at equal width, and whether the first is said to be the better one."""


def everything() -> list[Row]:
    """All rows, those of the second table too."""
    return list(
        {row.key: row for row in (*ROWS, *(loft(s, r, lr) for r, lr in WIDTHS.items() for s in SUPPORTS))}.values()
    )


# Runs. ----------------------------------------------------------------------------------------------------------------


class Missing(Exception):
    """A run that has not been done."""


class Bench:
    """Runs of the task, each kept in a file; the adapted model is made once for each row and seed.

    Args:
        missing: do the runs that are missing; otherwise they raise `Missing`.
    """

    def __init__(self, output: Path, *, missing: bool = True) -> None:
        self.output, self.missing = output, missing
        self.made: tuple[tuple[str, int], Any] | None = None

    @functools.cached_property
    def split(self) -> data.Split:
        """The texts."""
        return data.load(None)

    def model(self, row: Row, seed: int) -> tuple[Job, nn.Module, Task, dict[str, torch.Tensor]]:
        """The job, its model with a fresh adapter, its task, and the weights at the start."""
        if self.made is None or self.made[0] != (row.key, seed):
            self.made = None
            gc.collect()
            with tempfile.TemporaryDirectory() as folder:
                job = Job(row.settings(seed, row.lr), Path(folder), Stop(), lambda line: None)
                model, _, task = job.load(self.split)
            self.made = (row.key, seed), (job, model, task, checkpoint.trainable(model))
        return self.made[1]

    def file(self, name: str) -> Path:
        """Where the result of that name is kept."""
        return self.output / f"{name}.json"

    def once(self, name: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The result in a file; computed first where there is none."""
        if not self.file(name).is_file():
            if not self.missing:
                raise Missing(name)
            began = time.process_time()
            found = compute()
            files.write_json(self.file(name), found | {"seconds": time.process_time() - began})
            kept = {k: round(v, 5) for k, v in found.items() if isinstance(v, float)}
            print(f"{time.strftime('%H:%M:%S')} {name}: {kept}", flush=True)
        return files.read_json(self.file(name))

    def run(self, row: Row, lr: float, seed: int) -> dict[str, Any]:
        """One training run."""
        return self.once(f"{row.key}_{lr:g}_{seed}", lambda: self.train(row, lr, seed))

    def train(self, row: Row, lr: float, seed: int) -> dict[str, Any]:
        """Train and score."""
        job, model, task, start = self.model(row, seed)
        checkpoint.load_trainable(model, start)
        settings = dataclasses.replace(job.settings, lr=lr)
        found = {"trained": job.trained, "lr": lr, "seed": seed, "settings": settings.to_json()}
        optimizer = chosen_optimizer(model, settings)
        rates = [group["lr"] for group in optimizer.param_groups]
        fresh = self.fresh(row, model, settings) if seed == SEEDS[0] else None
        torch.manual_seed(seed)
        losses, times = [], []
        for step in range(settings.steps):
            set_rates(optimizer, rates, schedule(step, settings.steps))
            began = time.process_time()
            losses.append(take_step(model, task, optimizer, settings, step))
            times.append(time.process_time() - began)
            if not math.isfinite(losses[-1]):
                return found | {"MRR": None, "loss": None, "losses": losses}
        scores = task.evaluate(model)
        changes = fresh and fresh.changes(model)
        drifts = fresh and fresh.singular_values and fresh.drifts(model)
        return found | {
            **scores.metrics,
            "loss": statistics.fmean(losses[-WINDOW:]),
            "losses": losses,
            "step_ms": 1e3 * statistics.median(times),
            "change": statistics.median(changes) if changes else None,
            "drift": max(drifts) if drifts else None,
            "each": scores.each,
        }

    @staticmethod
    def fresh(row: Row, model: nn.Module, settings: Settings) -> measure.Start:
        """What the layers are before training."""
        return measure.Start.of(model, dense=settings.method().orthogonal(settings.configured()[0]))

    def frozen(self) -> dict[str, Any]:
        """The scores without training."""

        def compute() -> dict[str, Any]:
            _, model, task, _ = self.model(ROWS[0], SEEDS[0])
            return {**task.evaluate(model).metrics, "train": len(task.train), "test": len(task.test)}

        return self.once("frozen", compute)

    def memory(self, row: Row) -> dict[str, Any]:
        """Most MiB of tensors alive at once in the second step, the first of which makes the optimiser's state; and the
        MiB that the adapter keeps beside the model, trained or frozen."""

        def compute() -> dict[str, Any]:
            job, model, task, start = self.model(row, SEEDS[0])
            checkpoint.load_trainable(model, start)
            optimizer = chosen_optimizer(model, job.settings)
            with Live(model) as live:
                for step in range(2):
                    take_step(model, task, optimizer, job.settings, step)
            stored = [*model.parameters(), *model.buffers()]
            kept = sum({t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in stored}.values())
            return {"peak": live.most / 2**20, "stored": kept / 2**20}

        return self.once(f"memory_{row.key}", compute)

    def best(self, row: Row) -> tuple[float, bool]:
        """The learning rate with the best score of the sweep's seed, and whether it is at the edge of the grid."""
        tried = {row.lr * FACTOR**i: self.score(row, row.lr * FACTOR**i) for i in (-1, 0, 1)}
        for _ in range(EXTEND):
            lr = max(tried, key=lambda lr: tried[lr])
            if lr == max(tried):
                lr *= FACTOR
            elif lr == min(tried):
                lr /= FACTOR
            else:
                break
            tried[lr] = self.score(row, lr)
        lr = max(tried, key=lambda lr: tried[lr])
        return lr, lr in (min(tried), max(tried))

    def score(self, row: Row, lr: float) -> float:
        """What chooses the learning rate."""
        found = self.run(row, lr, SWEEP_SEED)["MRR"]
        return -math.inf if found is None else found

    def results(self, row: Row) -> dict[str, Any]:
        """All of a row."""
        lr, edge = self.best(row if row.rate_of is None else next(other for other in ROWS if other.key == row.rate_of))
        first = self.run(row, lr, SEEDS[0])
        memory = self.memory(row)
        return {"lr": lr, "edge": edge, "runs": [first, *(self.run(row, lr, seed) for seed in SEEDS[1:])], **memory}


def take_step(model: nn.Module, task: Task, optimizer: torch.optim.Optimizer, settings: Settings, step: int) -> float:
    """One step, as `steepest finetune` takes it; its loss."""
    loss = task.loss(model, batch(step, len(task.train), settings.batch_size, settings.seed)) + penalty(model)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    value = loss.item()
    if math.isfinite(value):
        try:
            optimizer.step()
        except ValueError:  # a gradient that is not finite
            return math.nan
    return value


# The page. ------------------------------------------------------------------------------------------------------------


def mean(found: dict[str, Any], key: str) -> float:
    """Over the seeds."""
    return statistics.fmean(run[key] for run in found["runs"])


def differences(one: dict[str, Any], two: dict[str, Any], key: str) -> list[float]:
    """Of two rows, seed by seed."""
    return [a[key] - b[key] for a, b in zip(one["runs"], two["runs"], strict=True)]


def interval(values: list[float], digits: int = 3) -> str:
    """Mean and Student's interval."""
    low, high = student_interval(values) or (math.nan, math.nan)
    return f"{statistics.fmean(values):+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f})"


def verdict(values: list[float]) -> str:
    """Whether the first of two is better, as is claimed of it, by these differences of scores."""
    low, high = student_interval(values) or (-math.inf, math.inf)
    word = "reproduced" if statistics.fmean(values) > 0 else "refuted"
    return word if low > 0 or high < 0 else f"{word}, but within noise"


def diverged(found: dict[str, Any]) -> bool:
    return any(run["MRR"] is None for run in found["runs"])


def page(results: dict[str, dict[str, Any]], frozen: dict[str, Any]) -> str:
    """The whole page."""
    budget = results["lora"]["runs"][0]["trained"]
    seeds = f"{len(SEEDS)} other seeds are reported; the range of a mean is Student's 95% interval, wide for so few."
    parts = [
        "# Adapters\n",
        f"Written by `python benchmarks/adapters.py`. torch {torch.__version__}, {versions(())['machine']}, one thread "
        "of a machine that did other work besides.\n",
        f"The task of `steepest finetune` with its encoder, made smaller: {COMMON['steps']} steps of "
        f"{COMMON['batch_size']} pairs, texts of at most {COMMON['max_tokens']} tokens, {frozen['test']} held-out "
        f"rows, adapters on all linear layers. Learning rate: the best of a grid with factor {FACTOR:g} by the score "
        f"of one seed. {seeds} Adam everywhere, on the adapter's own geometry where it has one. So short a training "
        "says how fast an adapter begins, and not where it ends.\n",
        "![Scores of all adapters, and of LOFT's supports](adapters.png)\n",
        f"## At about {budget:,} trained parameters\n",
        table(results, budget),
        "",
        "MRR: mean reciprocal rank on held-out modules, ± standard deviation over seeds; the frozen encoder has "
        f"{frozen['MRR']:.3f}. Loss: mean of the last {WINDOW} steps, penalties included. Step: median, CPU time. "
        "Peak: most bytes of tensors alive at once in a step, beyond the model with its adapter: what is saved for the "
        "backward pass, gradients, optimiser's state. Kept: what the adapter's tensors add to the model, trained and "
        "frozen. Moved: median over the layers of |W' - W| / |W| at the end. Drift: the largest change of a singular "
        "value, relative to a layer's largest, for adapters that should leave them as they are. (edge): the best "
        "learning rate was the last one tried; PEFT's HRA has that of the one here, the same function of the same "
        f"numbers, as its steps take long. *: more than {NEAR:.0%} from the budget, as near as options come.\n",
        notes(results),
        "",
        "## Which support?\n",
        "Zhao et al. 2026 (2605.11872) hold that a rotation should act in a support that the task's gradient chooses, "
        "and find it to do better there than among the leading singular vectors of W. A support drawn at random is the "
        "control. MRR of the first minus that of the second at equal r, seed by seed; the verdict is on the pairs of "
        "all widths together.\n",
        supports(results),
        "",
    ]
    return filled("\n".join(parts))


def table(results: dict[str, dict[str, Any]], budget: int) -> str:
    """A line for each row that has been run, the best first."""
    lines = [
        "| | from | trained | lr | MRR | minus LoRA | loss | step, ms | peak, MiB | kept, MiB | moved | drift |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    base = results["lora"]
    plain = base["stored"] - 4 * base["runs"][0]["trained"] / 2**20  # the model alone: LoRA has nothing frozen
    there = [row for row in ROWS if row.key in results]
    for row in sorted(there, key=lambda row: -score(results[row.key])):
        found, first = results[row.key], results[row.key]["runs"][0]
        mark = "" if abs(first["trained"] / budget - 1) <= NEAR else " *"
        head = f"| {row.label} | {'PEFT' if row.peft else 'here'} | {first['trained']:,}{mark} | "
        head += f"{found['lr']:.3g}{' (edge)' if found['edge'] else ''} | "
        if diverged(found):
            lines.append(head + "diverged | | | | | | | |")
            continue
        scores = [run["MRR"] for run in found["runs"]]
        gap = "" if row.key == "lora" else interval(differences(found, base, "MRR"))
        drift = "" if first["drift"] is None else f"{first['drift']:.1e}"
        cells = (
            f"{statistics.fmean(scores):.3f} ± {statistics.stdev(scores):.3f}",
            gap,
            f"{mean(found, 'loss'):.3f}",
            f"{mean(found, 'step_ms'):.0f}",
            f"{found['peak']:.0f}",
            f"{found['stored'] - plain:.1f}",
            f"{first['change']:.2%}",
            drift,
        )
        lines.append(head + " | ".join(cells) + " |")
    return "\n".join(lines)


def score(found: dict[str, Any]) -> float:
    return -math.inf if diverged(found) else mean(found, "MRR")


def notes(results: dict[str, dict[str, Any]]) -> str:
    """What the table says, in words."""
    base, found = results["lora"], []
    better, worse = [], []
    for row in ROWS[1:]:
        if row.key in results and not diverged(results[row.key]):
            low, high = student_interval(differences(results[row.key], base, "MRR")) or (-1.0, 1.0)
            better += [row.label + (" (PEFT)" if row.peft else "")] if low > 0 else []
            worse += [row.label + (" (PEFT)" if row.peft else "")] if high < 0 else []
    number = sum(row.key in results for row in ROWS[1:])
    found.append(
        f"Above LoRA by more than the seeds explain, of {number} comparisons that are not corrected for their number: "
        f"{', '.join(better) or 'none'}."
    )
    found.append(f"Below it: {', '.join(worse) or 'none'}.")
    return " ".join(found)


def supports(results: dict[str, dict[str, Any]]) -> str:
    """The claims at each width, and over all widths."""
    rows = ["| support | r | trained | lr | MRR | loss |", "|---|--:|--:|--:|--:|--:|"]
    widths = [r for r in WIDTHS if all(ready(results, s, r) for s in SUPPORTS)]
    for r in widths:
        for s in SUPPORTS:
            found = results[f"loft-{s}-{r}"]
            edge = " (edge)" if found["edge"] else ""
            cells = f"{found['runs'][0]['trained']:,} | {found['lr']:.3g}{edge}"
            rows.append(f"| {s} | {r} | {cells} | {mean(found, 'MRR'):.3f} | {mean(found, 'loss'):.3f} |")
    rows += [
        "",
        "| MRR | " + " | ".join(f"r = {r}" for r in widths) + " | all widths | |",
        "|---|" + "--:|" * (len(widths) + 1) + "---|",
    ]
    for one, two, claimed in CLAIMS:
        gaps = [differences(results[f"loft-{one}-{r}"], results[f"loft-{two}-{r}"], "MRR") for r in widths]
        together = [gap for each in gaps for gap in each]
        if together:
            cells = " | ".join(interval(values) for values in (*gaps, together))
            rows.append(f"| {one} minus {two} | {cells} | {verdict(together) if claimed else 'no claim'} |")
    return "\n".join(rows)


def ready(results: dict[str, dict[str, Any]], support: str, r: int) -> bool:
    found = results.get(f"loft-{support}-{r}")
    return found is not None and not diverged(found)


def filled(text: str) -> str:
    """With even lines in paragraphs."""
    lines = (x if x[:1] in "#|!-" else textwrap.fill(x, 120, break_on_hyphens=False) for x in text.strip().split("\n"))
    return "\n".join(lines) + "\n"


HERE, THERE = "#0072B2", "#9a9a9a"
MARKS = dict(zip(SUPPORTS, (("#0072B2", "o"), ("#D55E00", "s"), ("#9a9a9a", "^")), strict=True))


def draw(results: dict[str, dict[str, Any]], frozen: dict[str, Any]) -> bytes:
    """Left the scores of all seeds, with their means as bars; right those of the supports."""
    there = sorted(
        (r for r in ROWS if r.key in results and not diverged(results[r.key])), key=lambda r: score(results[r.key])
    )
    with picture((10, 5.6)) as (figure, buffer):
        left, right = figure.subplots(1, 2, width_ratios=(1.7, 1))
        for y, row in enumerate(there):
            scores = [run["MRR"] for run in results[row.key]["runs"]]
            color = THERE if row.peft else HERE
            left.plot(scores, [y] * len(scores), "o", color=color, markersize=4, alpha=0.6)
            left.plot([statistics.fmean(scores)] * 2, [y - 0.35, y + 0.35], color=color, lw=2.5)
        left.axvline(frozen["MRR"], color="#222222", lw=1, ls=(0, (4, 2)))
        left.text(frozen["MRR"], -1.05, " frozen", fontsize=8, color="#222222", va="center")
        left.set_yticks(range(len(there)), [row.label + (" (PEFT)" if row.peft else "") for row in there])
        left.set_ylim(-1.5, len(there) - 0.4)
        left.set(title="MRR on held-out modules; bar: mean of the seeds")
        widths = [r for r in WIDTHS if all(ready(results, s, r) for s in SUPPORTS)]
        for i, (name, (color, mark)) in enumerate(MARKS.items()):
            for j, r in enumerate(widths):
                scores = [run["MRR"] for run in results[f"loft-{name}-{r}"]["runs"]]
                x = j + 0.2 * (i - 1)
                right.plot(
                    [x] * len(scores),
                    scores,
                    mark,
                    color=color,
                    markersize=5,
                    alpha=0.6,
                    label=name if j == 0 else None,
                )
                right.plot([x - 0.08, x + 0.08], [statistics.fmean(scores)] * 2, color=color, lw=2.5)
        right.axhline(frozen["MRR"], color="#222222", lw=1, ls=(0, (4, 2)))
        right.set_xticks(range(len(widths)), [f"r = {r}" for r in widths])
        right.set_xlim(-0.5, len(widths) - 0.5)
        right.set(title="LOFT's supports")
        right.legend(loc="best", fontsize=8)
    return buffer.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("runs/adapters"), help="folder of the runs")
    parser.add_argument("--only", help="rows whose names begin so, with commas; no page")
    parser.add_argument("--page", action="store_true", help="the page from the rows that are complete; no runs")
    args = parser.parse_args()
    torch.set_num_threads(1)
    bench = Bench(args.output, missing=not args.page)
    begins = tuple(args.only.split(",")) if args.only else ("",)
    results = {}
    for row in everything():
        if row.key.startswith(begins):
            try:
                results[row.key] = bench.results(row)
            except Missing as run:
                print(f"{row.key}: left out, as {run} is missing")
    if not args.only:
        frozen = Bench(args.output).frozen()  # a matter of seconds
        files.write_text(PAGE, page(results, frozen))
        PAGE.with_suffix(".png").write_bytes(draw(results, frozen))


if __name__ == "__main__":
    main()
