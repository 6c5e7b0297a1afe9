"""`steepest finetune`: options in, messages and exit code out."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer


def command(
    model: Annotated[
        str | None, typer.Option(help="Transformers folder or hub name.  [all-MiniLM-L6-v2 from PyPI]")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="CSV, TSV or JSONL file with the columns text,positive (search) or text,label (classification), and "
            "group if rows of one group must stay together.  [the Python standard library's documentation]"
        ),
    ] = None,
    optimizer: Annotated[
        str | None, typer.Option(help="adam, adamw, muon, sgd, shampoo, ...; a wrong name lists all.  [adam]")
    ] = None,
    adapter: Annotated[
        str | None, typer.Option(help="lora, pissa, dora, oft, loft, hra, ...; a wrong name lists all.  [lora]")
    ] = None,
    adapter_option: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="An option of the adapter's config, repeatable; a wrong key lists all."),
    ] = None,
    geometry: Annotated[
        str | None,
        typer.Option(
            help="Of LoRA and its kind. fixed-rank: the product is one point; euclidean: two plain factors.  "
            "[fixed-rank]"
        ),
    ] = None,
    rank: Annotated[int | None, typer.Option(help="Rank of the adapter.  [8 for LoRA; its config's]")] = None,
    alpha: Annotated[
        float | None, typer.Option(help="Scale of the adapter: alpha / rank.  [16 for LoRA; its config's]")
    ] = None,
    calibration_batches: Annotated[
        int | None, typer.Option(help="Batches that give an adapter the gradients that it starts from.  [4]")
    ] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate.  [by optimiser, adapter and geometry]")] = None,
    baseline_lr: Annotated[
        float | None, typer.Option(help="The same for AdamW beside it.  [0.001; by adapter]")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Training steps.  [60]")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Rows in a step.  [32]")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Length at which texts are cut.  [64]")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the adapter and of the order of the rows.  [0]")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps.  [cuda where there is one]")] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float64, of the frozen weights.  [float32]")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads.  [torch's choice]")] = None,
    save_every: Annotated[int | None, typer.Option(help="Steps between checkpoints.  [20]")] = None,
    output: Annotated[Path, typer.Option(help="Folder of adapter, report and checkpoints.")] = Path(
        "steepest-finetune"
    ),
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the interrupted run in --output.")] = False,
    no_baseline: Annotated[bool, typer.Option("--no-baseline", help="Leave out the AdamW run beside it.")] = False,
) -> None:
    """Adapt a transformer with LoRA or another adapter, score it before and after, and write adapter and report."""
    options: dict[str, Any] = dict(locals())
    for name in ("output", "resume", "no_baseline"):
        del options[name]
    given = {name: value for name, value in options.items() if value not in (None, [])}
    sys.exit(run(given | ({"baseline": False} if no_baseline else {}), output, resume))


def run(given: dict[str, Any], output: Path, resume: bool) -> int:
    """Do the job; the exit code is 0, 2 for a mistake of the user's, or 128 + the signal's number."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from steepest.runs.errors import UserError
    from steepest.runs.signals import Interrupted, Stop

    try:
        with Stop() as stop:
            from steepest.finetune.job import finetune

            finetune(given, output, resume=resume, stop=stop)
    except UserError as error:
        print(f"steepest finetune: {error}", file=sys.stderr)
        return 2
    except Interrupted as interrupted:
        begun = (output / "settings.json").is_file()
        advice = f"go on with: steepest finetune --resume --output {output}" if begun else "nothing had begun yet"
        print(f"\n{interrupted}; {advice}", file=sys.stderr)
        return interrupted.exit_code
    return 0
