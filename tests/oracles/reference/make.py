"""Write the numbers that the official implementations of matrix optimisers give, one JSON per method.

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
    jiaweizzhao/GaLore                        galore-torch 1.0 (PyPI)
    xichen-fy/Fira                            5c28b13408282b3ee65386b110318659412ddad9
    zhuhanqing/APOLLO                         76b34725abcbd45aa47d8fdf831c8b5ba6d34dde
    BorealisAI/flora-opt                      f329bbc1b6dd08f0d677d369f77ef8cfcae4fcef
    bytedance/coap                            deabc3a671f63f9a8b49066c925d9df6b260089e
    kyleliang919/Online-Subspace-Descent      e694775980036a62d2019957f075ff2c5c1c68ad
    IST-DASLab/ISTA-DASLab-Optimizers         4c98e6e7d8a51147cc8fdd77458baac881852b56
    nikhilvyas/SOAP                           a1e553530fde97d0e6b307d7c82ac6d38b072340
    facebookresearch/optimizers               f60660661194de26d3ee78bae6d15820ff8e583d
    Sike-Wang/low-bit-Shampoo                 fc46867b3afbc8e4f72a541475bb883ce94e8d4c

GaLore is the wheel of that version, unpacked in a folder GaLore.

Nothing of them is kept here but numbers. Their code runs as it is, except that it runs in float64 throughout: casts to
bfloat16 and float32 are taken out, buffers "on cuda" are on the CPU, and torch.compile is left away. A file holds
several cases: options, the parameters after 1 and after 20 steps of `problem`, and what else the method started from
or drew. "bases" are the projections, a list for every refresh and in it a matrix for every parameter, with as many
columns as the rank has: the low-rank gradient is G @ basis of a tall or square G, and basis.T @ G of a wide one.
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

TABLE = [line.split(maxsplit=1) for line in __doc__.splitlines() if line.startswith("    ")]
COMMITS = {repository: commit for repository, commit in TABLE if "/" in repository}
HERE = Path(__file__).parent
Params = list[nn.Parameter]
Options = dict[str, Any]

# What the official code imports and these runs do not use.
UNUSED = (
    "accelerate",
    "bitsandbytes",
    "bitsandbytes.functional",
    "coap_torch.projection.coap_high_order_tensor",
    "ista_daslab_optimizers.utils.newton_schulz_triton",
    "qtensor.cextension",
    "transformers",
    "transformers.utils",
    "transformers.utils.versions",
    "wandb",
)


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
        stack.enter_context(mock.patch.object(Tensor, "get_device", return_value="cpu"))
        stack.enter_context(mock.patch.object(torch, "compile", lambda f=None, **_: f or (lambda f: f)))
        stack.enter_context(mock.patch.object(torch.distributed, "all_gather_into_tensor", gather))
        torch.set_default_dtype(torch.float64)  # for hyper-parameters that the code makes tensors of
        try:
            yield
        finally:
            torch.set_default_dtype(torch.float32)


def load(source: Path, method: Method) -> Any:
    """The module, new for each case, so that builders may change it; of the packages around it no `__init__` runs."""
    folder = source / method.repository.rpartition("/")[2]
    names = Path(method.path).with_suffix("").parts
    for loaded in [name for name in sys.modules if name.partition(".")[0] == names[0]]:
        del sys.modules[loaded]
    for i in range(1, len(names)):
        package = types.ModuleType(".".join(names[:i]))
        package.__path__ = [str(folder.joinpath(*names[:i]))]
        sys.modules[package.__name__] = package
    sys.modules |= {name: mock.MagicMock() for name in UNUSED}
    with mock.patch.object(sys, "path", [str(folder), *sys.path]):
        return importlib.import_module(".".join(names))


def write_down(extra: Options, key: str, value: Tensor, params: Params) -> None:
    """Add a parameter's value to the list of this refresh, and begin the next list when this one has all parameters."""
    refreshes = extra.setdefault(key, [])
    if not refreshes or len(refreshes[-1]) == len(params):
        refreshes.append([])
    refreshes[-1].append(value.tolist())


