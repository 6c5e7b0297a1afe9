"""Write the numbers that PSGD's official code gives, one JSON per preconditioner, into the folder psgd.

    python tests/oracles/reference/make_psgd.py --source DIR

DIR holds a clone of

    lixilinx/psgd_torch    a8616f1d802136159793419ed382cd2ba8fb91dd

in a folder of that name. It needs opt_einsum. Nothing of it is kept but numbers. It runs as it is, in float64, each
parameter by itself, but that what it draws are the numbers of psgd_draws.py, and that XMat does not damp: its rule is
another than that of the newer preconditioners. A file holds several cases: options, shapes, and the parameters after 1
and after 20 steps of `problem`.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from problem import MATRICES, problem, trace
from psgd_draws import fraction, numbers
from torch import Tensor, nn

HERE = Path(__file__).parent
COMMIT = "a8616f1d802136159793419ed382cd2ba8fb91dd"
Options = dict[str, Any]

DENSE = {"preconditioner_max_skew": 10.0}
DIAGONAL = {"preconditioner_max_size": 3}
MOMENTUM = {"momentum": 0.9}
KRON = {
    "both": DENSE | MOMENTUM,
    "one": {"preconditioner_max_skew": 1.0},
    "none": DIAGONAL,
    "momentum": {"whiten_grad": False, "lr_preconditioner": 0.2, "betaL": 0.5, "preconditioner_init_scale": 0.5}
    | DENSE
    | MOMENTUM,
}
FILES: dict[str, tuple[str, str, Options, dict[str, Options]]] = {
    "kron_eq": ("psgd", "KronWhiten", {"dQ": "EQ"}, KRON),
    "kron_q0.5eq1.5": ("psgd", "KronWhiten", {"dQ": "Q0.5EQ1.5"}, KRON),
    "kron_quad": ("psgd", "KronWhiten", {"dQ": "QUAD"}, {key: KRON[key] for key in ("both", "none")}),
    "low_rank": (
        "psgd",
        "LRAWhiten",
        {},
        {"rank 3": {"rank_of_approximation": 3} | MOMENTUM, "rank 1": {"rank_of_approximation": 1}},
    ),
    "cross": (
        "preconditioned_stochastic_gradient_descent",
        "XMat",
        {"preconditioner_type": "whitening"},
        {"default": {}, "slow": {"lr_preconditioner": 0.02, "preconditioner_init_scale": 0.5}},
    ),
}
"""Each file's module, class, options of all cases, cases."""
LR = 0.1


class Draws:
    """The calls of one step, in order."""

    def __init__(self) -> None:
        self.step, self.call = -1, 0

    def begin(self, step: int) -> None:
        self.step, self.call = step, 0

    def randn(self, *shape: Any, **_: Any) -> Tensor:
        self.call += 1
        return numbers(self.step, self.call - 1, shape)

    def rand(self, _: Any) -> Tensor:
        return torch.tensor(fraction(self.step))

    @contextlib.contextmanager
    def instead(self) -> Iterator[None]:
        with (
            mock.patch.object(torch, "randn", self.randn),
            mock.patch.object(torch, "randn_like", lambda x: self.randn(*x.shape)),
            mock.patch.object(torch, "rand", self.rand),
            contextlib.redirect_stdout(io.StringIO()),
        ):
            yield


class Stepped:
    """An optimiser whose step takes a closure, as one that takes `.grad`."""

    def __init__(self, official: Any, param: nn.Parameter) -> None:
        self.official, self.param = official, param

    def step(self) -> None:
        self.official.step(lambda: (self.param * self.param.grad).sum())


def run(module: Any, name: str, shape: tuple[int, ...], options: Options) -> dict[int, list[Tensor]]:
    (param,), gradients = problem([list(shape)])
    draws = Draws()
    options = {"preconditioner_init_scale": None, "lr_params": LR, **options}
    with draws.instead():
        official = getattr(module, name)([param], **options)
        return trace([param], gradients, Stepped(official, param), draws.begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="folder of the clone")
    sys.path.insert(0, str(parser.parse_args().source / "psgd_torch"))
    torch.set_default_dtype(torch.float64)
    (HERE / "psgd").mkdir(exist_ok=True)
    for file, (path, name, common, cases) in FILES.items():
        module = importlib.import_module(path)
        module.damped_pair_vg = lambda g: (torch.randn_like(g), g)
        content: dict[str, Any] = {"repository": "lixilinx/psgd_torch", "commit": COMMIT, "class": name, "cases": []}
        for case, options in cases.items():
            traces = [run(module, name, shape, common | options) for shape in MATRICES]
            after = {f"after_{step}": [t[step][0].tolist() for t in traces] for step in traces[0]}
            content["cases"].append({"name": case, "options": common | options, "shapes": MATRICES, **after})
        (HERE / "psgd" / f"{file}.json").write_text(json.dumps(content) + "\n")


if __name__ == "__main__":
    main()
