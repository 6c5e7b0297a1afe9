"""All optimisers on one small language model; our Muon beside other libraries'; with and without orthogonal weights.

    python benchmarks/comparison.py                        # hours; writes docs/comparison.md and its pictures
    python benchmarks/comparison.py --runs A B             # the first part from two folders of `steepest compare`

Finished runs are kept in --output, and found there when it is started again.
"""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
import re
import statistics
import sys
import textwrap
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import steps
from torch import nn

from steepest import AdamW, Composed, Muon, param_groups
from steepest.compare import figures, report
from steepest.compare.job import Job, compare, load_text
from steepest.compare.progress import Progress
from steepest.compare.results import against
from steepest.compare.settings import Settings
from steepest.norms import Spectral
from steepest.optim.listing import MATRICES
from steepest.runs import files
from steepest.runs.pictures import picture
from steepest.runs.settings import SETTINGS
from steepest.runs.versions import versions
from steepest.transforms import Dualize, LionMomentum, ShapeScale

PAGE = Path(__file__).parent.parent / "docs" / "comparison.md"
COMMON: dict[str, Any] = {"threads": 1}
SIZES: tuple[dict[str, Any], ...] = ({"width": 64, "seeds": 3}, {"width": 128, "seeds": 2})
MUONS: dict[str, Any] = {"width": 64, "seeds": 5, "lrs": 5, "lr_factor": 3**0.5}
GEOMETRY: dict[str, Any] = {"width": 64, "seeds": 3, "geometry": "both", "optimizers": "adamw,muon,sgd,shampoo"}
MUON_LR = 0.02
"""The middle of every Muon's sweep: all have Jordan's length of a step, so that a rate means the same to all."""
MOMENTUMS = (0.95, 0.8)
"""The one that all have by default, but heavyball (0.9), and one for as few steps as are made here."""
OURS, OURS_LOOKING_LESS_FAR = "steepest", "steepest, g + m"
DISTRIBUTIONS = ("torch", "muon-optimizer", "heavyball", "pytorch_optimizer")
WORDS = {"lower": "lower than ours", "higher": "higher than ours", "equal": "within noise", "": ""}
LEADS = {
    "higher": "ours ends lower than",
    "equal": "not told apart by these seeds are",
    "lower": "ours ends higher than",
}

# Our Muon and others'. ------------------------------------------------------------------------------------------------

MakeMuon = Callable[[list[nn.Parameter], float], Any]
"""From matrices and a momentum."""


@dataclasses.dataclass(frozen=True)
class Contender:
    """A Muon, as `Job.method` wants it: it has the matrices, and our AdamW has the rest."""

    label: str
    make: MakeMuon
    momentum: float = MOMENTUMS[0]
    geometry: str = "none"
    default_lr: float = MUON_LR

    @property
    def name(self) -> str:
        return self.label if self.momentum == MOMENTUMS[0] else f"{self.label}, {self.momentum:g}"

    @property
    def key(self) -> str:
        return re.sub(r"[^a-z0-9.]+", "-", self.name.lower())

    @property
    def optimizer(self) -> str:
        return self.key

    def build(self, model: nn.Module, lr: float, settings: Settings) -> list[Any]:
        groups = param_groups(model)
        muon = self.make([p for g in groups if g["role"] in MATRICES for p in g["params"]], self.momentum)
        for group in muon.param_groups:
            group["lr"] = lr
        rest = [group for group in groups if group["role"] not in MATRICES]
        return [muon, AdamW(rest, lr=settings.adamw_lr, betas=(0.9, 0.95))]


def ours(schedule: str = "polar_express") -> MakeMuon:
    return lambda matrices, momentum: Muon(matrices, momentum=momentum, norm=Spectral(schedule))


def ours_looking_less_far(matrices: list[nn.Parameter], momentum: float) -> Any:
    """heavyball's sum of gradient and average, g + b m + (1 - b) g, up to a factor that does not matter."""
    short = LionMomentum((momentum / 2, momentum))
    return Composed(matrices, [short, Dualize(Spectral()), ShapeScale("keller_jordan")], lr=MUON_LR)


