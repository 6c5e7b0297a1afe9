"""Low-rank gradient methods: losses, memory and time, for docs/low_rank.md.

    python benchmarks/low_rank.py                  # an hour and a half; writes docs/low_rank.md and its pictures
    python benchmarks/low_rank.py --part state     # only one part, printed: losses, state, time, peak

Finished runs and parts are kept in --output, and found there when it is started again.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import textwrap
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from parameters import parameters
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

import steepest
from steepest import param_groups, step_in_backward
from steepest.compare.figures import COLORS
from steepest.compare.job import Job, load_text
from steepest.compare.methods import methods
from steepest.compare.progress import Progress
from steepest.compare.results import against
from steepest.compare.settings import Settings
from steepest.projectors import Correlated, Cosine, Gaussian, Power, Principal
from steepest.runs import files
from steepest.runs.pictures import legend_below, picture
from steepest.runs.settings import SETTINGS
from steepest.transforms import AdamScale, Quantized

PAGE = Path(__file__).parent.parent / "docs" / "low_rank.md"
NAMES = (
    "galore",
    "galoreplus",
    "fira",
    "apollo",
    "flora",
    "coap",
    "onlinesubspacedescent",
    "trion",
    "dctadamw",
    "dion",
)
RANKS = (0.25, 0.125)
FULL = ("adamw", "adafactor", "apollomini", "muon", "sgd")
COMMON: dict[str, Any] = {"width": 128, "seeds": 3, "threads": 1}


def variants() -> list[str]:
    """Everything that is trained, as `steepest compare` spells it."""
    low = [f"{name}:rank={rank}" for name in NAMES for rank in RANKS]
    return [*FULL, *low, *(f"galore:moved=rotate+rank={rank}" for rank in RANKS)]


def losses(output: Path, only: list[str]) -> dict[str, Any] | None:
    """The results of all; with `only` those runs alone are done, so that several processes may share the work."""
    if (output / "results.json").is_file():
        return files.read_json(output / "results.json")
    given = COMMON | {"optimizers": sorted(variants())}
    settings = Settings.of(output, given, resume=(output / SETTINGS).is_file())
    files.make_folder(output)
    files.write_json(output / SETTINGS, settings.to_json())
    job = Job(settings, output, load_text(settings, output, resume=False), lambda line: print(line, flush=True))
    chosen = [m for m in methods(settings) if not only or m.optimizer in only]
    if not only:
        return job.run(chosen, {})
    for method in chosen:
        with Progress(settings.lrs + settings.seeds - 1, settings.steps, job.say) as progress:
            job.method(method, progress)
    return None


# State. ---------------------------------------------------------------------------------------------------------------

Formula = Callable[[int, int, int], float]
"""Numbers of state for an m x n matrix, m >= n, at rank r."""

STATE: dict[str, tuple[str, dict[str, Any], str, Formula]] = {
    "AdamW": ("AdamW", {}, "2 m n", lambda m, n, r: 2 * m * n),
    "Muon": ("Muon", {}, "m n", lambda m, n, r: m * n),
    "Adafactor": ("Adafactor", {}, "m + n", lambda m, n, r: m + n),
    "SM3, no momentum": ("SM3", {"momentum": 0.0}, "m + n", lambda m, n, r: m + n),
    "GaLore": ("GaLore", {}, "2 r m + r n", lambda m, n, r: 2 * r * m + r * n),
    "GaLore, side long": ("GaLore", {"side": "long"}, "2 r n + r m", lambda m, n, r: 2 * r * n + r * m),
    "GaLore, 8 bits": (
        "GaLore",
        {"inner": Quantized(AdamScale(eps=1e-6))},
        "(2 r m)/4 + r n, and 1/256 of it for scales",
        lambda m, n, r: 2 * r * m * (0.25 + 1 / 256) + r * n,
    ),
    "GaLorePlus": (
        "GaLorePlus",
        {},
        "GaLore's, and 4 numbers for each of 1% of the entries",
        lambda m, n, r: 2 * r * m + r * n + 4 * round(0.01 * m * n),
    ),
    "Fira": ("Fira", {}, "2 r m + r n + 1", lambda m, n, r: 2 * r * m + r * n + 1),
    "APOLLO": ("APOLLO", {}, "2 r m + 1", lambda m, n, r: 2 * r * m + 1),
    "APOLLOMini": ("APOLLOMini", {}, "2 m + 1", lambda m, n, r: 2 * m + 1),
    "FLORA": ("FLORA", {}, "r m + m + n", lambda m, n, r: r * m + m + n),
    "COAP": ("COAP", {}, "2 r m + r n", lambda m, n, r: 2 * r * m + r * n),
    "OnlineSubspaceDescent": (
        "OnlineSubspaceDescent",
        {},
        "2 r m + 3 r n + 1",
        lambda m, n, r: 2 * r * m + 3 * r * n + 1,
    ),
    "Trion": ("Trion", {}, "m n + 2 r", lambda m, n, r: m * n + 2 * r),
    "DCTAdamW": ("DCTAdamW", {}, "2 r m + 2 r", lambda m, n, r: 2 * r * m + 2 * r),
    "DCTAdamW, feedback": (
        "DCTAdamW",
        {"feedback": True},
        "m n + 2 r m + 2 r",
        lambda m, n, r: m * n + 2 * r * m + 2 * r,
    ),
    "Dion": ("Dion", {"rank": 0.25}, "m n + r n", lambda m, n, r: m * n + r * n),
}
"""Name, class, options, and the numbers of 4 bytes that a matrix may take: the papers' counts. Whole numbers are int64,
and count as two."""


def build(name: str, model: str, **more: Any) -> tuple[Any, Any]:
    """The optimiser of a row on the matrices of a model with gradients; it does not look for NaN."""
    cls, options, _, _ = STATE[name]
    p = parameters(model)
    names = [f"matrix {i}" for i in range(len(p.matrices))]
    group = {
        "params": p.matrices,
        "param_names": names,
        "role": "matrix",
        "geometry": None,
        "matrix": None,
        "sizes": {},
    }
    return p, getattr(steepest, cls)([group], nonfinite="ignore", **options | more)


def state(model: str) -> dict[str, tuple[float, float]]:
    """Bytes for each parameter, measured after two steps, and those of the formula."""
    found = {}
    for name, (_, _, _, formula) in STATE.items():
        p, optimizer = build(name, model)
        for _ in range(2):
            optimizer.step()
        count = sum(q.numel() for q in p.matrices)
        kept = [v for s in optimizer.state.values() for k, v in s.items() if k != "step"]
        measured = sum(v.untyped_storage().nbytes() if v._base is None else v.nbytes for v in kept) / count
        allowed = sum(4 * formula(max(q.shape), min(q.shape), -(-min(q.shape) // 4)) for q in p.matrices) / count
        found[name] = measured, allowed
        print(f"{model}: {name}: {measured:.4f} bytes, formula {allowed:.4f}", flush=True)
        del p, optimizer, kept
        gc.collect()
    return found


# Time. ----------------------------------------------------------------------------------------------------------------

NEVER = {"every": 10**9, "spread": False}
MOVING: dict[str, tuple[str, Any, Any]] = {
    "GaLore, Power (default)": ("GaLore", Power(), Power(**NEVER)),
    "GaLore, Power every step": ("GaLore", Power(1), Power(**NEVER)),
    "GaLore, Principal every 50": ("GaLore", Principal(50), Principal(**NEVER)),
    "GaLore, Principal every 50, all at once": ("GaLore", Principal(50, False), Principal(**NEVER)),
    "Fira, Power (default)": ("Fira", Power(), Power(**NEVER)),
    "APOLLO, Gaussian (default)": ("APOLLO", Gaussian(), Gaussian(**NEVER)),
    "FLORA, Gaussian (default)": ("FLORA", Gaussian(1000), Gaussian(**NEVER)),
    "COAP, Correlated (default)": ("COAP", Correlated(), Correlated(**NEVER)),
    "DCTAdamW, Cosine (default, every step)": ("DCTAdamW", Cosine(), Cosine(**NEVER)),
    "DCTAdamW, Cosine every 20": ("DCTAdamW", Cosine(20), Cosine(**NEVER)),
}
"""Name, class, projector, and one of the same kind that never moves after the first step."""


def timed(model: str, period: int = 100) -> dict[str, dict[str, float]]:
    """Milliseconds of steps: without a move, the median and the worst of `period` steps with moves, all moves together
    over all steps. The two optimisers step in turn, so that both see the same machine."""
    found = {}
    for name, (row, moves, stays) in MOVING.items():
        (_, moving), (_, still) = (build(row, model, projector=p) for p in (moves, stays))
        for optimizer in (moving, still):
            for _ in range(2):
                optimizer.step()
        times = [(clock(moving), clock(still)) for _ in range(period)]
        a, b = (list(column) for column in zip(*times, strict=True))
        plain = statistics.median(b)
        found[name] = {
            "still": plain,
            "median": statistics.median(a),
            "worst": max(a),
            "worst_still": max(b),
            "mean_ratio": statistics.mean(a) / statistics.mean(b),
        }
        print(name, {k: round(v, 3) for k, v in found[name].items()}, flush=True)
    return found


def clock(optimizer: Any) -> float:
    """Milliseconds of one step."""
    start = time.perf_counter()
    optimizer.step()
    return 1e3 * (time.perf_counter() - start)


# Peak. ----------------------------------------------------------------------------------------------------------------

PEAK: dict[str, tuple[str, dict[str, Any], bool]] = {
    "AdamW": ("AdamW", {}, False),
    "AdamW, in backward": ("AdamW", {}, True),
    "GaLore": ("GaLore", {}, False),
    "GaLore, in backward": ("GaLore", {}, True),
    "GaLore, 8 bits": ("GaLore", {"inner": Quantized(AdamScale(eps=1e-6))}, False),
    "GaLore, 8 bits, in backward": ("GaLore", {"inner": Quantized(AdamScale(eps=1e-6))}, True),
    "APOLLOMini, in backward": ("APOLLOMini", {}, True),
}
LAYERS, WIDTH = 24, 1536


class Live(TorchDispatchMode):
    """Counts the bytes of tensors that are alive, but for those of a model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.bytes = self.most = 0
        self.known = {p.untyped_storage()._cdata for p in model.parameters()}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        tree_map_only(torch.Tensor, self.note, out)
        return out

    def note(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self.known:
            self.known.add(key)
            self.bytes += size
            self.most = max(self.most, self.bytes)
            weakref.finalize(storage, self.forget, key, size)

    def forget(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.bytes -= size


def peaks() -> dict[str, tuple[float, float]]:
    """Most bytes of tensors alive at once in three steps of training, without the weights, and those of the weights;
    in MiB."""
    found = {}
    for name, (cls, options, early) in PEAK.items():
        torch.manual_seed(0)
        model = nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS)))
        x = torch.randn(8, WIDTH)
        optimizer = getattr(steepest, cls)(param_groups(model), lr=1e-4, nonfinite="ignore", **options)
        if early:
            step_in_backward(optimizer)
        with Live(model) as live:
            for _ in range(3):
                model(x).square().mean().backward()
                optimizer.step()
                optimizer.zero_grad()
        found[name] = live.most / 2**20, sum(p.nbytes for p in model.parameters()) / 2**20
        print(f"{name}: {found[name][0]:.0f} MiB beyond {found[name][1]:.0f} MiB of weights", flush=True)
        del model, optimizer
        gc.collect()
    return found


