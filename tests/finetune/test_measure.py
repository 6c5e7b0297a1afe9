"""Measurements against dense linear algebra."""

import pytest
import torch
from torch import nn

from steepest.finetune import measure
from steepest.finetune.scores import Scores
from steepest.runs.optimizers import state_bytes


def pair(m: int = 9, n: int = 7, r: int = 3) -> measure.Pair:
    return torch.randn(m, r, dtype=torch.float64), torch.randn(r, n, dtype=torch.float64)


def test_condition_numbers_are_those_of_the_dense_factors():
    b, a = pair()
    found = measure.condition_numbers([(b, a)])
    assert found[0][0] == pytest.approx(torch.linalg.cond(b).item())
    assert found[1][0] == pytest.approx(torch.linalg.cond(a).item())
    assert measure.condition_numbers([(b * 0, a)])[0] == [None]


@pytest.mark.parametrize("size", [1.0, 1e-7])
def test_stable_rank_is_that_of_the_dense_change(size):
    before = pair()
    after = tuple(x + size * torch.randn_like(x) for x in before)
    change = torch.linalg.multi_dot(measure.change(before, after))
    dense = torch.linalg.svdvals(after[0] @ after[1] - before[0] @ before[1])
    expected = (dense.square().sum() / dense[0].square()).item()
    assert measure.stable_ranks([before], [after])[0] == pytest.approx(expected, rel=1e-6)
    torch.testing.assert_close(change, after[0] @ after[1] - before[0] @ before[1])


def test_no_change_has_no_stable_rank():
    before = pair()
    assert measure.stable_ranks([before], [before]) == [None]
    assert measure.spread([None]) is None
    assert measure.spread([3.0, None, 1.0, 2.0]) == [1.0, 2.0, 3.0]


def test_state_bytes():
    layer = nn.Linear(4, 4, bias=False)
    optimizer = torch.optim.AdamW(layer.parameters())
    assert state_bytes(optimizer) == 0
    layer(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    assert state_bytes(optimizer) == 2 * 16 * 4 + 4  # two moments and a step counter


def test_bootstrap_interval_matches_the_standard_error():
    values = torch.randn(400, dtype=torch.float64).tolist()
    scores = Scores({"m": sum(values) / 400}, values, [], [])
    low, high = scores.interval()
    half = 1.96 * torch.tensor(values).std().item() / 20
    assert low == pytest.approx(scores.headline - half, abs=0.15 * half)
    assert high == pytest.approx(scores.headline + half, abs=0.15 * half)
    assert scores.gain(scores) == (0.0, 0.0, 0.0)


def test_probes_of_layers_in_both_layouts_and_of_no_embedding():
    """GPT-2's layers have weights `(in, out)`; singular values by torch's decomposition, 1e-6 of float32 off."""
    peft, conv = pytest.importorskip("peft"), pytest.importorskip("transformers.pytorch_utils").Conv1D
    net = nn.ModuleDict({"a": nn.Linear(5, 4), "b": conv(6, 3), "c": nn.Embedding(7, 5)})
    model = peft.inject_adapter_in_model(peft.LoraConfig(r=2, target_modules=["a", "b", "c"]), net)
    start = measure.Start.of(model, dense=True)
    assert [r.shape for r in start.responses] == [(measure.PROBES, 4), (measure.PROBES, 6)]
    for found, layer in zip(start.singular_values, (model["a"], model["b"]), strict=True):
        torch.testing.assert_close(
            found.flip(0), torch.linalg.svdvals(layer.weight.detach().double()), rtol=0, atol=1e-5
        )
