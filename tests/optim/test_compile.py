"""`compile=True` makes the same steps, and compiles once."""

import shutil

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from steepest import SOAP, SPD, Adam, Conda, FixedRank, Stiefel, constrain, param_groups, testing

pytestmark = pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++", "c++"))), reason="torch.compile needs a C++ compiler on a CPU"
)


class Model(nn.Module):
    """Two LoRA-like pairs, or besides them an orthonormal weight, a plain one and a positive definite matrix."""

    def __init__(self, pairs_only):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.B, self.A = (nn.Parameter(torch.randn(s, generator=generator)) for s in ((6, 2), (2, 5)))
        self.C, self.D = (nn.Parameter(torch.randn(s, generator=generator)) for s in ((6, 2), (2, 5)))
        constrain(self, ("B", "A"), FixedRank())
        constrain(self, ("C", "D"), FixedRank())
        if pairs_only:
            return
        self.Q = nn.Parameter(torch.linalg.qr(torch.randn(6, 3, generator=generator))[0])
        self.W = nn.Parameter(torch.randn(4, 3, generator=generator))
        self.P = nn.Parameter(torch.eye(3))
        constrain(self, "Q", Stiefel())
        constrain(self, "P", SPD())

    def run(self, optimizer, steps, after=lambda: None):
        """A few steps of a schedule on a quadratic."""
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.9**step)
        for _ in range(steps):
            optimizer.zero_grad()
            loss = sum(((p - 0.3) ** 2).sum() for p in self.parameters())
            loss.backward()
            optimizer.step()
            scheduler.step()
            after()


@pytest.mark.parametrize(
    ("family", "pairs_only"),
    [(Adam, True), *(pytest.param(f, False, marks=pytest.mark.slow) for f in testing.optimizers().values())],
)
def test_compiled_steps_are_the_same_and_compiled_once(family, pairs_only):
    eager, compiled = Model(pairs_only), Model(pairs_only)
    eager.run(family(param_groups(eager), lr=0.01), 5)
    graphs = []
    optimizer = family(param_groups(compiled), lr=0.01, compile=True)
    compiled.run(optimizer, 5, lambda: graphs.append(counters["stats"]["unique_graphs"]))
    assert 0 < graphs[1] == graphs[-1], "compiled anew when only lr and the step number had changed"
    for (name, p), q in zip(eager.named_parameters(), compiled.parameters(), strict=True):
        if family in (Conda, SOAP) and name == "Q":
            continue  # singular values of a skew block come in pairs, and then its basis is a matter of rounding
        torch.testing.assert_close(p, q, rtol=0, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")  # float32
