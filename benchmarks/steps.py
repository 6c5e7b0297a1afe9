"""Speed of optimisers' steps beside other libraries: the second half of docs/speed.md.

AdamW, Muon, Shampoo, SOAP and PSGD on the parameters of small language models and of LoRA adapters; no model is run.
Distributed Shampoo, which is on no package index, takes part where it can be imported (PYTHONPATH).

    python benchmarks/steps.py                 # an hour, half of it compilation by heavyball; writes docs/speed.*
    python benchmarks/steps.py --quick --output /tmp/speed.json          # a quarter of an hour
"""

from __future__ import annotations

import inspect
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest import mock

import speed_page
import torch
from harness import Effort, Library, Offers, Trial, arguments, measure
from parameters import MODELS, Pair, Parameters, parameters
from peers import alone
from torch import Tensor

LR = 1e-3
ADAM: dict[str, Any] = {"lr": LR, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.0}
MUON: dict[str, Any] = {"lr": LR, "momentum": 0.95, "weight_decay": 0.0}
QUICK = ("GPT 384 x 6", "LoRA 768 16")
SECOND = ("Shampoo", "SOAP", "PSGD")
"""Methods with roots, bases or factors of a side's size, to be renewed now and then."""
SMALL = ("GPT 384 x 6",)
"""Roots of larger matrices take minutes."""
PATIENCE = dict.fromkeys(("heavyball", "heavyball_in_float32"), 300.0)
"""Seconds for its compilation."""
SLOW = 20.0
"""Seconds of a first step, after which none is made to warm up."""
DISTRIBUTIONS = ("torch", "geoopt", "pytorch_optimizer", "heavyball", "galore-torch", "muon-optimizer", "optimuon",
                 "torch_optimizer", "torch-optimi")  # fmt: skip

Build = Callable[[Parameters, int], list[Any]]
"""Optimisers whose `step()`s together are a step, from parameters and the number of steps between roots."""
Table = dict[str, dict[str, Build]]
"""For each method the contenders."""
Exact = Callable[[Parameters], list[Tensor]]
"""What the first step of each matrix should be, up to its length; nothing where that is a matter of the method."""


@dataclass(frozen=True)
class Cell:
    """A method on a set of parameters."""

    method: str
    model: str
    every: int = 1
    """Steps between computations of roots, bases or factors."""

    def __str__(self) -> str:
        suffix = ", LoRA" if self.model.startswith("LoRA") else ""
        if self.method in SECOND:
            suffix = f", renewed every {self.every} step{'s'[: self.every - 1]}"
        return f"{self.method}{suffix} | {self.model}"


def cells() -> list[Cell]:
    return [
        *(Cell(method, model) for method in ("AdamW", "Muon") for model in MODELS),
        *(Cell(method, model, every) for method in SECOND for every in (1, 10) for model in SMALL),
    ]


# The libraries. -------------------------------------------------------------------------------------------------------


def fused(params: list[Any]) -> list[Any]:
    """torch's fastest AdamW, for what a library's Muon or Shampoo does not take."""
    return [torch.optim.AdamW(params, **ADAM, fused=True)] if params else []


@dataclass(frozen=True)
class Replaced:
    """An optimiser that steps with another function in the place of `owner.name`."""

    optimizer: Any
    owner: Any
    name: str
    function: Callable[..., Any]

    def step(self) -> None:
        with mock.patch.object(self.owner, self.name, self.function):
            self.optimizer.step()


def in_float32(optimizer: Any) -> Replaced:
    """Without the cast to bfloat16; a copy, as that is."""
    return Replaced(optimizer, Tensor, "bfloat16", Tensor.clone)


def torch_itself() -> Table:
    def adamw(**kind: bool) -> Build:
        return lambda p, every: [torch.optim.AdamW(p.all, **ADAM, **kind)]

    return {
        "AdamW": {
            "torch AdamW, for-loop": adamw(foreach=False, fused=False),
            "torch AdamW, foreach": adamw(foreach=True),
            "torch AdamW, fused": adamw(fused=True),
        },
        "Muon": {
            "torch Muon": lambda p, every: [torch.optim.Muon(p.matrices, **MUON), *fused(p.others)],
            "torch Muon, float32": lambda p, every: [
                in_float32(torch.optim.Muon(p.matrices, **MUON)),
                *fused(p.others),
            ],
        },
    }


