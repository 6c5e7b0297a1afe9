"""`steepest compare`: options in, messages and exit code out."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer


def command(
    optimizers: Annotated[
        str | None,
        typer.Option(
            help="Names with commas: adamw,muon,...; a wrong name lists all. With options: galore:rank=0.125+scale=1.  "
            "[all]"
        ),
    ] = None,
    data: Annotated[str | None, typer.Option(help="UTF-8 text file.  [the Python standard library's own text]")] = None,
    tokens: Annotated[int | None, typer.Option(help="Characters on which each run trains.  [262144]")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Texts in a step.  [8]")] = None,
    context: Annotated[int | None, typer.Option(help="Characters in a text.  [128]")] = None,
    width: Annotated[int | None, typer.Option(help="Width of the transformer.  [64]")] = None,
    layers: Annotated[int | None, typer.Option(help="Blocks of attention and MLP.  [2]")] = None,
    heads: Annotated[int | None, typer.Option(help="Heads of each attention.  [4]")] = None,
    seeds: Annotated[
        int | None, typer.Option(help="Runs at the best learning rate, each with its own start and data order.  [3]")
    ] = None,
    lrs: Annotated[
        int | None,
        typer.Option(
            help="Learning rates that each optimiser tries, around its default; while the best is at the edge, more "
            "are added there. 1: no sweep.  [3]"
        ),
    ] = None,
    lr_factor: Annotated[float | None, typer.Option(help="Ratio of neighbouring learning rates.  [3]")] = None,
    extend: Annotated[int | None, typer.Option(help="Learning rates that may be added.  [6]")] = None,
    warmup: Annotated[
        float | None, typer.Option(help="Share of the steps over which the learning rate rises.  [0.1]")
    ] = None,
    schedule: Annotated[
        str | None, typer.Option(help="How it falls to zero: cosine, linear, or wsd (only at the end).  [cosine]")
    ] = None,
    adamw_lr: Annotated[
        float | None,
        typer.Option(
            help="Learning rate of AdamW, which has embeddings, head and norms beside most optimisers.  [0.03]"
        ),
    ] = None,
    weight_decay: Annotated[
        float | None, typer.Option(help="Weight decay of all matrices, in each optimiser's own way.  [0]")
    ] = None,
    geometry: Annotated[
        str | None,
        typer.Option(
            help="none; orthogonal: attention's projections stay orthogonal matrices, embeddings unit vectors; both: "
            "each optimiser with and without.  [none]"
        ),
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps.  [cuda where there is one]")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float64.  [float32]")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads.  [torch's choice]")] = None,
    output: Annotated[Path, typer.Option(help="Folder of runs, tables, pictures and report.")] = Path(
        "steepest-compare"
    ),
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the interrupted comparison in --output.")
    ] = False,
    seed: Annotated[int | None, typer.Option(help="The first seed, that of the sweep.  [0]")] = None,
) -> None:
    """Train a small transformer with many optimisers, each at its best learning rate, and report which did best."""
    options: dict[str, Any] = dict(locals())
    for name in ("output", "resume"):
        del options[name]
    sys.exit(run({name: value for name, value in options.items() if value is not None}, output, resume))


def run(given: dict[str, Any], output: Path, resume: bool) -> int:
    """Do the job; the exit code is 0, 2 for a mistake of the user's, or 128 + the signal's number."""
    from steepest.runs.errors import UserError
    from steepest.runs.signals import Interrupted, Stop

    try:
        with Stop():
            from steepest.compare.job import compare

            compare(given, output, resume=resume)
    except UserError as error:
        print(f"steepest compare: {error}", file=sys.stderr)
        return 2
    except Interrupted as interrupted:
        begun = (output / "settings.json").is_file()
        advice = (
            f"finished runs are kept; go on with: steepest compare --resume --output {output}"
            if begun
            else "nothing had begun yet"
        )
        print(f"\n{interrupted}; {advice}", file=sys.stderr)
        return interrupted.exit_code
    return 0