def tall(x: Tensor) -> Tensor:
    return x if x.shape[0] >= x.shape[1] else x.T


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


def build_galore(module: Any, params: Params, options: Options, extra: Options) -> Any:
    """GaLore's AdamW and those made from it: options of the projection belong to the group. Writes the bases down."""
    projector = next(vars(module)[name] for name in ("GradientProjector", "GaLoreProjector") if name in vars(module))
    official = projector.get_orthogonal_matrix

    def get_orthogonal_matrix(*args: Any, **kwargs: Any) -> Tensor:
        matrix = official(*args, **kwargs)
        write_down(extra, "bases", tall(matrix), params)
        return matrix

    projector.get_orthogonal_matrix = get_orthogonal_matrix
    group = {name: value for name, value in options.items() if name in PROJECTION}
    others = {name: value for name, value in options.items() if name not in PROJECTION}
    names = [None] * len(params)  # that Online Subspace Descent logs under
    return module.AdamW([{"params": params, "names": names, **group}], no_deprecation_warning=True, **others)


def build_flora(module: Any, params: Params, options: Options, extra: Options) -> Any:
    """Write the bases down; they are drawn from their seeds again and again."""
    official, seen = module.stable_randn, set()

    def stable_randn(shape: tuple[int, int], seed: int, **kwargs: Any) -> Tensor:
        drawn = official(shape, seed=seed, **kwargs)
        if seed not in seen:
            seen.add(seed)
            write_down(extra, "bases", tall(drawn) / math.sqrt(options["rank"]), params)
        return drawn

    module.stable_randn = stable_randn
    return module.Flora(params, **options)


def build_coap(module: Any, params: Params, options: Options, extra: Options) -> Any:
    """Write down the matrix of each parameter's first sketch, drawn here as it is there."""
    projection = sys.modules[module.MatrixCOAP.__module__]
    official = projection.compute_orthogonal

    def compute_orthogonal(matrix: Tensor, rank: int, omega: Tensor | None = None) -> Tensor:
        if omega is None:
            omega = torch.randn(matrix.shape[1], rank, generator=torch.Generator().manual_seed(3407))
            extra.setdefault("omega", []).append(omega.tolist())
        return official(matrix, rank, omega)

    projection.compute_orthogonal = compute_orthogonal
    return module.AdamW(params, **options)


def build_trion(module: Any, params: Params, options: Options, extra: Options) -> Any:
    """One process, and the three names that the module uses and does not define."""
    module.device, module.dtype = "cpu", torch.float64
    module.get_dct_matrix = lambda size, key, device, dtype: module.GlobalCache.get("ortho", key)
    one = {"get_world_size": lambda: 1, "get_rank": lambda: 0, "all_gather": lambda tensor_list, tensor: None}
    module.dist = types.SimpleNamespace(**one)
    return module.Trion([{"params": params, "use_muon": True, **options}])


def build_dct_adamw(module: Any, params: Params, options: Options, extra: Options) -> Any:
    """Rotate states into new memory (theirs is the product's input and output at once); write the indices down."""
    projector = module.FFTLowRankProjector
    official = projector.change_subspace

    def change_subspace(self: Any, *args: Any, **kwargs: Any) -> Tensor:
        low = official(self, *args, **kwargs)
        write_down(extra, "indices", self.indices_crt, params)
        return low

    def rotate_subspace(self: Any, rotation: Tensor, state: Tensor) -> None:
        state.copy_(state @ rotation if self.is_right_proj else rotation @ state)

    projector.change_subspace, projector.rotate_subspace = change_subspace, rotate_subspace
    module.print = lambda *_: None
    return module.DCTAdamW(params, proj="dct", **options)