def geoopt() -> Table:
    import geoopt as library

    return {"AdamW": {"geoopt RiemannianAdam": lambda p, every: [library.optim.RiemannianAdam(p.all, **ADAM)]}}


def galore() -> Table:
    from galore_torch import GaLoreAdamW

    return {"AdamW": {"galore-torch AdamW": lambda p, every: [GaLoreAdamW(p.all, **ADAM, no_deprecation_warning=True)]}}


def optimi() -> Table:
    import optimi as library

    return {"AdamW": {"optimi AdamW": lambda p, every: [library.AdamW(p.all, **ADAM, foreach=True)]}}


def pytorch_optimizer() -> Table:
    """Its AdamW is torch's; its Muon has the Gram matrix's iteration as an option."""
    import pytorch_optimizer as library
    from pytorch_optimizer.optimizer.muon import base

    def muon(**options: Any) -> Build:
        def build(p: Parameters, every: int) -> list[Any]:
            return [library.Muon([{"params": p.matrices, "use_muon": True}], **MUON, **options), *fused(p.others)]

        return build

    def single(name: str, **options: Any) -> Build:
        def build(p: Parameters, every: int) -> list[Any]:
            mine, *rest = muon(**options)(p, every)
            return [Replaced(mine, base, name, partial(getattr(base, name), dtype=torch.float32)), *rest]

        return build

    def shampoo(p: Parameters, every: int) -> list[Any]:
        mine = library.Shampoo(p.matrices, lr=LR, momentum=0.9, preconditioning_compute_steps=every)
        return [mine, *fused(p.others)]

    def scalable(p: Parameters, every: int) -> list[Any]:
        options = {"start_preconditioning_step": 1, "preconditioning_compute_steps": every}
        return [library.ScalableShampoo(p.matrices, lr=LR, **options), *fused(p.others)]

    def soap(p: Parameters, every: int) -> list[Any]:
        return [library.SOAP(p.matrices, lr=LR, precondition_frequency=every), *fused(p.others)]

    def kron(p: Parameters, every: int) -> list[Any]:
        return [library.Kron(p.matrices, lr=LR, pre_conditioner_update_probability=1 / every), *fused(p.others)]

    return {
        "AdamW": {"pytorch_optimizer StableAdamW": lambda p, every: [library.StableAdamW(p.all, **ADAM)]},
        "Muon": {
            "pytorch_optimizer Muon": muon(),
            "pytorch_optimizer Muon, Gram": muon(ns_method="gram_newton_schulz"),
            "pytorch_optimizer Muon, float32": single("zero_power_via_newton_schulz_5"),
            "pytorch_optimizer Muon, Gram, float32": single(
                "zero_power_via_gram_newton_schulz", ns_method="gram_newton_schulz"
            ),
        },
        "Shampoo": {"pytorch_optimizer Shampoo": shampoo, "pytorch_optimizer ScalableShampoo": scalable},
        "SOAP": {"pytorch_optimizer SOAP": soap},
        "PSGD": {"pytorch_optimizer Kron": kron},
    }


def heavyball() -> Table:
    """Compiled by torch.compile at the first step. Its Shampoo is KLShampoo."""
    import heavyball as library

    keep = {"consume_grad": False}
    adam = {**ADAM, **keep}

    def second(kind: Any) -> Build:
        def build(p: Parameters, every: int) -> list[Any]:
            options = {"precondition_frequency": every, "use_precond_schedule": False}
            return [kind(p.matrices, lr=LR, weight_decay=0.0, **options, **keep), *fused(p.others)]

        return build

    return {
        "AdamW": {"heavyball AdamW": lambda p, every: [library.AdamW(p.all, **adam)]},
        "Muon": {"heavyball Muon": lambda p, every: [library.Muon(p.matrices, **adam), *fused(p.others)]},
        "Shampoo": {"heavyball KLShampoo": second(library.KLShampoo)},
        "SOAP": {"heavyball SOAP": second(library.SOAP)},
    }


def heavyball_in_float32() -> Table:
    """The rounding to bfloat16 is compiled into its functions, and so is what stands in its place."""
    import heavyball as library

    library.utils.stochastic_round_ = lambda ref, source=None: ref if source is None else source.to(ref.dtype)
    build = heavyball()["Muon"]["heavyball Muon"]
    return {"Muon": {"heavyball Muon, float32": build}}


