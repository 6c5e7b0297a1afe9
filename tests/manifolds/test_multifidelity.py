"""The example of multi-fidelity covariance estimation runs, and shows what it says."""

from __future__ import annotations

import importlib.util
import pathlib
import sys
from types import ModuleType

import pytest

PATH = pathlib.Path(__file__).parents[2] / "examples" / "multifidelity_covariance.py"


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("multifidelity_covariance", PATH)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_more_fidelities_are_better(example):
    study = example.experiment(problems=200)
    log, frobenius = study.log_error, study.frobenius_error
    # the standard error of these means of 200 is below 2 per cent
    assert log["log-Euclidean"] < 0.7 * log["expensive only"]
    assert frobenius["log-Euclidean"] < 0.9 * frobenius["expensive only"]
    assert 0 < study.indefinite < study.problems


def test_perfect_correlation_leaves_the_error_of_the_many(example):
    """Without noise and with weight one, only the sampling error of the cheap samples and the distortion remain: as the
    number of samples that both models share does not matter, the error falls with the number of cheap ones."""
    errors = [
        example.experiment(problems=100, noise=0.0, weight=1.0, cheap=cheap).log_error["log-Euclidean"]
        for cheap in (50, 5000)
    ]
    assert errors[1] < 0.7 * errors[0]


def test_it_prints(example, capsys):
    example.main()
    printed = capsys.readouterr().out
    assert "mean errors at equal cost" in printed
    assert "not positive definite" in printed