def theirs(table: Callable[[], steps.Table], name: str) -> MakeMuon:
    """A Muon of the benchmark of steps."""

    def make(matrices: list[nn.Parameter], momentum: float) -> Any:
        (muon,) = table()["Muon"][name](SimpleNamespace(matrices=matrices, others=[]), 1)
        muon = Transparent(**vars(muon)) if isinstance(muon, steps.Replaced) else muon
        for group in muon.param_groups:
            group.update({"betas": (momentum, momentum)} if "betas" in group else {"momentum": momentum})
        return muon

    return make


class Transparent(steps.Replaced):
    """With all else of the optimiser that it holds."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.optimizer, name)


def heavyball_as_jordan(matrices: list[nn.Parameter], momentum: float) -> Any:
    """In float32, with its option for the momentum of all others."""
    import heavyball

    steps.heavyball_in_float32()
    betas = (momentum, momentum)
    return heavyball.Muon(matrices, lr=MUON_LR, betas=betas, heavyball_momentum=True, consume_grad=False)


TORCH = theirs(steps.torch_itself, "torch Muon, float32")
HEAVYBALL = theirs(steps.heavyball_in_float32, "heavyball Muon, float32")
LABELS: dict[str, MakeMuon] = {
    OURS: ours(),
    "steepest, keller_jordan": ours("keller_jordan"),
    "steepest, quintic": ours("quintic"),
    OURS_LOOKING_LESS_FAR: ours_looking_less_far,
    "torch.optim": TORCH,
    "muon-optimizer": theirs(steps.muon_optimizer, "muon-optimizer Muon, float32"),
    "pytorch_optimizer": theirs(steps.pytorch_optimizer, "pytorch_optimizer Muon, float32"),
    "heavyball": HEAVYBALL,
    "heavyball, heavyball_momentum": heavyball_as_jordan,
}
SHORTER = {OURS: ours(), OURS_LOOKING_LESS_FAR: ours_looking_less_far, "torch.optim": TORCH, "heavyball": HEAVYBALL}
"""With the second momentum as well."""
CONTENDERS = {
    c.key: c
    for c in (
        *(Contender(label, make) for label, make in LABELS.items()),
        *(Contender(label, make, MOMENTUMS[1]) for label, make in SHORTER.items()),
    )
}


def muons(output: Path, chosen: list[str]) -> dict[str, Any]:
    """The results of all, best first; each runs in a process of its own, as some change or compile what others use."""
    settings = Settings.of(output, COMMON | MUONS, resume=(output / SETTINGS).is_file())
    files.write_json(output / SETTINGS, settings.to_json())
    for key in chosen:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as alone:
            alone.submit(fill, key, settings, output).result()
    results = job(settings, output).run([CONTENDERS[key] for key in chosen], {})
    return results | {"peers": versions(DISTRIBUTIONS)}


def fill(key: str, settings: Settings, output: Path) -> None:
    """Do what is missing of one contender's runs."""
    with Progress(settings.lrs + settings.seeds - 1, settings.steps, say) as progress:
        job(settings, output).method(CONTENDERS[key], progress)


def job(settings: Settings, output: Path) -> Job:
    """Of the contenders; their names stand where those of optimisers would."""
    import torch

    torch.set_num_threads(settings.threads)
    settings = dataclasses.replace(settings, optimizers=list(CONTENDERS))
    return Job(settings, output, load_text(settings, output, resume=False), say)


def say(line: str) -> None:
    print(line, flush=True)


def finished(output: Path, given: dict[str, Any]) -> dict[str, Any]:
    """The results of a `steepest compare` in this folder, which is done where it is not there."""
    path = output / "results.json"
    resume = (output / SETTINGS).is_file()
    return files.read_json(path) if path.is_file() else compare(COMMON | given, output, resume=resume, say=say)


# The page. ------------------------------------------------------------------------------------------------------------

