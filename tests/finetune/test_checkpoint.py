"""A process killed at any moment of a save loses nothing but that save."""

import os
import random

import numpy as np
import pytest
import torch

from steepest.finetune import checkpoint
from steepest.finetune.checkpoint import Checkpoint
from steepest.runs.errors import UserError


class Killed(BaseException):
    pass


def make(step: int) -> Checkpoint:
    optimizer = {"state": {0: {"exp_avg": torch.full((2,), float(step))}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    return Checkpoint(
        step, {"w": torch.full((2, 2), float(step))}, optimizer, checkpoint.rng_state(), {"loss": [0.1] * step}
    )


def assert_same(found: Checkpoint | None, expected: Checkpoint) -> None:
    assert found is not None
    assert found.step == expected.step
    assert found.history == expected.history
    assert torch.equal(found.weights["w"], expected.weights["w"])
    assert torch.equal(found.optimizer["state"][0]["exp_avg"], expected.optimizer["state"][0]["exp_avg"])


def test_round_trip_keeps_only_the_last(tmp_path):
    assert checkpoint.load(tmp_path) is None
    for step in (1, 2, 3):
        checkpoint.save(tmp_path, make(step))
    assert_same(checkpoint.load(tmp_path), make(3))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["latest.json", "step-000003"]
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize("call", range(5))
def test_killed_in_mid_save(tmp_path, monkeypatch, call):
    checkpoint.save(tmp_path, make(1))
    calls = iter(range(100))
    replace = os.replace

    def dying(source, target):
        if next(calls) == call:
            raise Killed
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", dying)
        with pytest.raises(Killed):
            checkpoint.save(tmp_path, make(2))
    assert_same(checkpoint.load(tmp_path), make(1))
    checkpoint.save(tmp_path, make(2))
    assert_same(checkpoint.load(tmp_path), make(2))


def test_damaged_file_is_named(tmp_path):
    checkpoint.save(tmp_path, make(1))
    (tmp_path / "step-000001" / "optimizer.pt").write_bytes(b"nothing")
    with pytest.raises(UserError, match="step-000001"):
        checkpoint.load(tmp_path)


def test_random_numbers_go_on():
    state = checkpoint.rng_state()
    first = torch.rand(3).tolist(), random.random(), np.random.rand()
    checkpoint.set_rng_state(state)
    assert (torch.rand(3).tolist(), random.random(), np.random.rand()) == first