def muon_optimizer() -> Table:
    """Keller Jordan's own; its AdamW is a loop, so that all else goes to torch's here, too."""
    from muon import SingleDeviceMuonWithAuxAdam

    def mine(p: Parameters) -> Any:
        return SingleDeviceMuonWithAuxAdam([{"params": p.matrices, "use_muon": True, **MUON}])

    return {
        "Muon": {
            "muon-optimizer Muon": lambda p, every: [mine(p), *fused(p.others)],
            "muon-optimizer Muon, float32": lambda p, every: [in_float32(mine(p)), *fused(p.others)],
        }
    }


def optimuon() -> Table:
    """Without NorMuon's rescaling, which is its default and another method."""
    from optimuon import Muon

    def muon(**options: Any) -> Build:
        return lambda p, every: [Muon(p.matrices, **MUON, normuon=False, **options), *fused(p.others)]

    return {"Muon": {"optimuon Muon": muon(), "optimuon Muon, float32": muon(ns_dtype=torch.float32)}}


def torch_optimizer() -> Table:
    from torch_optimizer import Shampoo

    def build(p: Parameters, every: int) -> list[Any]:
        return [Shampoo(p.matrices, lr=LR, momentum=0.9, update_freq=every), *fused(p.others)]

    return {"Shampoo": {"torch_optimizer Shampoo": build}}


def distributed_shampoo() -> Table:
    """Meta's, on one device; with grafting it would do more."""
    from distributed_shampoo import DistributedShampoo
    from distributed_shampoo.shampoo_types import DefaultSOAPConfig

    def build(**more: Any) -> Build:
        def make(p: Parameters, every: int) -> list[Any]:
            options = {"precondition_frequency": every, "start_preconditioning_step": every, "epsilon": 1e-8, **more}
            return [DistributedShampoo(p.matrices, lr=LR, betas=(0.9, 0.95), **options), *fused(p.others)]

        return make

    whole = {"max_preconditioner_dim": 2048}
    return {
        "Shampoo": {"Distributed Shampoo": build(**whole), "Distributed Shampoo, tiles of 1024": build()},
        "SOAP": {"Distributed Shampoo SOAP": build(**whole, preconditioner_config=DefaultSOAPConfig)},
    }


def steepest() -> Table:
    """On LoRA pairs also as points of `FixedRank`, an optimiser's usual geometry for them here."""
    from steepest import PSGD, SOAP, Adam, AdamW, FixedRank, Muon, Shampoo, constrain, param_groups
    from steepest.norms import Spectral

    other = {f"adamw_{key}": value for key, value in ADAM.items()}

    def paired(p: Parameters, manifold: Any) -> Any:
        for pair in (m for m in p.module.modules() if isinstance(m, Pair)):
            constrain(pair, ("B", "A"), manifold)
        return param_groups(p.module)

    def groups(p: Parameters) -> Any:
        return param_groups(p.module) if p.others else p.matrices

    adamw: dict[str, Build] = {"steepest AdamW": lambda p, every: [AdamW(p.all, **ADAM)]}
    if "compile" in inspect.signature(AdamW).parameters:
        adamw["steepest AdamW, compile"] = lambda p, every: [AdamW(p.all, **ADAM, compile=True)]
    muon: dict[str, Build] = {
        "steepest Muon": lambda p, every: [Muon(groups(p), **MUON, **other)],
        "steepest Muon, quintic": lambda p, every: [Muon(groups(p), **MUON, **other, norm=Spectral("quintic"))],
    }
    for label, manifold in (("FixedRank", FixedRank()), ("FixedRank, turn", FixedRank(turn=0.03))):
        adamw[f"steepest Adam, {label}"] = lambda p, every, m=manifold: [Adam(paired(p, m), **ADAM)]
        muon[f"steepest Muon, {label}"] = lambda p, every, m=manifold: [Muon(paired(p, m), **MUON)]
    return {
        "AdamW": adamw,
        "Muon": muon,
        "Shampoo": {
            "steepest Shampoo": lambda p, every: [Shampoo(groups(p), lr=LR, every=every, **other)],
            "steepest Shampoo, tiles of 1024": lambda p, every: [
                Shampoo(groups(p), lr=LR, every=every, block=1024, **other)
            ],
        },
        "SOAP": {"steepest SOAP": lambda p, every: [SOAP(groups(p), lr=LR, every=every, **other)]},
        "PSGD": {"steepest PSGD": lambda p, every: [PSGD(groups(p), lr=LR, every=every, **other)]},
    }


