"""Write the numbers that the official implementations of the spectral optimisers give, one JSON file per method.

    python tests/oracles/reference/make.py --source DIR

DIR holds clones of these repositories, each in a folder of its own name, at these commits (others may give other
numbers):

    KellerJordan/Muon                         857d1adc159e098212f828d927460782d3da59e9
    zichongli5/NorMuon                        d45c9a4280d758e2cf0b2b8333765d040e953937
    Chongjie-Si/AdaMuon                       369f0b3bd9d97f82bb8ba81664207ac513e233b0
    ryyzn9/AuON                               bba2e82200825bbf8574462df32130af64a39f42
    microsoft/dion                            0a059a4542e5aa74b40dcd1dce363836c7afcd48
    jie040109/Conda                           449af7136aa72792670b6f8cb39e52135e6cba58
    OptimAI-Lab/Minimalist_LLM_Pretraining    f5bd4e754eb9c0b43f2b01330adeebe2d9b28fd3
    mlolab/llm-spectral-clipping              ed9df11d797aa94f312f4d7810d5f8cd8ddc9897
    LIONS-EPFL/scion                          f58a393e010395a5913176be5673d8839caa6285
    google/automl                             6a54c8741e7c3265d4547c4f35f47a0391122dc5

Nothing of them is kept here but numbers. Their code runs as it is, except that it runs in float64 throughout: casts to
bfloat16 and float32 are taken out, buffers "on cuda" are on the CPU, and torch.compile is left away. A file holds
several cases: options, the parameters after 1 and after 20 steps of `problem`, and what else the method started from.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib
import importlib.util
import json
import math
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from problem import MATRICES, STEPS, VECTOR, problem, trace
from torch import Tensor, nn

COMMITS = {words[0]: words[1] for line in __doc__.splitlines() if len(words := line.split()) == 2 and "/" in words[0]}
HERE = Path(__file__).parent
Params = list[nn.Parameter]
Options = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Case:
    """One run: the options that its builder gets, the shapes it runs on, and by what factor lr is multiplied."""

    name: str
    options: Options
    shapes: tuple[tuple[int, ...], ...] = MATRICES
    lr_factors: list[float] | None = None


@dataclasses.dataclass(frozen=True)
class Method:
    """Where a method's code lies, what builds the optimiser from it, and the cases."""

    repository: str
    path: str
    build: Callable[[Any, Params, Options, Options], Any]
    cases: list[Case]
    note: str = ""


# Running foreign code in float64. ---------------------------------------------------------------------------------