def build_soap(module: Any, params: Params, options: Options, extra: Options) -> Any:
    return module.SOAP(params, **options)


def build_shampoo(module: Any, params: Params, options: Options, extra: Options) -> Any:
    """The last options are of the preconditioner and of grafting; all roots in float64."""
    options = dict(options)
    known = sys.modules["distributed_shampoo.shampoo_types"]
    power, graft = options.pop("power"), options.pop("graft")
    preconditioner = known.RootInvShampooPreconditionerConfig(
        factor_matrix_dtype=torch.float64, inv_factor_matrix_dtype=torch.float64, inverse_exponent_override={2: power}
    )
    config = getattr(known, f"{graft}PreconditionerConfig") if graft else None
    rest = {"SGD": {}, "AdaGrad": {"epsilon": 1e-10}}.get(graft, {"beta2": options["betas"][1], "epsilon": 1e-8})
    return module.DistributedShampoo(
        params, preconditioner_config=preconditioner, grafting_config=config and config(**rest), **options
    )


def build_shampoo_4bit(module: Any, params: Params, options: Options, extra: Options) -> Any:
    return module.ShampooSGD(params, **options)


def scion_cases(norm: str, *more: Case, **norm_kwargs: Any) -> list[Case]:
    of_norm = {"norm": norm, "norm_kwargs": norm_kwargs}
    return [
        Case("constrained", {"lr": 0.05, "momentum": 0.1, "scale": 3.0, "unconstrained": False, **of_norm}),
        Case("unconstrained", {"lr": 0.05, "momentum": 0.5, "scale": 1.0, "unconstrained": True, **of_norm}),
        *more,
    ]


def dct_cases(name: str, options: Options) -> list[Case]:
    return [Case(name, options, ((6, 4), (4, 6))), Case(f"{name}, square", options, ((5, 5),))]