# Trials. --------------------------------------------------------------------------------------------------------------


def opened(table: Callable[[], Table]) -> Callable[[Cell], Offers]:
    """The library in its process."""
    warnings.simplefilter("ignore")
    alone()
    contenders = table()

    def offers(cell: Cell) -> Offers:
        return {
            name: partial(trial, build, cell, none if "FixedRank" in name else EXACT[cell.method])
            for name, build in contenders.get(cell.method, {}).items()
            if "FixedRank" not in name or cell.model.startswith("LoRA")
        }

    return offers


def trial(build: Build, cell: Cell, exact: Exact) -> Trial:
    """Steps until the roots are due again. The first ones, in which libraries compile and allocate, are evidence."""
    p = parameters(cell.model)
    target = exact(p)  # some libraries write into the gradients
    optimizers = build(p, cell.every)

    def step() -> None:
        for optimizer in optimizers:
            optimizer.step()

    def evidence() -> dict[str, float]:
        before, start = [x.detach().clone() for x in p.matrices], time.perf_counter()
        for _ in range(1 if target else 2):  # some only look at their first gradient
            step()
        slow = time.perf_counter() - start > SLOW
        moves = [(a - x.detach()).double() for a, x in zip(before, p.matrices, strict=True)]
        if not all(m.isfinite().all() and m.any() for m in moves):
            raise ArithmeticError("a matrix that has not moved, or not to a finite one")
        if not slow:
            step()
        found = {"direction": _towards(moves, target)} if target else {}
        return found | ({"spread": _spread(moves)} if target is p.polar else {})

    def call() -> None:
        for _ in range(cell.every):
            step()

    return Trial(call, evidence, cell.every)


def _towards(moves: list[Tensor], exact: list[Tensor]) -> float:
    """The mean of 1 - cos."""
    cosines = [(m * e).sum() / m.norm() / e.double().norm() for m, e in zip(moves, exact, strict=True)]
    return float(f"{1 - torch.stack(cosines).mean().item():.2g}")


def _spread(moves: list[Tensor]) -> float:
    """The largest singular value over the smallest, of the worst matrix."""
    short = [m if m.shape[0] < m.shape[1] else m.mT for m in moves]
    values = [torch.linalg.eigvalsh(m @ m.mT).clamp_min(0).sqrt() for m in short]
    return float(f"{max((s[-1] / s[0]).item() for s in values):.3g}")


def adam_direction(p: Parameters) -> list[Tensor]:
    """A first step is g / (|g| + eps)."""
    return [x.grad.double() / (x.grad.double().abs() + ADAM["eps"]) for x in p.matrices if x.grad is not None]


def none(p: Parameters) -> list[Tensor]:
    """The libraries' Shampoos are different methods, and so are steps of pairs."""
    return []


EXACT: dict[str, Exact] = {"AdamW": adam_direction, "Muon": lambda p: p.polar, **dict.fromkeys(SECOND, none)}
TABLES = (torch_itself, geoopt, galore, optimi, pytorch_optimizer, heavyball, heavyball_in_float32, muon_optimizer,
          optimuon, torch_optimizer, distributed_shampoo, steepest)  # fmt: skip
LIBRARIES: dict[str, Library] = {table.__name__: partial(opened, table) for table in TABLES}


def judge(cell: Cell, evidence: dict[str, float]) -> dict[str, Any]:
    return dict(evidence)


def main() -> None:
    options = arguments(__doc__ or "")
    effort = Effort(3, 0.01, 60, PATIENCE) if options.quick else Effort(limit=120, patience=PATIENCE)
    chosen = [c for c in cells() if options.only in str(c) and (not options.quick or c.model in QUICK)]
    measure("steps", options, effort, chosen, LIBRARIES, judge, DISTRIBUTIONS)
    speed_page.write(options.output)


if __name__ == "__main__":
    main()
