"""Faults of PEFT 0.21's own layers, beside ours on the same task.

Ours has to pass. Each test then shows the fault, and is skipped with a message once PEFT has mended it.
"""

import copy
from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.utils.flop_counter import FlopCounterMode

pytest.importorskip("peft")

import peft

from steepest.adapters import HRAConfig, LOFTConfig

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft")


def mended(what):
    pytest.skip(f"PEFT has mended this: {what}")


def net(n=24):
    torch.manual_seed(0)
    return nn.Sequential(OrderedDict(lin=nn.Linear(n, n, bias=False)))


def random(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def turn(model):
    """M of the only layer, W' = W M, from what the layer makes of the unit vectors."""
    w = model.base_model.model[0].base_layer.weight.double()
    return torch.linalg.solve(w, model(torch.eye(w.shape[1])).T.double()).detach()


def filled(model, scale, seed=1):
    """Everything that is trained random, with entries of that scale."""
    for p in (p for p in model.parameters() if p.requires_grad):
        p.data = scale * random(*p.shape, seed=seed)
    return model


def unlike_orthogonal(m):
    return torch.linalg.matrix_norm(m.mT @ m - torch.eye(len(m), dtype=m.dtype)).item()


def test_two_ways_to_one_rotation():
    """Solve and series are one rotation, orthogonal however far it turns; PEFT's OFT gives two that are inverse to each
    other, and a series of five terms that is no rotation at entries of 0.4."""

    def ours(rotation, scale):
        config = LOFTConfig(r=None, support="coordinates", block=8, rotation=rotation, target_modules=["lin"])
        return turn(filled(peft.get_peft_model(net(), config), scale))

    def theirs(neumann, scale):
        config = peft.OFTConfig(oft_block_size=8, use_cayley_neumann=neumann, target_modules=["lin"])
        return turn(filled(peft.get_peft_model(net(), config), scale))

    for scale in (0.02, 0.4):
        solve, series = ours("cayley", scale), ours("cayley-neumann", scale)
        assert torch.dist(solve, series) < 1e-3  # float32, and the solve of a weight of condition some hundreds
        assert unlike_orthogonal(series) < 1e-3

    solve, series = theirs(False, 0.02), theirs(True, 0.02)
    if torch.dist(solve, series) < 1e-2:
        mended("OFT turns the same way with use_cayley_neumann=True and False")
    assert torch.dist(solve, series.T) < 1e-2 < 0.1 * torch.dist(solve, series)
    if unlike_orthogonal(theirs(True, 0.4)) < 0.1:
        mended("OFT's series stays orthogonal")


def test_reload_where_singular_vectors_have_other_signs(tmp_path, monkeypatch):
    """Ours is found again; PSOFT, which saves the core alone, becomes another adapter, as far off as it is large."""
    original = torch.linalg.svd
    x = random(8, 24)

    def other_signs(a, *args, **kwargs):
        u, s, vh = original(a, *args, **kwargs)
        signs = 1 - 2 * (torch.arange(len(s)) % 2).to(vh)
        return (
            torch.cat([u[:, : len(s)] * signs, u[:, len(s) :]], 1),
            s,
            torch.cat([signs[:, None] * vh[: len(s)], vh[len(s) :]]),
        )

    def error(config):
        model = filled(peft.get_peft_model(net(), config), 0.3)
        y = model(x)
        folder = tmp_path / type(config).__name__
        model.save_pretrained(folder)
        with monkeypatch.context() as patch:
            patch.setattr(torch.linalg, "svd", other_signs)
            patch.setattr("steepest.adapters.loft.BASES", {"principal": lambda s, r: other_signs(s.weight)[2][:r].T})
            loaded = peft.PeftModel.from_pretrained(net(), folder)
        return (torch.dist(loaded(x), y) / torch.dist(y, net()(x))).item()

    assert error(LOFTConfig(r=6, scales=True, target_modules=["lin"])) < 1e-5
    if error(peft.PsoftConfig(r=6, target_modules=["lin"], psoft_svd="full")) < 1e-2:
        mended("PSOFT finds its singular vectors again")


def test_reflections_without_a_square_matrix():
    """The same output from two thin products, where PEFT's HRA multiplies out a square matrix on every call."""
    n, r, rows = 256, 4, 16
    theirs = peft.get_peft_model(net(n), peft.HRAConfig(r=r, target_modules=["lin"]))
    ours = peft.get_peft_model(net(n), HRAConfig(r=r, target_modules=["lin"]))
    vectors, x = random(n, r), random(rows, n)
    theirs.base_model.model[0].hra_u["default"].data = vectors.clone()
    ours.base_model.model[0].steepest_hra_u["default"].data = vectors.clone()
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-4, rtol=1e-4)

    def cost(model):
        with FlopCounterMode(display=False) as counter:
            model(x)
        return counter.get_total_flops() / (2 * rows * n * n)  # of the layer alone

    assert cost(ours) < 1.2
    if cost(theirs) < 2:
        mended("HRA needs no square matrix")


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight

    def right_inverse(self, weight):
        return weight / 2


def test_merge_where_the_weight_is_parametrised():
    """Merged, or refused where no weight gives it; PEFT writes into a tensor that is made anew on the next call."""
    x = random(4, 24)

    def made(config, parametrization=Doubled):
        base = net()
        parametrize.register_parametrization(base[0], "weight", parametrization())
        return peft.get_peft_model(base, config)

    model = filled(made(LOFTConfig(r=6, target_modules=["lin"])), 0.3)
    y = model(x)
    for _ in range(2):
        model.merge_adapter()
        torch.testing.assert_close(model(x), y, atol=1e-5, rtol=1e-5)
        model.unmerge_adapter()
        torch.testing.assert_close(model(x), y, atol=1e-5, rtol=1e-5)

    class Symmetric(nn.Module):  # from which no other weight can come
        def forward(self, weight):
            return weight.triu() + weight.triu(1).mT

    model = filled(made(LOFTConfig(r=6, target_modules=["lin"]), Symmetric), 0.3)
    y = model(x)
    with pytest.raises(ValueError, match="made by a parametrisation"):
        model.merge_adapter()
    assert torch.equal(model(x), y)

    theirs = filled(made(peft.LoraConfig(r=6, target_modules=["lin"])), 0.3)
    y = theirs(x)
    merged = copy.deepcopy(theirs)
    merged.merge_adapter()
    if torch.dist(merged(x), y) < 1e-3:
        mended("LoRA merges into a weight that is parametrised")