SOAP = {"lr": 0.05, "betas": (0.95, 0.95), "weight_decay": 0.0, "precondition_frequency": 10}
SHAMPOO = {
    "lr": 0.05,
    "betas": (0.0, 0.9),
    "epsilon": 1e-13,
    "precondition_frequency": 1,
    "start_preconditioning_step": 1,
    "max_preconditioner_dim": 8,
    "power": 0.25,
    "graft": "",
}
SHAMPOO_4BIT = {
    "lr": 0.05,
    "momentum": 0.9,
    "weight_decay": 0.0,
    "stat_compute_steps": 1,
    "prec_compute_steps": 1,
    "matrix_eps": 1e-13,
    "prec_bits": 32,
}
ADAMW = {"lr": 0.05, "betas": (0.9, 0.95), "weight_decay": 0.1}
PROJECTION = ("rank", "update_proj_gap", "proj_type", "scale", "alpha", "proj", "scale_type")
GALORE = {"lr": 0.05, "betas": (0.9, 0.999), "eps": 1e-12, "weight_decay": 0.0, "rank": 2, "proj_type": "std"}
RAW = {"eps": 1e-6, "correct_bias": False}
FAST = {**RAW, "betas": (0.8, 0.9)}
DECAY = {**RAW, "eps": 0.1, "weight_decay": 0.1}
APOLLO = {**GALORE, "proj": "random", "scale_type": "channel", "scale": 1.0}
MINI = {**APOLLO, **RAW, "rank": 1, "scale_type": "tensor", "scale": 128, "update_proj_gap": 200}
ONLINE = {**GALORE, "proj_type": "continuous"}
FLORA = {"lr": 0.05, "rank": 2, "beta1": 0.9, "kappa": 200, "weight_decay": 0.0, "scale_parameter": True}
COAP = {"lr": 0.05, "betas": (0.9, 0.999), "eps": 1e-12, "weight_decay": 0.0, "rank": 2, "scale": 1.0}
COAP_OFTEN = {**COAP, **FAST, "update_interval": 3, "reproject_factor": 100}
TRION = {"lr": 0.02, "momentum": 0.95, "weight_decay": 0.0, "rank": 2, "ns_type": "torch", "use_makhoul": False}
DCT = {"lr": 0.05, "weight_decay": 0.0, "rank": 2, "update_proj_gap": 1, "rotate_subspace": True}
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
    "galore": Method(
        "jiaweizzhao/GaLore",
        "galore_torch/adamw.py",
        build_galore,
        [
            Case("default", {**GALORE, "update_proj_gap": 200, "scale": 0.25}),
            Case("refreshed", {**GALORE, **FAST, "update_proj_gap": 5, "scale": 1.0}),
            Case("decay", {**GALORE, **DECAY, "update_proj_gap": 200, "scale": 0.25}),
            Case("reverse", {**GALORE, "proj_type": "reverse_std", "update_proj_gap": 5, "scale": 0.25}),
        ],
        "the SVD runs in float64; with reverse_std, bases are of the longer side: the low-rank gradient is basis.T @ G "
        "of a tall or square G, and G @ basis of a wide one",
    ),
    "fira": Method(
        "xichen-fy/Fira",
        "optimizer_torch/fira_adamw.py",
        build_galore,
        [
            Case("default", {**GALORE, **RAW, "update_proj_gap": 200, "alpha": 1.0}),
            Case("refreshed", {**GALORE, **FAST, "update_proj_gap": 5, "alpha": 1.0}),
            Case("corrected", {**GALORE, "update_proj_gap": 200, "alpha": 1.0}),
            Case("scaled", {**GALORE, **RAW, "update_proj_gap": 200, "alpha": 0.25}),
        ],
        "the SVD runs in float64",
    ),
    "apollo": Method(
        "zhuhanqing/APOLLO",
        "apollo_torch/apollo.py",
        build_galore,
        [
            Case("channel", {**APOLLO, **RAW, "update_proj_gap": 200}),
            Case("refreshed", {**APOLLO, **FAST, "update_proj_gap": 5}),
            Case("decay", {**APOLLO, **DECAY, "update_proj_gap": 5, "scale": 2.0}),
            Case("unlimited", {**APOLLO, "update_proj_gap": 5, "disable_nl": True}),
            Case("mini", {**MINI, "scale_front": False}),
            Case("mini front", {**MINI, "scale_front": True}),
        ],
        "projections are drawn in float64",
    ),
    "flora": Method(
        "BorealisAI/flora-opt",
        "flora_opt/optimizers/torch/flora.py",
        build_flora,
        [
            Case("default", FLORA),
            Case("refreshed", {**FLORA, "kappa": 5}),
            Case("decay", {**FLORA, "weight_decay": 0.1}),
            Case("no scale", {**FLORA, "scale_parameter": False}),
            Case("no momentum", {**FLORA, "beta1": None}),
        ],
        "projections are drawn in float64; a case without momentum has none",
    ),
    "coap": Method(
        "bytedance/coap",
        "coap_torch/optimizer/adamw.py",
        build_coap,
        [
            Case("default", {**COAP, "update_interval": 32, "reproject_factor": 2, "restore_state": False}),
            Case("updated", {**COAP_OFTEN, "restore_state": False}),
            Case("decay", {**COAP_OFTEN, **DECAY, "restore_state": False}),
        ],
        "omega, which a parameter's first sketch multiplies, is drawn in float64 from their seed, and has as many rows "
        "as the shorter side",
    ),
    "online_subspace_descent": Method(
        "kyleliang919/Online-Subspace-Descent",
        "galore_torch/adamw.py",
        build_galore,
        [
            Case("default", {**ONLINE, "update_proj_gap": 200, "scale": 0.25}),
            Case("decay", {**ONLINE, **FAST, **DECAY, "update_proj_gap": 20, "scale": 1.0}),
            Case(
                "schedule",
                {**ONLINE, "update_proj_gap": 20, "scale": 1.0},
                lr_factors=[1 - t / STEPS for t in range(STEPS)],
            ),
        ],
        "the SVD runs in float64; the bases are the first ones",
    ),
    "trion": Method(
        "IST-DASLab/ISTA-DASLab-Optimizers",
        "ista_daslab_optimizers/fft_low_rank/trion.py",
        build_trion,
        [
            Case("dion", {**TRION, "scaling_type": "dion"}),
            Case("kj", {**TRION, "scaling_type": "kj"}),
            Case("decay", {**TRION, "lr": 0.1, "momentum": 0.9, "weight_decay": 0.1, "scaling_type": "dion"}),
        ],
        "one process; device, dtype and get_dct_matrix, which the module uses and does not define, are given to it: "
        "the parameter's, and the matrix that trion_update has put into the cache",
    ),
    "dct_adamw": Method(
        "IST-DASLab/ISTA-DASLab-Optimizers",
        "ista_daslab_optimizers/fft_low_rank/dct_adamw.py",
        build_dct_adamw,
        [
            *dct_cases("rotated", {**DCT, "betas": (0.8, 0.9), "use_ef": False, "sim_type": "makhoul"}),
            *dct_cases("feedback", {**DCT, "use_ef": True, "sim_type": "makhoul"}),
            *dct_cases("decay", {**DCT, "eps": 0.1, "weight_decay": 0.1, "use_ef": True, "sim_type": "makhoul"}),
            *dct_cases("third type", {**DCT, "use_ef": False, "sim_type": "matmul"}),
        ],
        "states are rotated into new memory, where torch.matmul(w, R, out=w) loses them; matrices of a run have one "
        "shorter side, since the optimiser makes one DCT matrix; indices are the chosen columns, for each refresh "
        "and in it for each parameter, in the order in which torch.topk(sorted=False) gave them",
    ),
    "soap": Method(
        "nikhilvyas/SOAP",
        "soap.py",
        build_soap,
        [
            Case("default", SOAP, ((5, 5),)),
            Case("often", {**SOAP, "precondition_frequency": 2, "shampoo_beta": 0.8}, ((5, 5),)),
            Case("one side", {**SOAP, "precondition_frequency": 3, "max_precond_dim": 4}, ((6, 4), (4, 6))),
        ],
        "the first step moves nothing; sides longer than the gradient's rank, whose basis rounding makes, are left out",
    ),
    "shampoo": Method(
        "facebookresearch/optimizers",
        "distributed_shampoo/distributed_shampoo.py",
        build_shampoo,
        [
            Case("sum", {**SHAMPOO, "betas": (0.0, 1.0)}),
            Case("averaged", SHAMPOO),
            Case("squared", {**SHAMPOO, "power": 0.5, "graft": "SGD"}),
            Case("tiles", {**SHAMPOO, "max_preconditioner_dim": 3}),
            Case("adam", {**SHAMPOO, "graft": "Adam", "start_preconditioning_step": 4}),
            Case("rmsprop tiles", {**SHAMPOO, "graft": "RMSprop", "max_preconditioner_dim": 4}),
            Case("adagrad", {**SHAMPOO, "graft": "AdaGrad", "betas": (0.0, 1.0)}),
        ],
        "without momentum, which is kept before the roots and not behind them",
    ),
    "shampoo_4bit": Method(
        "Sike-Wang/low-bit-Shampoo",
        "optimizers/shampoo2.py",
        build_shampoo_4bit,
        [
            Case("every step", SHAMPOO_4BIT, ((5, 5),)),
            Case("tiles", {**SHAMPOO_4BIT, "prec_maxorder": 3, "momentum": 0.0}),
        ],
        "with 32 bits, as it quantises on a GPU alone; no sides longer than the gradient's rank, in whose kernel "
        "rounding chooses the basis",
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
