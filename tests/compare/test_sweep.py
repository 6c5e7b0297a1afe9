"""Sweeps end inside, and differences are told from noise."""

import math

import pytest

from steepest.compare.results import against, gather, student_interval
from steepest.compare.schedule import SCHEDULES, factor
from steepest.compare.settings import Settings
from steepest.compare.sweep import Sweep


def tried(sweep: Sweep, loss) -> dict[int, float]:
    losses: dict[int, float] = {}
    while (k := sweep.following(losses)) is not None:
        assert k not in losses
        losses[k] = loss(k)
    return losses


@pytest.mark.parametrize("optimum", [-5, -1, 0, 1, 4])
def test_sweep_goes_on_until_the_best_is_inside(optimum):
    sweep = Sweep(0.1, 3.0, 3, 6)
    losses = tried(sweep, lambda k: abs(k - optimum))
    assert sweep.best(losses) == optimum
    assert {optimum - 1, optimum, optimum + 1} <= losses.keys()
    assert not sweep.at_edge(losses)
    assert len(losses) == max(3, 3 + abs(optimum))


def test_sweep_stops_at_its_limit_and_says_so():
    sweep = Sweep(0.1, 3.0, 3, 2)
    losses = tried(sweep, lambda k: -k)
    assert list(losses) == [-1, 0, 1, 2, 3]
    assert sweep.at_edge(losses)


def test_divergence_everywhere_lowers_the_rate():
    sweep = Sweep(0.1, 3.0, 3, 2)
    assert sorted(tried(sweep, lambda k: math.inf)) == [-3, -2, -1, 0, 1]
    losses = tried(sweep, lambda k: math.inf if k > -2 else k + 5)
    assert sweep.best(losses) == -3


def test_single_rate_is_no_sweep():
    assert tried(Sweep(0.1, 3.0, 1, 6), lambda k: k) == {0: 0}


def test_rates_are_round_around_the_exact_default():
    sweep = Sweep(1 / 3, 3.0, 3, 6)
    assert (sweep.lr(-1), sweep.lr(0), sweep.lr(1)) == (0.111, 1 / 3, 1.0)


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_schedules_rise_to_one_and_end_near_zero(name):
    factors = [factor(name, step, 200, 0.1) for step in range(200)]
    assert factors[0] == pytest.approx(1 / 21)
    assert max(factors) == factors[20] == 1
    assert factors[:21] == sorted(factors[:21])
    assert factors[20:] == sorted(factors[20:], reverse=True)
    assert 0 < factors[-1] < 0.03
    assert (factors[120] == 1) == (name == "wsd")


def test_warmup_may_be_absent():
    assert factor("linear", 0, 10, 0.0) == 1


# Results. -----------------------------------------------------------------------------------------------------------


def method(key: str, losses: list[float | None]) -> dict:
    timing = {"seconds": 1.0, "step_ms": 1.0, "optimizer_ms": 0.5}
    record = {"condition": 2.0, "activations": {"rms": 1.0, "largest": 3.0}, "residual": 0.0}
    runs = [
        {"seed": i, "loss": loss, "state_bytes_per_parameter": 8.0, "timing": timing, **record}
        for i, loss in enumerate(losses)
    ]
    return {"key": key, "name": key, "runs": runs}


def test_methods_are_ranked_and_chance_is_told_from_difference():
    measured = [
        method("worse", [2.0, 2.3, 2.1]),
        method("dead", [None]),
        method("near", [1.01, 1.29, 1.12]),
        method("shaky", [0.5, None, 0.6]),
        method("best", [1.0, 1.3, 1.1]),
    ]
    results = gather(measured, Settings())
    assert results["best"] == "best"
    verdicts = {m["key"]: m["summary"]["against_best"]["verdict"] for m in results["methods"]}
    assert list(verdicts) == ["best", "near", "worse", "shaky", "dead"]
    assert verdicts["near"] == "within noise"
    assert verdicts["worse"] == "worse"  # although the seeds spread widely: they do so together
    assert verdicts["dead"] == "diverged"
    near = results["methods"][1]["summary"]
    assert near["loss"] == pytest.approx(1.14)
    assert near["against_best"]["difference"] == pytest.approx(0.02 / 3)


def test_one_seed_decides_nothing():
    a, b = method("a", [1.0]), method("b", [2.0])
    assert against(b, a)["verdict"] == "unclear"
    assert gather([b, a], Settings())["methods"][0]["summary"]["sd"] is None


def test_interval_is_student_s():
    low, high = student_interval([1.0, 2.0, 3.0])
    assert (low, high) == pytest.approx((2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5), rel=1e-6)
    assert student_interval([1.0]) is None
