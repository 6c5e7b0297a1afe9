"""The spectral optimisers against their authors' code: 20 steps on fixed random gradients, in float64.

The numbers are in reference/*.json, and reference/make.py made them. Newton-Schulz, SVD and QR run in float64 on both
sides; what remains are other orders of operation, and the small constants that some add to a norm before they divide by
it (1e-7 and 1e-8, on norms of about 1). Errors are relative to the distance that the official code moved.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import steepest
from steepest.norms import Columns, Max, Norm, Rows, Spectral
from steepest.transforms import AdamScale, Dualize, Momentum, Named, Scale, ShapeScale, WeightDecay

REFERENCE = Path(__file__).parent / "reference"
FILES = {file.stem: json.loads(file.read_text()) for file in sorted(REFERENCE.glob("*.json"))}
CASES = [(name, case) for name, content in FILES.items() for case in content["cases"]]
TOLERANCE = 1e-6

spec = importlib.util.spec_from_file_location("problem", REFERENCE / "problem.py")
problem = importlib.util.module_from_spec(spec)
spec.loader.exec_module(problem)

JORDAN = Spectral("keller_jordan")
Params = list[torch.nn.Parameter]
Options = dict[str, Any]


def same(*names: str, **renamed: str) -> Callable[[Options], Options]:
    """Options of ours from the file's: `names` as they are, `renamed[ours]` under another name."""
    return lambda o: {n: o[n] for n in names} | {ours: o[theirs] for ours, theirs in renamed.items()}


def scale(params: Params, o: Options) -> Any:
    role = {"hidden": "matrix", "embedding": "embedding", "head": "head"}[o["role"]]
    group = {"params": params, "role": role}
    return steepest.SCALE([group], **same("lr", "momentum", weight_decay="wd")(o))


def spectra(params: Params, o: Options) -> Any:
    adamw = o["adamw"]
    base = AdamScale(tuple(adamw["betas"]), adamw.get("eps", 1e-8))
    bounds = {"threshold": o.get("post"), "before": o.get("pre")}
    shape = "keller_jordan" if "post" in o else "none"  # theirs is the wrapper's, which clipping of gradients has not
    return steepest.Spectra(params, base=base, scale=shape, **bounds, **same("lr", "weight_decay")(adamw))


def conda(params: Params, o: Options) -> Any:
    """Theirs decays what the step has reached, which is ours with a step shorter by 1 - lr weight_decay."""
    return steepest.Conda(params, **{**o, "scale": o["scale"] * (1 - o["lr"] * o["weight_decay"])})


SCION: dict[tuple[str, str], tuple[Norm, list[str]]] = {
    ("Spectral", ""): (JORDAN, ["spectral"]),
    ("Spectral", "max"): (JORDAN, ["keller_jordan"]),
    ("Spectral", "normalized=False"): (JORDAN, ["columns"]),
    ("Sign", ""): (Max(), ["input"]),
    ("Sign", "normalized=False"): (Max(), []),
    ("ColNorm", ""): (Columns(), ["columns"]),
    ("ColNorm", "normalized"): (Columns(), ["columns", "input"]),
    ("ColNorm", "transpose"): (Rows(), ["rows"]),
    ("RowNorm", ""): (Rows(), ["rows", "input"]),
    ("RowNorm", "normalized=False"): (Rows(), []),
}
"""Their norms with their options, as ours with the factors of a matrix's shape."""


def scion(params: Params, o: Options) -> Any:
    """Scion where it is what Scion takes for matrices, tables or vectors, else its parts."""
    radius, constrained = o.get("scale", 1.0), not o.get("unconstrained", False)
    rest = {"lr": o["lr"], "momentum": 1 - o["momentum"], "constrained": constrained}
    said = ",".join(k if v else f"{k}={v}" for k, v in o["norm_kwargs"].items())
    match o["norm"], said:
        case "Spectral", "":
            return steepest.Scion(params, norm=JORDAN, radius=radius, **rest)
        case "Sign", "":
            return steepest.Scion([{"params": params, "role": "head"}], table_radius=radius, **rest)
        case "BiasRMS", "":
            return steepest.Scion(params, vector_radius=radius, **rest)
    norm, factors = SCION[o["norm"], said]
    length = [Named(str(i), ShapeScale(f)) for i, f in enumerate(factors)]
    decay = WeightDecay(float(constrained))
    parts = [Momentum(1 - o["momentum"]), Dualize(norm), *length, Scale(radius), decay]
    return steepest.Composed(params, parts, lr=o["lr"])