# The page. ------------------------------------------------------------------------------------------------------------


def page(results: dict[str, Any], states: dict[str, Any], times: dict[str, Any], memory: dict[str, Any]) -> str:
    """The whole page."""
    by_key = {m["key"]: m for m in results["methods"]}
    adamw, s, text = by_key["adamw"], results["settings"], results["text"]
    rows = ["| | lr | held-out loss | minus AdamW | step, ms | state, bytes/param |", "|---|--:|--:|--:|--:|--:|"]
    for m in results["methods"]:
        loss = m["summary"]["loss"]
        said = "diverged" if loss is None else f"{loss:.4f} ± {m['summary']['sd']:.4f}"
        gap = "" if m is adamw or loss is None else f"{against(m, adamw)['difference']:+.4f}"
        edge = " (edge)" if m["at_edge"] else ""
        t = m["summary"]
        rows.append(
            f"| {m['name']} | {m['lr']:.3g}{edge} | {said} | {gap} | {t['timing']['step_ms']:.1f} "
            f"| {t['state_bytes_per_parameter']:.2f} |"
        )
    parts = [
        "# Low-rank gradient methods\n",
        f"Written by `python benchmarks/low_rank.py`. torch {torch.__version__}, {results['versions']['machine']}, one "
        "thread of a machine that did other work besides: losses and bytes are exact, times are not.\n",
        "## Losses\n",
        f"`steepest compare --width {s['width']} --seeds {s['seeds']} --threads 1 --optimizers ...` with rank d/4 and "
        f"d/8: a transformer of {text['parameters']:,} parameters, {results['tokens_per_run']:,} characters, learning "
        "rates swept as in [comparison.md](comparison.md), all other options the defaults. The state counts the AdamW "
        "of embedding, head and norms as well.\n",
        "![Held-out loss against state](low_rank.png)\n",
        *rows,
        "",
        "### What the papers say, and what came out here\n",
        "At rank d/4; differences seed by seed, with Student's 95% interval, wide for so few seeds. A run has "
        "256 steps where the papers have ten thousand and more: `Power` moves 13 times in it, `Correlated` 8 times, "
        "`Gaussian` once at most, and what is said of long training is not tested.\n",
        claims(by_key),
        "",
        "## State\n",
        "Bytes of state for each parameter of the matrices of two language models (`benchmarks/parameters.py`) at "
        "rank d/4, measured as the storage of the state tensors, and the count of the papers for an m x n matrix, "
        "m >= n, in numbers of 4 bytes. `step`, 4 bytes for a tensor, is left out on both sides.\n",
    ]
    models = list(states)
    parts += [
        "| | " + " | ".join(f"{m} | paper" for m in models) + " | numbers |",
        "|---|" + "--:|--:|" * len(models) + "---|",
    ]
    for name, (_, _, words, _) in STATE.items():
        cells = " | ".join(f"{states[m][name][0]:.3f} | {states[m][name][1]:.3f}" for m in models)
        parts.append(f"| {name} | {cells} | {words} |")
    parts += [
        "",
        "## What a move of the subspace costs\n",
        "Matrices of GPT 384 x 6 (36 of them), rank d/4, 100 steps of an optimiser whose subspaces move beside one "
        "whose subspaces stay, step by step in turn: median step that moves nothing; the worst of the 100 with moves "
        "over it, and the worst without moves, which is the machine's noise; all 100 steps over those without moves.\n",
        "| | step without, ms | worst with | worst without | all steps |",
        "|---|--:|--:|--:|--:|",
    ]
    for name, t in times.items():
        parts.append(
            f"| {name} | {t['still']:.1f} | {t['worst'] / t['still']:.2f}x | {t['worst_still'] / t['still']:.2f}x "
            f"| {t['mean_ratio']:.3f}x |"
        )
    weights = next(iter(memory.values()))[1]
    parts += [
        "",
        "## Peak memory\n",
        f"Three steps of training {LAYERS} matrices of {WIDTH} x {WIDTH} ({weights:.0f} MiB of weights) with few "
        "activations: most bytes of tensors alive at once (gradients, state, all that a step makes for itself), beyond "
        "the weights.\n",
        "| | beyond the weights, MiB | over the weights |",
        "|---|--:|--:|",
        *(f"| {name} | {m:.0f} | {m / w:.2f} |" for name, (m, w) in memory.items()),
    ]
    return filled("\n".join(parts))


