"""The spectral and low-rank optimisers against their authors' code: 20 steps on fixed random gradients, in float64.

The numbers are in reference/*.json, and reference/make.py made them. Newton-Schulz, SVD and QR run in float64 on both
sides; what remains are other orders of operation, and the small constants that some add to a norm before they divide by
it (1e-7 and 1e-8, on norms of about 1). Errors are relative to the distance that the official code moved.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import steepest
from steepest.bases import Eigenbasis
from steepest.norms import Columns, Max, Norm, Rows, Spectral
from steepest.projectors import Correlated, Online, Principal, Projector, correlated
from steepest.transforms import AdamScale, Dualize, Momentum, Named, Rotate, Scale, ShapeScale, WeightDecay

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


# In subspaces. Where the moments outlive a move of the subspace, the numbers depend on the signs of singular vectors,
# and where it is random, on the numbers drawn: the bases are then the ones that the file has.


@dataclasses.dataclass(frozen=True)
class Recorded(Projector):
    """The bases of one parameter, one after the other."""

    spread: bool = False
    bases: tuple[Any, ...] = ()

    def basis(self, x, rank, state, at):
        return torch.tensor(self.bases[self.epoch(at)], dtype=x.dtype)

    def before(self, x, rank, state, at):
        return {} if self.due(at) else None

    @classmethod
    def examples(cls):
        return []


def each(params: Params, bases: list[Any], every: int) -> list[dict[str, Any]]:
    """A group for each parameter, with its bases."""
    return [
        {"params": [p], "projector": Recorded(every, bases=tuple(epoch[i] for epoch in bases))}
        for i, p in enumerate(params)
    ]


def adam_of(o: Options) -> AdamScale:
    return AdamScale(o.get("betas", (0.9, 0.999)), o.get("eps", 1e-8), debias=o.get("correct_bias", True))


def decayed(o: Options) -> float:
    """Their decay shrinks what the step has reached as well: ours with a step shorter by this factor."""
    return 1 - o["lr"] * o["weight_decay"]


def galore(params: Params, o: Options) -> Any:
    groups = each(params, o["bases"], o["update_proj_gap"])
    if o["update_proj_gap"] > problem.STEPS:  # the signs of the one decomposition make no difference
        groups = [{"params": params, "projector": Principal(spread=False)}]
    side = {"std": "short", "reverse_std": "long"}[o["proj_type"]]
    scale = o["scale"] * decayed(o)
    rest = same("lr", "rank", "weight_decay")(o)
    return steepest.GaLore(groups, inner=adam_of(o), scale=scale, side=side, **rest)


def fira(params: Params, o: Options) -> Any:
    groups = each(params, o["bases"], o["update_proj_gap"])
    return steepest.Fira(groups, inner=adam_of(o), **same("lr", "rank", "weight_decay", scale="alpha")(o))


def apollo(params: Params, o: Options) -> Any:
    groups = each(params, o["bases"], o["update_proj_gap"])
    growth = None if o.get("disable_nl") else 1.01
    whole, scale = o["scale_type"] == "tensor", o["scale"] * decayed(o) ** 2
    rest = same("lr", "rank", "weight_decay")(o)
    return steepest.APOLLO(groups, inner=adam_of(o), whole=whole, scale=scale, growth=growth, **rest)


def flora(params: Params, o: Options) -> Any:
    groups = each(params, o["bases"], o["kappa"]) if "bases" in o else params
    rest = same("lr", "rank", "weight_decay", relative="scale_parameter")(o)
    return steepest.FLORA(groups, momentum=o["beta1"] or 0.0, **rest)


def coap(params: Params, o: Options) -> Any:
    projector = Correlated(o["update_interval"], False, anew=o["reproject_factor"])
    rest = same("lr", "rank", "weight_decay")(o)
    return steepest.COAP(params, projector=projector, inner=adam_of(o), scale=o["scale"] * decayed(o), **rest)


def online(params: Params, o: Options) -> Any:
    projector = Online(o["update_proj_gap"])
    rest = same("lr", "rank", "weight_decay")(o)
    scale = o["scale"] * decayed(o)
    return steepest.OnlineSubspaceDescent(params, projector=projector, inner=adam_of(o), scale=scale, **rest)


def trion(params: Params, o: Options) -> Any:
    scale = {"dion": "spectral", "kj": "keller_jordan"}[o["scaling_type"]]
    return steepest.Trion(params, norm=JORDAN, scale=scale, **same("lr", "momentum", "weight_decay", "rank")(o))


def dct_adamw(params: Params, o: Options) -> Any:
    return steepest.DCTAdamW(params, inner=adam_of(o), feedback=o["use_ef"], **same("lr", "weight_decay", "rank")(o))


def soap(params: Params, o: Options) -> Any:
    """With the order of degenerate axes left to LAPACK, as theirs."""
    basis = Eigenbasis(o.get("shampoo_beta", o["betas"][1]), o["precondition_frequency"], shift=0.0)
    rotated = Rotate(AdamScale(tuple(o["betas"])), basis, max_side=o.get("max_precond_dim", 10_000))
    return steepest.Composed(params, rotated, lr=o["lr"])


def shampoo(params: Params, o: Options) -> Any:
    beta, graft = o["betas"][1], {"": None, "sgd": "gradient"}.get(o["graft"].lower(), o["graft"].lower())
    rest = {"power": o["power"], "start": o["start_preconditioning_step"], "graft_beta": beta}
    block = o["max_preconditioner_dim"]
    return steepest.Shampoo(params, o["lr"], 0.0, beta, o["epsilon"], block=block, graft=graft, **rest)


def shampoo_4bit(params: Params, o: Options) -> Any:
    rest = {"every": o["stat_compute_steps"], "roots_every": o["prec_compute_steps"], "bits": o["prec_bits"]}
    block = o.get("prec_maxorder", 1200)
    return steepest.Shampoo4bit(params, o["lr"], o["momentum"], eps=o["matrix_eps"], block=block, **rest)


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
    "galore": galore,
    "fira": fira,
    "apollo": apollo,
    "flora": flora,
    "coap": coap,
    "online_subspace_descent": online,
    "trion": trion,
    "dct_adamw": dct_adamw,
    "soap": soap,
    "shampoo": shampoo,
    "shampoo_4bit": shampoo_4bit,
}
"""Each file's optimiser of ours, from parameters and the file's options."""

OTHERWISE: dict[tuple[str, str], str] = {
    ("auon", "vector"): "vectors go to AdamW",
    ("dion_simple", "wide"): "wide matrices are transposed, as in Dion's other implementations",
    ("scale", "vector"): "vectors go to AdamW, whose eps is added after the bias correction",
    ("spectra", "vector"): "vectors go to AdamW",
    ("fira", "corrected"): "the residual's growth is that of the step, with Adam's bias corrected",
    ("fira", "scaled"): "what is scaled is subtracted in full from the residual, as in the paper",
    ("flora", "refreshed"): "the momentum moves to another subspace before a step takes it, not after",
    ("dct_adamw", "third type"): "the transform is of type II, as with their makhoul",
    ("dct_adamw", "third type, square"): "the transform is of type II, as with their makhoul",
}
"""Cases in which ours differ, and on purpose."""

SHAPES: dict[str, tuple[Callable[[list[int]], bool], str]] = {
    "coap": (lambda shape: shape[0] < shape[1], "cosines along the longer side's vectors, theirs always along rows"),
    "trion": (lambda shape: shape[0] >= shape[1], "the transform is of type II, theirs of type III for tall matrices"),
}
"""Shapes for which ours differ, and on purpose."""


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


@pytest.mark.usefixtures("unconstrained")
@pytest.mark.parametrize(("name", "case"), CASES, ids=[f"{name}-{case['name']}" for name, case in CASES])
def test_agrees_with_official_code(name: str, case: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    if reason := OTHERWISE.get((name, case["name"])):
        pytest.skip(f"ours differs on purpose: {reason}")
    params, gradients = problem.problem(case["shapes"])
    start = [p.detach().clone() for p in params]
    options = {key: tuple(v) if isinstance(v, list) else v for key, v in case["options"].items()}
    if "omega" in case:  # what the first sketch is made with
        drawn = {(len(omega), len(omega[0])): torch.tensor(omega, dtype=torch.float64) for omega in case["omega"]}
        monkeypatch.setattr(correlated, "gaussian", lambda shape, seed, like: drawn[shape])
    optimizer = OURS[name](params, options | {"bases": case["bases"]} if "bases" in case else options)
    if "Q" in case:
        start_dion(optimizer, params, gradients[0], case)
    rates = [group["lr"] for group in optimizer.param_groups]

    def set_lr(step: int) -> None:
        for group, lr in zip(optimizer.param_groups, rates, strict=True):
            factor = case["lr_factors"][step] if "lr_factors" in case else 1
            group["lr"] = lr * factor
            if "post" in case["options"]:  # SPECTRA's warm-up
                group["threshold"] = case["options"]["post"] / factor

    for step, ours in problem.trace(params, gradients, optimizer, set_lr).items():
        for a, values, x in zip(ours, case[f"after_{step}"], start, strict=True):
            if name in SHAPES and SHAPES[name][0](list(a.shape)):
                continue
            b = torch.tensor(values, dtype=torch.float64)
            error = torch.linalg.vector_norm(a - b) / torch.linalg.vector_norm(b - x).clamp_min(1e-300)
            assert error < TOLERANCE, f"{tuple(a.shape)} after step {step}: off by {error:.1e}"