@contextlib.contextmanager
def float64() -> Iterator[None]:
    """Take the casts to smaller types out, and everything that needs a GPU or a compiler."""
    to, empty = Tensor.to, torch.empty
    small = (torch.bfloat16, torch.float16, torch.float32)

    def to_float64(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        kwargs = {k: v for k, v in kwargs.items() if v not in small}
        args = tuple(a for a in args if a not in small)
        return to(x, *args, **kwargs) if args or kwargs else x

    def empty_float64(*size: Any, **kwargs: Any) -> Tensor:
        return empty(*size, **{**kwargs, "dtype": torch.float64, "device": "cpu"})

    def gather(out: Tensor, x: Tensor, async_op: bool = False) -> Any:
        out.copy_(x.view_as(out))
        return types.SimpleNamespace(wait=lambda: None)

    same = {name: lambda x: x for name in ("bfloat16", "float", "half")}
    with contextlib.ExitStack() as stack:
        for name, replacement in {**same, "to": to_float64}.items():
            stack.enter_context(mock.patch.object(Tensor, name, replacement))
        stack.enter_context(mock.patch.object(torch, "empty", empty_float64))
        stack.enter_context(mock.patch.object(torch, "compile", lambda f=None, **_: f or (lambda f: f)))
        stack.enter_context(mock.patch.object(torch.distributed, "all_gather_into_tensor", gather))
        torch.set_default_dtype(torch.float64)  # for hyper-parameters that the code makes tensors of
        try:
            yield
        finally:
            torch.set_default_dtype(torch.float32)


def load(source: Path, method: Method) -> Any:
    """The module, with its folder as a package, so that its relative imports work and its `__init__` does not run."""
    versions = types.ModuleType("transformers.utils.versions")
    versions.require_version = lambda *_: None
    sys.modules |= {name: types.ModuleType(name) for name in ("transformers", "transformers.utils")}
    sys.modules[versions.__name__] = versions
    file = source / method.repository.rpartition("/")[2] / method.path
    package = types.ModuleType("official_" + "".join(c if c.isalnum() else "_" for c in str(file.parent)))
    package.__path__ = [str(file.parent)]
    sys.modules[package.__name__] = package
    return importlib.import_module(f"{package.__name__}.{file.stem}")


# The methods. -----------------------------------------------------------------------------------------------------


def build_muon(module: Any, params: Params, options: Options, extra: Options) -> Any:
    return module.SingleDeviceMuon(params, **options)


def build_normuon(module: Any, params: Params, options: Options, extra: Options) -> Any:
    return module.SingleDeviceNorMuon(params, **options)


def build_adamuon(module: Any, params: Params, options: Options, extra: Options) -> Any:
    return module.AdaMuon(params, rank=0, world_size=1, **options)


def build_auon(module: Any, params: Params, options: Options, extra: Options) -> Any:
    options = dict(options)
    return (module.HybridAuON if options.pop("hybrid") else module.AuON)(params, **options)


def start_dion(params: Params, rank: Callable[[nn.Parameter], int], optimizer: Any, extra: Options, tall: bool) -> None:
    """Give every parameter its first Q, and write it down."""
    generator = torch.Generator().manual_seed(1)
    extra["Q"] = []
    for p in params:
        side = min(p.shape) if tall else p.shape[1]
        q = torch.randn(side, rank(p), generator=generator, dtype=torch.float64)
        optimizer.state[p].update(momentum=torch.zeros_like(p), Q=q.clone())
        extra["Q"].append(q.tolist())


def build_dion(module: Any, params: Params, options: Options, extra: Options) -> Any:
    optimizer = module.Dion(params, qr_method="qr", **options)
    start_dion(params, lambda p: math.ceil(options["rank_fraction"] * min(p.shape)), optimizer, extra, tall=True)
    return optimizer


def build_dion_simple(module: Any, params: Params, options: Options, extra: Options) -> Any:
    optimizer = module.Dion(params, **options)
    start_dion(params, lambda p: min(options["rank"], *p.shape), optimizer, extra, tall=False)
    return optimizer


def build_conda(module: Any, params: Params, options: Options, extra: Options) -> Any:
    options = dict(options)
    names = {"every": "update_proj_gap", "scale": "scale"}
    group = {names[key]: options.pop(key) for key in ("every", "scale")}
    return module.Conda([{"params": params, "proj_type": "std", **group}], no_deprecation_warning=True, **options)


def build_scale(module: Any, params: Params, options: Options, extra: Options) -> Any:
    options = dict(options)
    role = options.pop("role")
    kinds = {"main_params": ("hidden", "embedding"), "secondary_params": ("head",), "oned_params": ("vector",)}
    lists = {kind: params if role in roles else [] for kind, roles in kinds.items()}
    name = {"embedding": "embed_tokens", "head": "lm_head"}.get(role, "mlp")
    return module.SCALE(**lists, id_to_name={id(p): name for p in params}, **options)


def build_spectra(module: Any, params: Params, options: Options, extra: Options) -> Any:
    """Around AdamW; `pre` clips gradients before it, as the official training loop does."""
    pre, post, wrapped = options.get("pre"), options.get("post"), options.get("wrapper", {})
    optimizer = torch.optim.AdamW(params, **options["adamw"], foreach=False)
    if post is not None:
        optimizer = module.SPECTRA(optimizer, clip_c=post, base_lr=options["adamw"]["lr"], **wrapped)
    if pre is None:
        return optimizer

    def step() -> None:
        for p in params:
            if p.ndim == 2:
                p.grad.copy_(module.clip_sigvals(p.grad, clip_c=pre, ns_iter=10))
        optimizer.step()

    return types.SimpleNamespace(step=step, param_groups=optimizer.param_groups)


def build_scion(module: Any, params: Params, options: Options, extra: Options) -> Any:
    return module.Scion(params, **options)


def build_lion(module: Any, params: Params, options: Options, extra: Options) -> Any:
    return module.Lion(params, **options)


def scion_cases(norm: str, *more: Case, **norm_kwargs: Any) -> list[Case]:
    of_norm = {"norm": norm, "norm_kwargs": norm_kwargs}
    return [
        Case("constrained", {"lr": 0.05, "momentum": 0.1, "scale": 3.0, "unconstrained": False, **of_norm}),
        Case("unconstrained", {"lr": 0.05, "momentum": 0.5, "scale": 1.0, "unconstrained": True, **of_norm}),
        *more,
    ]


ADAMW = {"lr": 0.05, "betas": (0.9, 0.95), "weight_decay": 0.1}
SPECTRA = ("mlolab/llm-spectral-clipping", "src/optim/spectra.py", build_spectra)
SCION = ("LIONS-EPFL/scion", "scion.py", build_scion)

METHODS: dict[str, Method] = {
    "muon": Method(
        "KellerJordan/Muon",
        "muon.py",
        build_muon,
        [
            Case("default", {"lr": 0.02, "momentum": 0.95, "weight_decay": 0.0}),
            Case("decay", {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}),
        ],
    ),
    "normuon": Method(
        "zichongli5/NorMuon",
        "normuon.py",
        build_normuon,
        [
            Case("default", {"lr": 0.02, "momentum": 0.95, "beta2": 0.95, "weight_decay": 0.0}),
            Case("decay", {"lr": 0.1, "momentum": 0.9, "beta2": 0.8, "weight_decay": 0.1}),
        ],
    ),
    "adamuon": Method(
        "Chongjie-Si/AdaMuon",
        "gpt2/models/optimizers/adamuon.py",
        build_adamuon,
        [
            Case("default", {"lr": 0.02, "momentum": 0.95, "weight_decay": 0.01, "nesterov": True, "eps": 1e-8}),
            Case("eps", {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1, "nesterov": False, "eps": 0.1}),
        ],
        "buffers on cuda and in bfloat16 are on the CPU and in float64; one process",
    ),
    "auon": Method(
        "ryyzn9/AuON",
        "auon/optimizer.py",
        build_auon,
        [
            Case("default", {"lr": 0.24, "momentum": 0.95, "weight_decay": 0.0, "gamma": 1.5, "hybrid": False}),
            Case("decay", {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1, "gamma": 6.0, "hybrid": False}),
            Case("hybrid", {"lr": 0.1, "momentum": 0.95, "weight_decay": 0.1, "gamma": 1.5, "hybrid": True}),
            Case("vector", {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1, "gamma": 1.5, "hybrid": False}, VECTOR),
        ],
    ),
    "dion": Method(
        "microsoft/dion",
        "dion/dion_reference.py",
        build_dion,
        [
            Case("full", {"lr": 0.01, "mu": 0.95, "weight_decay": 0.01, "epsilon": 1e-8, "rank_fraction": 1.0}),
            Case("half", {"lr": 0.1, "mu": 0.9, "weight_decay": 0.1, "epsilon": 0.1, "rank_fraction": 0.5}),
        ],
        "plain QR in place of the randomised Cholesky QR, from the Q that the case holds; wide matrices are transposed "
        "(Q has min(m, n) rows)",
    ),
    "dion_simple": Method(
        "microsoft/dion",
        "dion/dion_simple.py",
        build_dion_simple,
        [
            Case("tall", {"lr": 0.1, "mu": 0.95, "weight_decay": 0.1, "epsilon": 1e-8, "rank": 2}, ((6, 4), (5, 5))),
            Case("wide", {"lr": 0.1, "mu": 0.95, "weight_decay": 0.1, "epsilon": 1e-8, "rank": 2}, ((4, 6),)),
        ],
        "from the Q that the case holds; never transposed, so that Q has n rows",
    ),
    "conda": Method(
        "jie040109/Conda",
        "conda_torch/conda.py",
        build_conda,
        [
            Case(
                "scripts",
                {"lr": 0.05, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.0, "every": 5, "scale": 0.25},
            ),
            Case(
                "decay",
                {"lr": 0.05, "betas": (0.8, 0.9), "eps": 0.1, "weight_decay": 0.1, "every": 7, "scale": 1.0},
            ),
        ],
        "the SVD runs in float64",
    ),
    "scale": Method(
        "OptimAI-Lab/Minimalist_LLM_Pretraining",
        "mem_eff_pt/pt_scale/scale_optimizer.py",
        build_scale,
        [
            Case("hidden", {"lr": 0.05, "wd": 0.1, "momentum": 0.9, "role": "hidden"}),
            Case("embedding", {"lr": 0.05, "wd": 0.1, "momentum": 0.9, "role": "embedding"}),
            Case("head", {"lr": 0.05, "wd": 0.1, "momentum": 0.9, "role": "head"}),
            Case("vector", {"lr": 0.05, "wd": 0.1, "adam_lr": 0.02, "adamw_eps": 0.1, "role": "vector"}, VECTOR),
        ],
    ),
    "spectra": Method(
        *SPECTRA,
        [
            Case("post 1", {"adamw": ADAMW, "post": 1.0}),
            Case("post 10", {"adamw": ADAMW, "post": 10.0}),
            Case("vector", {"adamw": ADAMW, "post": 1.0, "wrapper": {"apply_to": "all"}}, VECTOR),
        ],
        "around torch.optim.AdamW; ten Newton-Schulz iterations",
    ),
    "spectra_variants": Method(
        *SPECTRA,
        [
            Case("pre", {"adamw": {**ADAMW, "eps": 0.01}, "pre": 1.0}),
            Case("pre and post", {"adamw": {**ADAMW, "eps": 0.01}, "pre": 1.0, "post": 2.0}),
            Case(
                "warmup",
                {"adamw": ADAMW, "post": 1.0, "wrapper": {"warmup_steps": 5}},
                lr_factors=[min(1.0, (t + 1) / 5) for t in range(STEPS)],
            ),
        ],
        "around torch.optim.AdamW; ten Newton-Schulz iterations",
    ),
    "scion_spectral": Method(*SCION, scion_cases("Spectral")),
    "scion_spectral_variants": Method(
        *SCION,
        [
            Case("max", {"lr": 0.05, "momentum": 1.0, "norm": "Spectral", "norm_kwargs": {"max": True}}),
            Case("input", {"lr": 0.05, "momentum": 0.1, "norm": "Spectral", "norm_kwargs": {"normalized": False}}),
        ],
    ),
    "scion_sign": Method(
        *SCION,
        scion_cases(
            "Sign",
            Case("not normalized", {"lr": 0.05, "momentum": 0.1, "norm": "Sign", "norm_kwargs": {"normalized": False}}),
        ),
    ),
    "scion_columns": Method(
        *SCION,
        scion_cases(
            "ColNorm",
            Case("normalized", {"lr": 0.05, "momentum": 0.1, "norm": "ColNorm", "norm_kwargs": {"normalized": True}}),
            Case("embedding", {"lr": 0.05, "momentum": 0.1, "norm": "ColNorm", "norm_kwargs": {"transpose": True}}),
        ),
    ),
    "scion_rows": Method(
        *SCION,
        scion_cases(
            "RowNorm",
            Case("input", {"lr": 0.05, "momentum": 0.1, "norm": "RowNorm", "norm_kwargs": {"normalized": False}}),
            Case("vector", {"lr": 0.05, "momentum": 0.1, "norm": "BiasRMS", "norm_kwargs": {}}, VECTOR),
        ),
    ),
    "lion": Method(
        "google/automl",
        "lion/lion_pytorch.py",
        build_lion,
        [
            Case("default", {"lr": 0.01, "betas": (0.9, 0.99), "weight_decay": 0.0}, MATRICES + VECTOR),
            Case("decay", {"lr": 0.1, "betas": (0.8, 0.9), "weight_decay": 0.1}, MATRICES + VECTOR),
        ],
    ),
}


def run(method: Method, case: Case, source: Path) -> dict[str, Any]:
    """A case's entry of the file."""
    params, gradients = problem([list(shape) for shape in case.shapes])
    extra: Options = {}
    with float64():
        optimizer = method.build(load(source, method), params, case.options, extra)
        rates = [group["lr"] for group in optimizer.param_groups]

        def set_lr(step: int) -> None:
            for group, lr in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = lr * case.lr_factors[step]

        seen = trace(params, gradients, optimizer, *([set_lr] if case.lr_factors else []))
    extra |= {"lr_factors": case.lr_factors} if case.lr_factors else {}
    after = {f"after_{step}": [p.tolist() for p in values] for step, values in seen.items()}
    return {"name": case.name, "options": case.options, "shapes": case.shapes, **extra, **after}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", type=Path, required=True, help="folder with the repositories")
    parser.add_argument("methods", nargs="*", help="these methods only")
    args = parser.parse_args()
    for name in args.methods or METHODS:
        method = METHODS[name]
        where = {"repository": method.repository, "commit": COMMITS[method.repository], "path": method.path}
        content = {**where, "note": method.note, "cases": [run(method, case, args.source) for case in method.cases]}
        text = json.dumps(content, indent=1)
        (HERE / f"{name}.json").write_text(compact(text) + "\n")
        print(f"{name}: {len(method.cases)} cases")


def compact(text: str) -> str:
    """A row of a matrix on a line of its own, and no other line breaks inside lists of numbers."""
    lines: list[str] = []
    for line in text.splitlines():
        bare = line.strip()
        inside = bool(lines) and (lines[-1].endswith("[") or lines[-1][-1] in "0123456789,")
        number = bare.rstrip(",").lstrip("-").replace(".", "").replace("e-", "").replace("e+", "").isdigit()
        if inside and number:
            lines[-1] += bare if lines[-1].endswith("[") else " " + bare
        elif bare.rstrip(",") == "]" and lines[-1][-1].isdigit():
            lines[-1] += bare
        else:
            lines.append(line)
    return "\n".join(lines)


if __name__ == "__main__":
    main()