HEAD = """# Optimisers compared

Written by `python benchmarks/comparison.py`. A transformer (RMSNorm, rotary positions, squared ReLU, untied head;
{model}) learns the next character of Python's standard library, {train:,} characters of it; the last twentieth are
held out, and the loss is the mean over {evaluated:,} characters of these, in nats per character, at the end of
training. A run takes {tokens:,} characters in {steps} steps of {batch} x {context}, warmup over {warmup:.0%}, then
{schedule} to zero, no weight decay. These are small models after short training: the order of methods may be another
at a size of interest.

**Learning rates.** Every method tries three rates, a factor {factor:g} apart around its default, and more while the
best lies at the edge; the best on the first seed is used on all. "(edge)" says that none was tried beyond it.
Embedding, head and norms go to AdamW at lr {adamw_lr:g}, betas (0.9, 0.95), in every run, unless a method has rules
of its own for them (SGD, Adam and other methods for any tensor have the matrices only).

**Options.** All others are the methods' defaults, and some of these are meant for longer training: with momentum
{short:g} in place of {long:g}, Muon alone ends {gain:.2f} lower at width {muon_width} (see below), more than lies
between most neighbours in the tables.

**Chance.** A seed sets the start of the model and the order of the data, the same for all methods. ± is the standard
deviation over seeds. Differences are taken seed by seed, with Student's 95% interval of their mean: one that holds 0
is called within noise. Twenty such intervals miss about one truth; the first in a table owes something to luck; and
with two seeds an interval reaches nine standard deviations to either side, so that "within noise" there says little.

Python {python}, torch {torch}, {machine}; one thread. {times}
"""
BUSY = (
    "**Times are from a machine that did other work besides**, and are off by a factor of two and more: good for "
    "telling dear methods from cheap ones only. [speed.md](speed.md) has times that were taken with care."
)
IDLE = "Times are medians of wall-clock time; [speed.md](speed.md) has times that were taken with more care."

MUON = """## Our Muon beside others

The same model, text and budget as above at width {width}, {seeds} seeds. Every Muon has the matrices, a momentum of
{long:g} or {short:g}, Nesterov's look ahead, Jordan's length of a step sqrt(max(1, out / in)), and a sweep of its
own: {lrs} rates a factor {factor:.3g} apart around {lr:g}, more while the best lies at the edge. Our AdamW has the
rest. They differ in their polynomials: torch.optim ({torch}), muon-optimizer ({jordan}) and pytorch_optimizer
({pytorch_optimizer}) take Jordan's, heavyball ({heavyball}) five quintic ones, ours four of Polar Express by default.
And heavyball looks less far back, along g + m in place of (1 - b) g + b m, unless `heavyball_momentum=True`;
*steepest, g + m* is a chain of ours that does the same. All multiply in float32, with the cast to bfloat16 taken out
of the others, as this processor is slow at it: as shipped a whole step of training takes two to three times as long.
Momentum {short:g} was chosen after a look at 0.8 and 0.9 on the first seed. The sweep is finer than above because a
factor of three was not enough: by it, ours ended lower than torch.optim's by more than the seeds explain, only as
that grid has a better rate for the one polynomial than for the other.

**In short**, like beside like, of one momentum and one look ahead, other minus ours: {short_of_it} In the tables all
stand beside our default, so that heavyball's look ahead shows.
"""

GEOMETRIES = """## With orthogonal projections and unit embeddings

`--geometry both` at width {width}, {seeds} seeds: each optimiser on the plain model, and on the model whose attention
projections (q, k, v, o) are points of `Stiefel` and whose embeddings have length one (`Oblique`), each way with a
sweep of its own. As points of a manifold the embeddings are the method's own; without, AdamW has them, so that a
difference is that of the geometry and of this together; and points and plain matrices share one learning rate, which
is better suited to one of them. **condition**: largest over smallest singular value of a projection at the end,
median over projections. **activations**: root mean square of the stream after the last block. **off**: the largest
distance from the manifold.
"""


