"""Write the numbers that official preconditioners of layers give, one JSON per method, into the folder layers.

    python tests/oracles/reference/make_layers.py --source DIR

DIR holds clones of these repositories, each in a folder of its own name:

    f-dangel/singd                           1ac69a3590e7b1fa30515f2f6f92d14b8b82348f
    yorkerlin/StructuredNGD-DL               288b20cae250dd1b0f885133130139ec17023326
    Mohammad-Mozaffari/mkor                  3a0e3bb2df346851569e98799d0f340556bad811

Nothing of them is kept but numbers. They run as they are, but in float64 and on the CPU. SINGD's block-diagonal
matrices take K for its own transpose, as if it stayed symmetric, which it does not: here they transpose. Full
triangular matrices, which its code has not, are a class in its interface. A file holds several cases: options, the
network of layers_problem.py, and its parameters after the last step.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from layers_problem import LR, network, run
from make import Method, float64, load

HERE = Path(__file__).parent
TABLE = [line.split() for line in __doc__.splitlines() if line.startswith("    ")]
COMMITS = {words[0]: words[1] for words in TABLE if len(words) == 2}
Options = dict[str, Any]

SINGD: dict[str, tuple[str, Options]] = {
    **{
        name: ("vectors", {"structures": [name, name]})
        for name in ("dense", "diagonal", "block", "lower", "upper", "triltoeplitz", "triutoeplitz", "hierarchical")
    },
    "arrow": ("vectors", {"structures": ["arrow", "arrow"]}),
    "mixed": ("vectors", {"structures": ["diagonal", "dense"]}),
    "ikfac": ("vectors", {"kfac_like": True, "alpha1": 0.0}),
    "normalized": ("vectors", {"normalize_lr_cov": True, "lr_cov": 0.5}),
    "sum": ("vectors", {"loss_average": None, "lr_cov": 0.01}),
    "sequences": ("sequences", {}),
    "tokens": ("sequences", {"loss_average": "batch+sequence", "lr_cov": 0.01}),
    "images": ("images", {"lr_cov": 0.01}),
}
LOCAL: dict[str, tuple[str, Options]] = {
    "faster": ("vectors", {"faster": True}),
    "standard": ("vectors", {"faster": False, "beta2": 0.9}),
}
MKOR: dict[str, tuple[str, Options]] = {
    "vectors": ("unbiased", {"inv_freq": 2}),
    "often": ("unbiased", {"inv_freq": 1}),
}


def singd(source: Path, case: str, options: Options) -> list[list[float]]:
    """SINGD with its own SGD."""
    sys.modules["einconv"] = mock.MagicMock()
    sys.modules["einconv.utils"] = mock.MagicMock()
    module = load(source, Method("f-dangel/singd", "singd/optim/optimizer.py", print, []))
    names = ("base", "blockdiagonal", "diagonal", "hierarchical", "triltoeplitz", "triutoeplitz", "triubottomrightdiag")
    parts = {name: __import__(f"singd.structures.{name}", fromlist=["x"]) for name in names}
    for part in parts.values():
        if hasattr(part, "lowest_precision"):
            part.lowest_precision = lambda *dtypes: torch.float64
    known = module.SINGD.SUPPORTED_STRUCTURES
    known["block"] = transposing(parts["blockdiagonal"].Block3DiagonalMatrix)
    known["hierarchical"] = parts["hierarchical"].Hierarchical3_2Matrix
    known["arrow"] = parts["triubottomrightdiag"].TriuBottomRightDiagonalMatrix
    known["lower"], known["upper"] = triangular(parts["base"].StructuredMatrix)
    model = network(case)
    defaults = {"lr": LR, "momentum": 0.0, "T": 2, "lr_cov": 0.05, "damping": 1e-2}
    optimizer = module.SINGD(model, **{**defaults, **options})
    return run(case, model, lambda _: optimizer.step())


def transposing(base: Any) -> Any:
    """Block-diagonal matrices that need not be symmetric."""

    class Block(base):
        def rmatmat(self, mat: Any) -> Any:
            return type(self)(self._blocks.mT, self._last.T) @ mat

        def from_inner(self, X: Any = None) -> Any:
            return self.from_mat_inner(self.rmatmat(torch.eye(*self.shape) if X is None else X))

    return Block


def triangular(base: Any) -> tuple[Any, Any]:
    """Lower and upper triangular matrices in their interface, with their rule for a half of a symmetric matrix."""

    class Lower(base):
        WARN_NAIVE = False

        def __init__(self, mat: Any) -> None:
            super().__init__()
            self.register_tensor(mat, "_mat")

        @classmethod
        def from_dense(cls, mat: Any) -> Any:
            return cls(mat.tril() + mat.triu(1).T)

        def to_dense(self) -> Any:
            return self._mat

    class Upper(Lower):
        @classmethod
        def from_dense(cls, mat: Any) -> Any:
            return cls(mat.triu() + mat.tril(-1).T)

    return Lower, Upper


def local(source: Path, case: str, options: Options) -> list[list[float]]:
    """INGD in the code of its paper; its gradients are scaled by hooks that its script turns on."""
    sys.modules["ipdb"] = mock.MagicMock()
    module = load(source, Method("yorkerlin/StructuredNGD-DL", "optimizers/local_cov.py", print, []))
    eye = torch.eye
    model = network(case)
    optimizer = module.LocalOptimizer(
        model, lr=LR, momentum=0.0, weight_decay=0.0, damping=1e-2, TCov=2, TInv=2, **options
    )
    optimizer.acc_stats = True
    with mock.patch.object(torch, "eye", lambda n, device=None: eye(n)):
        return run(case, model, lambda _: optimizer.step())


def mkor(source: Path, case: str, options: Options) -> list[list[float]]:
    """MKOR with torch's SGD, from the identity: it has the factors that its first update would make, which throws the
    means away."""
    module = load(source, Method("Mohammad-Mozaffari/mkor", "mkor/mkor.py", print, []))
    model = network(case)
    model.device = "cpu"
    optimizer = module.MKOR(model, half_precision=False, lr=LR, optimizer="sgd", **options)
    optimizer.data_type = torch.float64
    for flags, factors, sides in (
        (optimizer.a_reset_factor, optimizer.AA_inv, [m.weight.shape[1] for m in optimizer.modules]),
        (optimizer.g_reset_factor, optimizer.GG_inv, [m.weight.shape[0] for m in optimizer.modules]),
    ):
        flags[:] = [False] * len(flags)
        factors[:] = [torch.eye(n) for n in sides]
    return run(case, model, lambda _: optimizer.step())


FILES: dict[str, tuple[str, Callable[..., Any], dict[str, tuple[str, Options]]]] = {
    "singd": ("f-dangel/singd", singd, SINGD),
    "local_cov": ("yorkerlin/StructuredNGD-DL", local, LOCAL),
    "mkor": ("Mohammad-Mozaffari/mkor", mkor, MKOR),
}


def main() -> None:
    """Write every file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True)
    source = parser.parse_args().source
    warnings.simplefilter("ignore")  # that their triangular matrices are slow
    for name, (repository, build, cases) in FILES.items():
        written = []
        for label, (case, options) in cases.items():
            with float64():
                final = build(source, case, options)
            written.append({"name": label, "network": case, "options": options, "final": final})
        content = {"repository": repository, "commit": COMMITS[repository], "cases": written}
        (HERE / "layers" / f"{name}.json").write_text(json.dumps(content) + "\n")
        print(name, len(written))


if __name__ == "__main__":
    main()