def filled(text: str) -> str:
    """With even lines in paragraphs."""
    lines = (x if x[:1] in "#|!-" else textwrap.fill(x, 120, break_on_hyphens=False) for x in text.strip().split("\n"))
    return "\n".join(lines) + "\n"


CLAIMS = (
    ("GaLore comes close to AdamW (Zhao et al. 2024)", "galore", "adamw", 0.02),
    ("Fira ends below GaLore (Chen et al. 2024)", "fira", "galore", 0.0),
    ("and at or below AdamW", "fira", "adamw", 0.0),
    ("APOLLO ends below GaLore (Zhu et al. 2024)", "apollo", "galore", 0.0),
    ("and at or below AdamW", "apollo", "adamw", 0.0),
    ("APOLLO-Mini ends at or below AdamW (the same)", "apollomini", "adamw", 0.0),
    ("COAP ends below GaLore (Xiao et al. 2024)", "coap", "galore", 0.0),
    ("Online subspace descent ends below GaLore (Liang et al. 2024)", "onlinesubspacedescent", "galore", 0.0),
    ("GaLore+ ends below GaLore (Liao et al. 2024)", "galoreplus", "galore", 0.0),
    ("Trion ends at or below Dion (Modoranu et al. 2025)", "trion", "dion", 0.0),
)
"""What is claimed of a loss beside another one at rank d/4, and how much higher it may be for that."""