def page(sizes: list[dict[str, Any]], peers: dict[str, Any], geometry: dict[str, Any], busy: bool) -> str:
    """The whole page."""
    s, text, muon = sizes[0]["settings"], sizes[0]["text"], by_key(peers)
    model = " and ".join(
        f"width {r['settings']['width']} with {r['settings']['layers']} layers, {r['text']['parameters']:,} parameters"
        for r in sizes
    )
    head = HEAD.format(
        model=model,
        train=text["train"],
        evaluated=text["evaluated"],
        tokens=sizes[0]["tokens_per_run"],
        steps=sizes[0]["tokens_per_run"] // (s["batch_size"] * s["context"]),
        batch=s["batch_size"],
        times=BUSY if busy else IDLE,
        factor=s["lr_factor"],
        long=MOMENTUMS[0],
        short=MOMENTUMS[1],
        gain=muon[OURS]["summary"]["loss"] - muon[f"{OURS}-{MOMENTUMS[1]:g}"]["summary"]["loss"],
        muon_width=peers["settings"]["width"],
        **{key: s[key] for key in ("context", "warmup", "schedule", "adamw_lr")},
        **{key: sizes[0]["versions"][key] for key in ("python", "torch", "machine")},
    )
    parts = [head, "## All optimisers of the library\n", "![Held-out loss by optimiser](comparison.png)\n"]
    for results in sizes:
        t = results["settings"]
        parts.append(
            f"### Width {t['width']}, {t['seeds']} seeds\n\n{report.summary(results)} {report.noise(results)}\n\n"
            f"`steepest compare --width {t['width']} --seeds {t['seeds']} --threads {t['threads']}`\n"
        )
        parts.append(report.markdown(results) + "\n")
        parts += [f"Left out: {name} ({why}).\n" for name, why in results["left_out"].items()]
        if absent := sorted(by_key(sizes[0]).keys() - by_key(results).keys()):
            parts.append(f"Not measured at this size: {', '.join(absent)}.\n")
    parts.append(f"Loss on the way, width {s['width']}:\n\n![Held-out loss against tokens](comparison-tokens.png)\n")
    return filled("\n".join([*parts, muon_part(peers), geometry_part(geometry)]))


def filled(text: str) -> str:
    """With even lines in paragraphs."""
    parts = text.strip().split("\n\n")
    even = [p if p[:1] in "#|!" else textwrap.fill(p, 120, break_on_hyphens=False) for p in parts]
    return "\n\n".join(even) + "\n"


def muon_part(results: dict[str, Any]) -> str:
    """Our Muon and others': what comes out, tables, a picture."""
    s, v = results["settings"], results["peers"]
    names = {"jordan": "muon-optimizer"} | {key: key for key in ("torch", "heavyball", "pytorch_optimizer")}
    long, short = MOMENTUMS
    head = MUON.format(
        long=long,
        short=short,
        lr=MUON_LR,
        factor=s["lr_factor"],
        short_of_it=in_short(results),
        **{key: s[key] for key in ("width", "seeds", "lrs")},
        **{key: v[name] for key, name in names.items()},
    )
    parts = [head]
    for momentum in MOMENTUMS:
        methods = [m for m in results["methods"] if CONTENDERS[m["key"]].momentum == momentum]
        parts += [f"### Momentum {momentum:g}\n", *muon_table(methods), ""]
    return "\n".join([*parts, "![Muons beside ours](comparison-muon.png)\n"])


def in_short(results: dict[str, Any]) -> str:
    """How others end beside ours of the same momentum and look ahead, in sentences."""
    methods, found = by_key(results), {}
    for method in results["methods"]:
        contender = CONTENDERS[method["key"]]
        if contender.label.startswith(OURS):
            continue
        rival = OURS_LOOKING_LESS_FAR if contender.make is HEAVYBALL else OURS
        ours = next(c for c in CONTENDERS.values() if c.label == rival and c.momentum == contender.momentum)
        difference, kind = beside(method, methods[ours.key])
        found.setdefault(kind, []).append(f"{method['name']} {difference}")
    said = [f"{lead} {'; '.join(found[kind])}." for kind, lead in LEADS.items() if kind in found]
    return " ".join(said)


def muon_table(methods: list[dict[str, Any]]) -> list[str]:
    """Those of one momentum."""
    (first,) = (m for m in methods if CONTENDERS[m["key"]].label == OURS)
    rows = ["| Muon of | lr | held-out loss | minus ours | | step, ms |", "|---|--:|--:|--:|---|--:|"]
    for method in methods:
        label, (difference, kind) = CONTENDERS[method["key"]].label, beside(method, first)
        ms = f"{method['summary']['timing']['step_ms']:.1f}"
        rows.append(f"| {label} | {rate(method)} | {loss(method)} | {difference} | {WORDS[kind]} | {ms} |")
    return rows


