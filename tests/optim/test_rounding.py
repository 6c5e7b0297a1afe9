"""Stochastic rounding of bfloat16 parameters."""

import pytest
import torch

from steepest import SGD, Stiefel, constrain
from steepest.linalg.precision import rounded


def test_the_mean_is_right_and_each_draw_a_neighbour():
    for value in (1.0 + 2**-10, -3.0 - 2**-12, 1e-30, -(2.0**-120) * 1.3):
        x = torch.full((200_000,), value)
        draws = rounded(x, torch.bfloat16, torch.Generator().manual_seed(0))
        assert torch.equal(draws, draws.bfloat16().float())
        low, high = draws.min().item(), draws.max().item()
        assert low <= x[0].item() <= high
        assert abs(high - low) <= abs(value) * 2**-7
        # a share of the gap with the standard deviation of 200,000 coins, four of them
        assert abs(draws.double().mean().item() - x[0].item()) <= 4 * (high - low) / 2 / 200_000**0.5 + 1e-45


@pytest.mark.parametrize("value", [0.0, -0.0, 1.0, -2.5, float("inf"), float("-inf"), float("nan")])
def test_what_fits_stays(value):
    x = torch.full((1000,), value)
    torch.testing.assert_close(
        rounded(x, torch.bfloat16, torch.Generator().manual_seed(0)), x, rtol=0, atol=0, equal_nan=True
    )


def test_the_largest_number_does_not_become_infinite():
    x = torch.full((1000,), torch.finfo(torch.bfloat16).max) * (1 + 2**-10)
    assert rounded(x, torch.bfloat16, torch.Generator().manual_seed(0)).isfinite().all()


def test_small_steps_are_not_lost():
    """A thousand steps of 1e-4 from one, where the next number in bfloat16 is 0.004 away."""
    ends = {}
    for rounding in ("nearest", "stochastic"):
        x = torch.nn.Parameter(torch.ones(2000, dtype=torch.bfloat16))
        optimizer = SGD([x], lr=1e-4, rounding=rounding)
        for _ in range(1000):
            x.grad = torch.ones_like(x)
            optimizer.step()
        ends[rounding] = x.float().mean().item()
    assert ends["nearest"] == 1.0
    assert ends["stochastic"] == pytest.approx(0.9, abs=0.002)


def test_on_a_manifold():
    torch.manual_seed(0)
    layer = constrain(torch.nn.Linear(8, 16).bfloat16(), "weight", Stiefel())
    optimizer = SGD(layer.parameters(), lr=0.01, rounding="stochastic")
    for _ in range(20):
        layer.weight.grad = torch.randn_like(layer.weight)
        layer.bias.grad = torch.zeros_like(layer.bias)
        optimizer.step()
    assert optimizer.residual() < 0.05


def test_replicas_stay_equal_and_steps_draw_anew():
    ends = []
    for seed in (0, 1):
        x = torch.nn.Parameter(torch.ones(500, dtype=torch.bfloat16))
        y = torch.nn.Parameter(torch.ones(500, dtype=torch.bfloat16))
        optimizer = SGD([x, y], lr=1e-3, rounding="stochastic")
        for step in range(3):
            torch.manual_seed(seed + step)
            x.grad = y.grad = torch.ones(500, dtype=torch.bfloat16)
            optimizer.step()
        ends.append((x.detach().clone(), y.detach().clone()))
    assert torch.equal(ends[0][0], ends[1][0])
    assert torch.equal(ends[0][1], ends[1][1])
    assert not torch.equal(*ends[0])
    assert len(ends[0][0].unique()) > 2  # what is up at one step is not up at the next


def test_refused_by_name():
    with pytest.raises(ValueError, match="rounding: got 'up', expected one of 'nearest', 'stochastic'"):
        SGD([torch.nn.Parameter(torch.ones(2))], rounding="up")