def dion(params: Params, o: Options) -> Any:
    return steepest.Dion(params, **same("lr", "weight_decay", momentum="mu", eps="epsilon", rank="rank_fraction")(o))


OURS: dict[str, Callable[[Params, Options], Any]] = {
    "muon": lambda p, o: steepest.Muon(p, norm=JORDAN, **o),
    "normuon": lambda p, o: steepest.NorMuon(p, norm=JORDAN, **o),
    "adamuon": lambda p, o: steepest.AdaMuon(p, norm=JORDAN, **o),
    "auon": lambda p, o: steepest.AuON(p, norm=JORDAN, **o),
    "dion": dion,
    "dion_simple": lambda p, o: dion(p, {**o, "rank_fraction": o["rank"]}),
    "conda": conda,
    "scale": scale,
    "spectra": spectra,
    "spectra_variants": spectra,
    "scion_spectral": scion,
    "scion_spectral_variants": scion,
    "scion_sign": scion,
    "scion_columns": scion,
    "scion_rows": scion,
    "lion": lambda p, o: steepest.Lion(p, **o),
}
"""Each file's optimiser of ours, from parameters and the file's options."""

OTHERWISE: dict[tuple[str, str], str] = {
    ("auon", "vector"): "vectors go to AdamW",
    ("dion_simple", "wide"): "wide matrices are transposed, as in Dion's other implementations",
    ("scale", "vector"): "vectors go to AdamW, whose eps is added after the bias correction",
    ("spectra", "vector"): "vectors go to AdamW",
}
"""Cases in which ours differ, and on purpose."""


def start_dion(optimizer: Any, params: Params, gradients: list[torch.Tensor], case: dict[str, Any]) -> None:
    """Give Dion the official code's first Q: after one step of length zero, which creates the state."""
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    for p, g in zip(params, gradients, strict=True):
        p.grad = g.clone()
    optimizer.step()
    for group, lr in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = lr
    saved = optimizer.state_dict()  # whose "step" stays 1, as 0 would ask for fresh state
    for i, q in enumerate(case["Q"]):
        state = saved["state"][i]
        (key,) = [k for k in state if k != "step" and "momentum" not in k and "buffer" not in k]
        state.update({k: v * 0 for k, v in state.items() if k != "step"} | {key: torch.tensor(q, dtype=torch.float64)})
    optimizer.load_state_dict(saved)


def test_the_problem_is_the_one_recorded() -> None:
    (start,), gradients = problem.problem([[5, 5]])
    torch.testing.assert_close(start[0, 0].item(), 0.14668906361184073, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradients[-1][0][4, 4].item(), -0.6992275736793653, rtol=1e-12, atol=0)


def test_every_file_has_an_optimizer() -> None:
    assert set(FILES) == set(OURS)
    assert OTHERWISE.keys() <= {(name, case["name"]) for name, case in CASES}


@pytest.mark.parametrize(("name", "case"), CASES, ids=[f"{name}-{case['name']}" for name, case in CASES])
def test_agrees_with_official_code(name: str, case: dict[str, Any]) -> None:
    if reason := OTHERWISE.get((name, case["name"])):
        pytest.skip(f"ours differs on purpose: {reason}")
    params, gradients = problem.problem(case["shapes"])
    start = [p.detach().clone() for p in params]
    options = {key: tuple(v) if isinstance(v, list) else v for key, v in case["options"].items()}
    optimizer = OURS[name](params, options)
    if "Q" in case:
        start_dion(optimizer, params, gradients[0], case)
    rates = [group["lr"] for group in optimizer.param_groups]

    def set_lr(step: int) -> None:
        for group, lr in zip(optimizer.param_groups, rates, strict=True):
            factor = case["lr_factors"][step] if "lr_factors" in case else 1
            group["lr"] = lr * factor
            if factor < 1:  # SPECTRA's warm-up
                group["threshold"] = case["options"]["post"] / factor
            elif "lr_factors" in case:
                group["threshold"] = case["options"]["post"]

    for step, ours in problem.trace(params, gradients, optimizer, set_lr).items():
        for a, values, x in zip(ours, case[f"after_{step}"], start, strict=True):
            b = torch.tensor(values, dtype=torch.float64)
            error = torch.linalg.vector_norm(a - b) / torch.linalg.vector_norm(b - x)
            assert error < TOLERANCE, f"{tuple(a.shape)} after step {step}: off by {error:.1e}"
