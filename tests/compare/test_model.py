"""The model: causal, deterministic, and sorted as it should be."""

import pytest
import torch

from steepest import param_groups
from steepest.compare import measure
from steepest.compare.geometry import apply
from steepest.compare.model import GPT, kind, projections


def make(vocabulary: int = 30, seed: int = 0) -> GPT:
    torch.manual_seed(seed)
    return GPT(vocabulary, width=16, layers=2, heads=2, context=12)


def test_no_character_sees_those_after_it():
    tokens = torch.randint(30, (2, 12))
    changed = tokens.clone()
    changed[:, 7] = (changed[:, 7] + 1) % 30
    model = make()
    before, after = model(tokens), model(changed)
    torch.testing.assert_close(before[:, :7], after[:, :7])
    assert (before[:, 7:] - after[:, 7:]).abs().amin((0, 2)).max() > 0
    assert (before[:, 11] - after[:, 11]).abs().max() > 1e-6  # and those after it do see it


def test_positions_matter_only_by_their_distance():
    model = make()
    x = torch.randn(1, 2, 12, 8)
    half = torch.arange(12)
    from steepest.compare.model import _rotate

    turned = _rotate(x[:, :, :1].expand(-1, -1, 12, -1), model.cos, model.sin)
    scores = turned @ turned.mT  # of one vector with itself, at all pairs of places
    for distance in half[1:]:
        diagonal = scores.diagonal(int(distance), -2, -1)
        torch.testing.assert_close(diagonal, diagonal[..., :1].expand_as(diagonal))
    assert (scores.diagonal(1, -2, -1)[..., 0] - scores.diagonal(5, -2, -1)[..., 0]).abs().max() > 1e-3


def test_equal_seeds_give_equal_models():
    same, other = make(seed=3), make(seed=4)
    for a, b, c in zip(make(seed=3).parameters(), same.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        assert a.ndim < 2 or not torch.equal(a, c)


@pytest.mark.parametrize("vocabulary", [16, 30, 64])  # 16 and 64 are the sizes of layers of this model
def test_head_and_embedding_alone_are_left_to_adamw(vocabulary):
    model = make(vocabulary)
    role = {name: group["role"] for group in param_groups(model) for name in group["param_names"]}
    for name, p in model.named_parameters():
        assert (role[name] == "matrix") == (kind(name, p) == "matrix")
    assert sum(r == "matrix" for r in role.values()) == 2 * 6


def test_geometry_puts_the_weights_on_their_manifolds():
    model = apply("orthogonal", make())
    for weight in projections(model):
        torch.testing.assert_close(weight.mT @ weight, torch.eye(16), rtol=0, atol=1e-5)
    torch.testing.assert_close(model.embedding.weight.norm(dim=1), torch.ones(30))
    assert measure.condition(model) == pytest.approx(1, abs=1e-4)
    assert measure.condition(make()) > 3


def test_update_rms_is_told_by_kind():
    model = make()
    before = measure.copies(model)
    with torch.no_grad():
        model.head.weight += 0.5
        model.blocks[0].attention.q.weight -= 2.0
    found = measure.update_rms(model, before)
    matrices = sum(p.numel() for n, p in model.named_parameters() if kind(n, p) == "matrix")
    assert found["head"] == pytest.approx(0.5, rel=1e-5)
    assert found["matrix"] == pytest.approx(2 * (16 * 16 / matrices) ** 0.5, rel=1e-5)
    assert found["embedding"] == found["other"] == 0
