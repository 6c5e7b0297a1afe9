"""The whole job, on a tiny model."""

import json
import os
import re
import signal

import pytest
import torch
from safetensors.torch import load_file

from steepest.finetune import checkpoint, data, encoder, train
from steepest.finetune.job import Job, finetune
from steepest.finetune.settings import Settings
from steepest.runs.errors import UserError
from steepest.runs.optimizers import known_optimizers
from steepest.runs.signals import Interrupted, Stop


def silent(_: str) -> None:
    pass


def weights(folder):
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def run_interrupted(monkeypatch, options, folder, calls: int) -> Interrupted:
    """Run until this process sends itself SIGINT in the given training step, counted over all runs."""
    count, take_step = iter(range(10**6)), train.take_step

    def interrupted(*args):
        if next(count) == calls:
            os.kill(os.getpid(), signal.SIGINT)
        take_step(*args)

    with monkeypatch.context() as patch, Stop() as stop:
        patch.setattr(train, "take_step", interrupted)
        with pytest.raises(Interrupted) as caught:
            finetune(options, folder, stop=stop, say=silent)
    return caught.value


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_model, pairs):
    folder = tmp_path_factory.mktemp("finished")
    given = {
        "model": tiny_model,
        "data": pairs,
        "steps": 12,
        "batch_size": 8,
        "max_tokens": 16,
        "rank": 2,
        "threads": 1,
    }
    return folder, finetune(given | {"lr": 3e-3}, folder, say=silent)


def test_training_lowers_the_loss_and_everything_is_reported(finished):
    folder, results = finished
    assert json.loads((folder / "report.json").read_text())["scores"].keys() == results["scores"].keys()
    assert list(results["scores"]) == ["TF-IDF", "frozen", "Adam (fixed-rank)", "AdamW (torch)"]
    for run in results["runs"].values():
        assert len(run["loss"]) == 12
        assert run["loss"][-1] < run["loss"][0]
        assert run["state_bytes"] > 0
        assert all(m["residual"] == 0 for m in run["measured"])
        assert run["measured"][-1]["step"] == 12
        assert run["measured"][-1]["cond_B"][0] >= 1
    first = [run["loss"][0] for run in results["runs"].values()]
    assert first[0] == first[1]  # the same batch at the same weights


def test_report_needs_no_other_file(finished):
    folder, _ = finished
    html = (folder / "report.html").read_text()
    images = re.findall(r'<img src="([^"]{0,30})', html)
    assert len(images) == 8
    assert all(image.startswith("data:image/png;base64,") for image in images)
    assert len(list(folder.glob("*.png"))) == 8
    assert not re.search(r"<(script|link|iframe)|href=|@import|url\(", html)
    assert re.search(r"Fine-tuning with Adam \(fixed-rank\) \w+ MRR from 0\.\d+ \(frozen\) to 0\.\d+", html)


def test_adapter_reloads_with_stock_peft(finished, tiny_model, pairs):
    from peft import PeftModel
    from transformers import AutoModel

    folder, results = finished
    reloaded = PeftModel.from_pretrained(AutoModel.from_pretrained(tiny_model), folder / "adapter").eval()
    job = Job(Settings(**results["settings"]), folder, Stop(), silent)
    model, _, task = job.load(data.load(pairs))
    checkpoint.load_trainable(model, checkpoint.load(folder / "runs" / "chosen").weights)
    ours = encoder.embed(model, task.test_ids[0])
    torch.testing.assert_close(encoder.embed(encoder.Encoder(reloaded, True), task.test_ids[0]), ours, rtol=0, atol=0)
    job.reset(model)
    assert (encoder.embed(model, task.test_ids[0]) - ours).abs().max() > 1e-3


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"optimizer": "muon"},
        {"optimizer": "adamw", "geometry": "euclidean"},
        {"adapter": "loft", "adapter_option": ["support=gradient", "rotation=free"]},
    ],
    ids=str,
)
def test_interrupted_run_resumes_bit_for_bit(tmp_path, monkeypatch, options, more):
    options |= {"baseline": False} | more
    straight = finetune(options, tmp_path / "straight", say=silent)
    assert run_interrupted(monkeypatch, options, tmp_path / "broken", 3).exit_code == 130
    assert checkpoint.load(tmp_path / "broken" / "runs" / "chosen").step == 4  # the step at hand was finished
    torch.manual_seed(99)
    resumed = finetune({}, tmp_path / "broken", resume=True, say=silent)
    (run,), (again,) = straight["runs"].values(), resumed["runs"].values()
    assert run["loss"] == again["loss"]
    assert run["measured"] == again["measured"]
    assert straight["scores"] == resumed["scores"]
    expected, found = weights(tmp_path / "straight"), weights(tmp_path / "broken")
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[key], found[key]) for key in expected)