def claims(by_key: dict[str, Any]) -> str:
    """The orderings that the papers claim, each beside the losses here."""
    rows = []
    for words, name, other, margin in CLAIMS:
        one, two = (by_key.get(f"{n}-rank={RANKS[0]}", by_key.get(n)) for n in (name, other))
        found = against(one, two)
        low, high = found["interval"]
        as_claimed = found["difference"] <= margin
        sure = (high <= margin) if as_claimed else (low > margin)
        verdict = ("reproduced" if as_claimed else "not reproduced") + ("" if sure else ", but within noise")
        losses = " against ".join(f"{m['summary']['loss']:.4f}" for m in (one, two))
        rows.append(f"- {words}: {losses}, {found['difference']:+.4f} ({low:+.4f} to {high:+.4f}): {verdict}.")
    return "\n".join(rows)


def draw(results: dict[str, Any]) -> bytes:
    """Loss against state, a point for each method, a line from rank d/8 to d/4."""
    families: dict[str, list[Any]] = {}
    for m in results["methods"]:
        if m["summary"]["loss"] is not None:
            rotated = ", rotated" if m["key"].startswith("galore-moved") else ""
            families.setdefault(m["name"].partition(",")[0] + rotated, []).append(m["summary"])
    with picture((9, 5.5)) as (figure, buffer):
        axes = figure.subplots()
        for i, (name, found) in enumerate(families.items()):
            ends = sorted((t["state_bytes_per_parameter"], t["loss"]) for t in found)
            color = COLORS[i % len(COLORS)]
            axes.plot(
                *zip(*ends, strict=True), color=color, marker="os^Dv"[i % 5], markersize=6, linewidth=1, label=name
            )
        axes.set_xlabel("state, bytes for each parameter of the model (AdamW of embedding, head and norms included)")
        axes.set_ylabel("held-out loss, nats per character")
        axes.set_title("Loss against memory, ranks d/8 and d/4")
        legend_below(figure, axes, columns=5)
    return buffer.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("runs/low_rank"), help="folder of the runs")
    parser.add_argument("--part", choices=["losses", "state", "time", "peak"], help="this part only, printed")
    parser.add_argument("--only", help="optimisers of the losses, with commas; the rest is left to another call")
    args = parser.parse_args()
    torch.set_num_threads(1)
    jobs: dict[str, Callable[[], Any]] = {
        "state": lambda: {model: state(model) for model in ("GPT 384 x 6", "GPT 1024 x 2")},
        "time": lambda: timed("GPT 384 x 6"),
        "peak": peaks,
        "losses": lambda: losses(args.output / "losses", args.only.split(",") if args.only else []),
    }
    cache = args.output / "parts.json"
    known = files.read_json(cache) if cache.is_file() and args.part is None else {}
    found = {part: known.get(part) or job() for part, job in jobs.items() if args.part in (None, part)}
    if args.part is None:
        files.write_json(cache, {part: value for part, value in found.items() if part != "losses"})
        files.write_text(PAGE, page(found["losses"], found["state"], found["time"], found["peak"]))
        PAGE.with_suffix(".png").write_bytes(draw(found["losses"]))


if __name__ == "__main__":
    main()