def beside(method: dict[str, Any], first: dict[str, Any]) -> tuple[str, str]:
    """The difference of two methods in words, and which is lower, if any."""
    if method is first:
        return "", ""
    found = against(method, first)
    if found["interval"] is None:
        return "", ""
    low, high = found["interval"]
    kind = "higher" if low > 0 else "lower" if high < 0 else "equal"
    return f"{found['difference']:+.4f} ({low:+.4f} to {high:+.4f})", kind


def geometry_part(results: dict[str, Any]) -> str:
    """Each optimiser without and with the geometry."""
    s, methods = results["settings"], by_key(results)
    rows = [
        "| | | lr | held-out loss | with minus without | condition | activations | off | step, ms |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for key in s["optimizers"]:
        for suffix, name in (("", "without"), ("-orthogonal", "with")):
            method = methods[key + suffix]
            m = method["summary"]
            words = beside(method, methods[key])[0]
            numbers = " | | " if m["loss"] is None else f"{m['condition']:.3g} | {m['activation_rms']:.3g} | "
            off = f"{m['residual']:.0e}" if suffix and m["residual"] is not None else ""
            label = "" if suffix else method["name"]
            rows.append(
                f"| {label} | {name} | {rate(method)} | {loss(method)} | {words} | {numbers}{off} "
                f"| {m['timing']['step_ms']:.1f} |"
            )
    pairs = [pair for pair in report.pairs(results) if pair["plain"]]
    low, high = (f(pair["difference"] for pair in pairs) for f in (min, max))
    least, greatest = (f(pair["plain"]["condition"] for pair in pairs) for f in (min, max))
    said = (
        f"With the constraints the loss changes by {low:+.2f} to {high:+.2f}, and the condition, {least:.0f} to "
        f"{greatest:.0f} without them, is one."
    )
    return "\n".join([GEOMETRIES.format(width=s["width"], seeds=s["seeds"]), f"{said}\n", *rows, ""])


def by_key(results: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {method["key"]: method for method in results["methods"]}


def rate(method: dict[str, Any]) -> str:
    return f"{method['lr']:.3g}{' (edge)' if method['at_edge'] else ''}"


def loss(method: dict[str, Any]) -> str:
    s = method["summary"]
    return "diverged" if s["loss"] is None else f"{s['loss']:.4f}" + (f" ± {s['sd']:.4f}" if s["sd"] else "")


# Pictures. ------------------------------------------------------------------------------------------------------------


def draw(sizes: list[dict[str, Any]], peers: dict[str, Any]) -> dict[str, bytes]:
    """By the names of their files."""
    colors = {name: figures.COLORS[i] for i, name in enumerate(sizes[0]["settings"]["optimizers"])}
    done = [m for m in sizes[0]["methods"] if m["summary"]["loss"] is not None]
    return {
        "comparison": losses(sizes, colors),
        "comparison-tokens": figures.curves(done, colors, against_time=False),
        "comparison-muon": beside_ours(peers),
    }


def losses(sizes: list[dict[str, Any]], colors: dict[str, str]) -> bytes:
    """A panel for each size: dots for seeds, a bar at their mean, in the order of the first size."""
    order = [m["optimizer"] for m in sizes[0]["methods"]]
    names = {m["optimizer"]: m["name"] for m in sizes[0]["methods"]}
    with picture((10, 1.1 + 0.25 * len(order))) as (figure, buffer):
        panels = figure.subplots(1, len(sizes), sharey=True)
        for axes, results in zip(panels, sizes, strict=True):
            methods = by_key(results)
            found = [m for m in methods.values() if m["summary"]["loss"] is not None]
            _, top = figures.window(found)
            low = min(m["summary"]["least"] for m in found)
            width = top - low
            for row, name in enumerate(order):
                if name not in methods:
                    continue
                mean = methods[name]["summary"]["loss"]
                if mean is None or mean > top:
                    text = "diverged" if mean is None else f"{mean:.3f} →"
                    axes.text(top, row, text, color=colors[name], ha="right", va="center", fontsize=9)
                    continue
                values = [run["loss"] for run in methods[name]["runs"] if run["loss"] is not None]
                axes.plot(values, [row] * len(values), "o", color=colors[name], ms=5, alpha=0.55, mew=0)
                axes.plot([mean], [row], "|", color=colors[name], ms=13, mew=2)
                axes.text(max(values) + 0.02 * width, row, f"{mean:.3f}", va="center", fontsize=8.5, color="#222222")
            s = results["settings"]
            axes.set(title=f"Width {s['width']}, {results['text']['parameters']:,} parameters, {s['seeds']} seeds")
            axes.set(xlim=(low - 0.04 * width, top + 0.16 * width), ylim=(len(order) - 0.4, -0.6))
        panels[0].set_yticks(range(len(order)), [names[name] for name in order])
        figure.supxlabel("held-out loss, nats per character; less is better", fontsize=9.5, color="#333333")
    return buffer.getvalue()


def beside_ours(results: dict[str, Any]) -> bytes:
    """Left the losses of each minus ours, seed by seed; right the loss against the learning rate."""
    methods, first = results["methods"], by_key(results)[OURS]
    mine = {run["seed"]: run["loss"] for run in first["runs"]}
    colors = {key: figures.COLORS[i] for i, key in enumerate(CONTENDERS)}
    with picture((10, 4.4)) as (figure, buffer):
        left, right = figure.subplots(1, 2, width_ratios=[1.15, 1])
        for row, method in enumerate(methods):
            color = colors[method["key"]]
            changes = [run["loss"] - mine[run["seed"]] for run in method["runs"] if run["loss"] is not None]
            interval = against(method, first)["interval"]
            if method is not first and interval:
                left.plot(interval, [row, row], color=color, lw=1.5)
            left.plot(changes, [row] * len(changes), "o", color=color, ms=4.5, alpha=0.55, mew=0)
            left.plot([statistics.fmean(changes)], [row], "|", color=color, ms=12, mew=2)
            shown = [(p["lr"], p["loss"]) for p in method["sweep"] if p["loss"] is not None]
            dash = "-" if method["key"].startswith(OURS) else "--"
            right.plot(*zip(*shown, strict=True), ls=dash, marker="o", ms=3, color=color, lw=1.2)
        left.axvline(0, color="#888888", lw=0.8)
        left.set_yticks(range(len(methods)), [m["name"] for m in methods])
        for label, method in zip(left.get_yticklabels(), methods, strict=True):
            label.set_color(colors[method["key"]])
        left.set(ylim=(len(methods) - 0.5, -0.5), title="Held-out loss minus that of our default")
        left.locator_params(axis="x", nbins=6)
        left.set_xlabel("nats per character; dots: seeds; line: 95% interval")
        rates = sorted({p["lr"] for m in methods for p in m["sweep"]})
        right.set(
            xscale="log", title="Against the learning rate, first seed", xlabel="learning rate, in the same colours"
        )
        right.set_xticks(rates, [f"{rate:g}" for rate in rates], fontsize=8)
        right.minorticks_off()
    return buffer.getvalue()


def main(given: Iterable[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=Path, nargs=len(SIZES), metavar="DIR", help="folders of `steepest compare`")
    parser.add_argument("--output", type=Path, default=Path("runs/comparison"), help="folder of all other runs")
    parser.add_argument("--only", choices=("sizes", "muons", "geometry"), help="measure this part; write no page")
    parser.add_argument("--muons", nargs="+", choices=list(CONTENDERS), default=list(CONTENDERS), metavar="KEY")
    parser.add_argument("--busy", action="store_true", help="say on the page that the machine was not idle")
    o = parser.parse_args(None if given is None else list(given))
    folders = o.runs or [o.output / f"width-{size['width']}" for size in SIZES]
    parts: dict[str, Callable[[], Any]] = {
        "sizes": lambda: [finished(folder, size) for folder, size in zip(folders, SIZES, strict=True)],
        "muons": lambda: muons(o.output / "muons", o.muons),
        "geometry": lambda: finished(o.output / "geometry", GEOMETRY),
    }
    if o.only:
        parts[o.only]()
        sys.exit()
    sizes, peers, geometry = (part() for part in parts.values())
    files.write_pictures(PAGE.parent, draw(sizes, peers))
    files.write_text(PAGE, page(sizes, peers, geometry, o.busy))


if __name__ == "__main__":
    main()