def test_resume_inside_the_baseline_leaves_the_chosen_run_alone(tmp_path, monkeypatch, options):
    straight = finetune(options, tmp_path / "straight", say=silent)
    run_interrupted(monkeypatch, options, tmp_path / "broken", 8 + 2)
    saved = weights(tmp_path / "broken")  # the adapter is there before the baseline begins
    resumed = finetune({}, tmp_path / "broken", resume=True, say=silent)
    assert all(torch.equal(saved[key], value) for key, value in weights(tmp_path / "broken").items())
    assert [run["loss"] for run in straight["runs"].values()] == [run["loss"] for run in resumed["runs"].values()]


def test_signal_outside_the_training_loop_stops_at_once():
    with Stop(), pytest.raises(Interrupted) as caught:
        os.kill(os.getpid(), signal.SIGTERM)
    assert caught.value.exit_code == 143


def test_resume_refuses_other_options(tmp_path, options):
    finetune(options | {"baseline": False}, tmp_path, say=silent)
    with pytest.raises(UserError, match=r"--rank 4 conflicts with the interrupted run, which has 2"):
        finetune({"rank": 4}, tmp_path, resume=True, say=silent)
    with pytest.raises(UserError, match="holds a run already"):
        finetune(options, tmp_path, say=silent)
    with pytest.raises(UserError, match="no interrupted run"):
        finetune({}, tmp_path / "elsewhere", resume=True, say=silent)


def test_mistake_leaves_nothing_that_must_be_removed(tmp_path, options):
    with pytest.raises(UserError, match="no such file"):
        finetune(options | {"data": "nowhere.csv"}, tmp_path, say=silent)
    finetune(options | {"baseline": False, "steps": 1}, tmp_path, say=silent)


def test_classification(tmp_path, options, labels, tiny_model):
    results = finetune(options | {"data": labels, "optimizer": "muon"}, tmp_path, say=silent)
    assert results["task"]["kind"] == "classification"
    assert results["scores"]["TF-IDF"]["metrics"]["accuracy"] > 0.6
    assert load_file(tmp_path / "adapter" / "head.safetensors")["weight"].shape == (3, 32)
    assert all(run["loss"][-1] < 1.2 for run in results["runs"].values())


OFTEN = {"adamw", "galore", "muon", "scion"}
"""One of each kind: for any tensor, in a subspace, for matrices, with a norm for each role."""


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in OFTEN else pytest.mark.slow) for n in sorted(known_optimizers())]
)
def test_every_optimizer_can_be_chosen(tmp_path, options, name):
    results = finetune(options | {"optimizer": name, "baseline": False, "steps": 2, "lr": 1e-3}, tmp_path, say=silent)
    assert len(next(iter(results["runs"].values()))["loss"]) == 2


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_frozen_weights_of_another_precision(tmp_path, options, dtype):
    results = finetune(options | {"dtype": dtype, "baseline": False, "steps": 2}, tmp_path, say=silent)
    assert len(next(iter(results["runs"].values()))["loss"]) == 2


def test_loss_that_is_not_finite_stops_the_run(tmp_path, options):
    with pytest.raises(UserError, match="Lower --lr"):
        finetune(options | {"lr": 1e30, "geometry": "euclidean"}, tmp_path, say=silent)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"optimizer": "adm"}, r"--optimizer 'adm' is not known. Did you mean 'adam'\?"),
        ({"geometry": "flat"}, "Choose one of: euclidean, fixed-rank"),
        ({"dtype": "float8"}, "--dtype"),
        ({"device": "abacus"}, "--device abacus"),
        ({"steps": 0}, "--steps 0: must be a positive"),
        ({"lr": float("nan")}, "--lr nan"),
        ({"batch_size": 1}, "--batch-size 1: must be at least 2"),
    ],
)
def test_bad_option_is_named(tmp_path, given, message):
    with pytest.raises(UserError, match=message):
        finetune(given, tmp_path / "out", say=silent)
    assert not (tmp_path / "out").exists()


def test_batches_cover_every_row_once_in_an_epoch():
    rows = [i for step in range(5) for i in train.batch(step, 20, 4, seed=1)]
    assert sorted(rows) == list(range(20))
    assert train.batch(7, 20, 4, seed=1) == train.batch(7, 20, 4, seed=1) != train.batch(7, 20, 4, seed=2)
    assert sorted(train.batch(3, 3, 32, seed=0)) == [0, 1, 2]


def test_schedule_rises_then_falls_to_zero():
    factors = [train.schedule(step, 100) for step in range(101)]
    assert factors[0] == pytest.approx(0.1)
    assert max(factors) == pytest.approx(factors[9])
    assert factors[100] == 0
