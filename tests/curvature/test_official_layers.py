"""Against the numbers of the official implementations, as reference/make_layers.py made them, in float64.

Both sides make 20 steps on random batches. What remains are other orders of operation; errors are relative to the
distance that the official code moved.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from steepest.curvature import (
    MKOR,
    SINGD,
    BlockDiagonal,
    Dense,
    Diagonal,
    Hierarchical,
    LayerPreconditioner,
    Toeplitz,
    Triangular,
)

REFERENCE = Path(__file__).parents[1] / "oracles" / "reference"
FILES = {file.stem: json.loads(file.read_text()) for file in sorted((REFERENCE / "layers").glob("*.json"))}
TOLERANCE = 1e-10

spec = importlib.util.spec_from_file_location("layers_problem", REFERENCE / "layers_problem.py")
problem = importlib.util.module_from_spec(spec)
spec.loader.exec_module(problem)

STRUCTURES = {
    "dense": Dense(),
    "diagonal": Diagonal(),
    "block": BlockDiagonal(3),
    "lower": Triangular(),
    "upper": Triangular(upper=True),
    "triltoeplitz": Toeplitz(),
    "triutoeplitz": Toeplitz(upper=True),
    "hierarchical": Hierarchical(3, 2),
    "arrow": Hierarchical(1, 0),
}
LOSSES = {"batch": "mean", "batch+sequence": "token_mean", None: "sum"}


def singd(model: torch.nn.Module, o: dict[str, Any]) -> LayerPreconditioner:
    return SINGD(
        model,
        damping=1e-2,
        factor_lr=o.get("lr_cov", 0.05),
        factor_momentum=o.get("alpha1", 0.5),
        structure=tuple(STRUCTURES[name] for name in o.get("structures", ["dense", "dense"])),
        adaptive=not o.get("kfac_like", False),
        normalize=o.get("normalize_lr_cov", False),
        loss=LOSSES[o.get("loss_average", "batch")],
        every=2,
    )


def local_cov(model: torch.nn.Module, o: dict[str, Any]) -> LayerPreconditioner:
    return SINGD(model, damping=1e-2, factor_lr=lambda _: 2e-4, factor_momentum=o.get("beta2", 0.5), every=2)


def mkor(model: torch.nn.Module, o: dict[str, Any]) -> LayerPreconditioner:
    return MKOR(model, every=o["inv_freq"])


BUILD = {"singd": singd, "local_cov": local_cov, "mkor": mkor}
CASES = [pytest.param(name, case, id=f"{name}-{case['name']}") for name, f in FILES.items() for case in f["cases"]]


@pytest.mark.parametrize(("name", "case"), CASES)
def test_official_numbers(name, case):
    model = problem.network(case["network"])
    start = [p.detach().clone() for p in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=problem.LR)
    BUILD[name](model, case["options"]).attach(optimizer)
    final = problem.run(case["network"], model, lambda _: optimizer.step())
    for ours, theirs, before in zip(final, case["final"], start, strict=True):
        there = torch.tensor(theirs, dtype=torch.float64)
        moved = torch.linalg.vector_norm(there - before.flatten())
        assert moved > 1e-2
        assert torch.linalg.vector_norm(torch.tensor(ours, dtype=torch.float64) - there) <= TOLERANCE * moved


def test_every_file_is_tried():
    assert set(FILES) == set(BUILD)
