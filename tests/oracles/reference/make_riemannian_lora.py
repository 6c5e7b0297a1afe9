"""Write the numbers that the official code of Riemannian-preconditioned LoRA gives into the folder riemannian_lora.

    python tests/oracles/reference/make_riemannian_lora.py --source DIR

DIR holds a clone of

    pilancilab/Riemannian_Preconditioned_LoRA    c3a2c1b5254ce5cc2a13afd30ef73b7fa550eb6b

in a folder of that name. Nothing of it is kept but numbers. It runs as it is, in float64: the optimisers of its
Mistral-7B experiments on one pair of factors, with |B A - T|^2 / 2 as the loss.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

HERE = Path(__file__).parent
COMMIT = "c3a2c1b5254ce5cc2a13afd30ef73b7fa550eb6b"
STEPS = 10
CASES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("SGDr", {"lr": 0.1, "optimizer_reg": 0.0}, {}),
    ("SGDr", {"lr": 0.1, "optimizer_reg": 0.01}, {}),
    ("AdamWr", {"lr": 0.01, "eps": 1e-8, "correct_bias": True, "optimizer_reg": 0.0}, {"correct_bias": True}),
]


def main() -> None:
    """Run every case, and write the file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--source", type=Path, required=True)
    file = parser.parse_args().source / "Riemannian_Preconditioned_LoRA/Mistral-7B/mistral/custom_optimizer.py"
    spec = importlib.util.spec_from_file_location("official", file)
    assert spec
    assert spec.loader
    official = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(official)

    generator = torch.Generator().manual_seed(0)
    b, a, target = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((5, 2), (2, 6), (5, 6)))
    content: dict[str, Any] = {"commit": COMMIT, "b": b.tolist(), "a": a.tolist(), "target": target.tolist()}
    content["cases"] = [
        {"name": name, "options": options, "after": run(getattr(official, name), options, extra, b, a, target)}
        for name, options, extra in CASES
    ]
    folder = HERE / "riemannian_lora"
    folder.mkdir(exist_ok=True)
    (folder / "numbers.json").write_text(json.dumps(content, indent=1) + "\n")


def run(family: Any, options: Any, extra: Any, b: torch.Tensor, a: torch.Tensor, target: torch.Tensor) -> Any:
    """B and A after each step."""
    first, second = nn.Parameter(a.clone()), nn.Parameter(b.clone())  # theirs lists A before B
    with contextlib.redirect_stdout(io.StringIO()):
        optimizer = family([{"params": [first, second], "weight_decay": 0.0, **extra}], **options)
    after = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        ((second @ first - target).square().sum() / 2).backward()
        optimizer.step()
        after.append({"b": second.tolist(), "a": first.tolist()})
    return after


if __name__ == "__main__":
    main()
