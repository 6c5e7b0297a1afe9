"""Optimisers with options, as the command line spells them."""

import pytest

import steepest
from steepest.compare.methods import methods
from steepest.compare.settings import Settings
from steepest.compare.variants import Variant
from steepest.runs.errors import UserError


def test_options_reach_the_optimizer():
    text = "galore:rank=0.125+moved=rotate+betas=(0.8,0.9)"
    variant = Variant(text)
    assert variant.optimizer is steepest.GaLore
    assert variant.options == {"rank": 0.125, "moved": "rotate", "betas": (0.8, 0.9)}
    assert Variant("galore:rank=2").name == "GaLore, rank 2"
    assert Variant("muon").name == "Muon"


def test_each_variant_is_a_method_of_its_own():
    names = ["adamw", "galore:rank=1", "galore:rank=2"]
    chosen = methods(Settings(optimizers=names, width=16, heads=2, tokens=4096).checked())
    assert [m.name for m in chosen] == ["AdamW", "GaLore, rank 1", "GaLore, rank 2"]
    assert len({m.key for m in chosen}) == 3
    ranks = [m.build(_model(), 0.1, Settings()) for m in chosen[1:]]
    assert [o.param_groups[0]["rank"] for o in ranks] == [1, 2]


def _model():
    import torch

    return torch.nn.Linear(4, 4)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("galor:rank=2", "galore"),
        ("galore:ranks=2", "rank"),
        ("galore:rank", "is no option"),
        ("galore:", "is no option"),
        ("galore:lr=2", "rank"),
    ],
)
def test_mistakes_are_named(text, words):
    with pytest.raises(UserError, match=words):
        Variant(text).check()
