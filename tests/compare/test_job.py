"""The whole comparison, on a tiny model."""

import csv
import json
import re

import pytest

from steepest.compare import figures, job, report
from steepest.compare.figures import window
from steepest.compare.job import compare
from steepest.compare.labels import apart
from steepest.compare.settings import Settings
from steepest.runs.errors import UserError
from steepest.runs.signals import Interrupted


def silent(_: str) -> None:
    pass


def without_timing(value):
    if isinstance(value, dict):
        return {k: without_timing(v) for k, v in value.items() if k != "timing"}
    return [without_timing(v) for v in value] if isinstance(value, list) else value


@pytest.fixture(scope="module")
def finished(tmp_path_factory, options):
    folder = tmp_path_factory.mktemp("finished") / "out"
    lines: list[str] = []
    given = options | {"optimizers": "muon, AdamW", "geometry": "both"}
    return folder, compare(given, folder, say=lines.append), lines


def test_everything_is_reported(finished):
    folder, results, lines = finished
    assert without_timing(json.loads((folder / "results.json").read_text())) == without_timing(
        json.loads(json.dumps(results))
    )
    keys = [m["key"] for m in results["methods"]]
    assert sorted(keys) == ["adamw", "adamw-orthogonal", "muon", "muon-orthogonal"]
    assert results["best"] == keys[0]
    for method in results["methods"]:
        assert len(method["runs"]) == 2
        assert {run["tokens"] for run in method["runs"]} == {results["tokens_per_run"]} == {384}
        assert {run["lr"] for run in method["runs"]} == {method["lr"]}
        best = min(p["loss"] for p in method["sweep"])
        assert next(p["lr"] for p in method["sweep"] if p["loss"] == best) == method["lr"]
        constrained = method["geometry"] != "none"
        assert all((run["condition"] < 1.001) == constrained for run in method["runs"])
        assert all(run["residual"] < 1e-4 for run in method["runs"])
    assert any(line.startswith("estimate: about") for line in lines)


def test_report_needs_no_other_file(finished):
    folder, results, _ = finished
    html = (folder / "report.html").read_text()
    images = re.findall(r'<img src="([^"]{0,30})', html)
    assert len(images) == len(list(folder.glob("*.png"))) == 6
    assert all(image.startswith("data:image/png;base64,") for image in images)
    assert not re.search(r"<(script|link|iframe)|href=|@import|url\(", html)
    assert "With and without the geometry" in html
    winner = results["methods"][0]
    assert f"{winner['name']} reached the lowest held-out loss: {winner['summary']['loss']:.3f}" in html


def test_tables_hold_every_method(finished):
    folder, results, _ = finished
    rows = list(csv.DictReader((folder / "table.csv").open()))
    assert [row["method"] for row in rows] == [m["name"] for m in results["methods"]]
    assert [float(row["loss"]) for row in rows] == [m["summary"]["loss"] for m in results["methods"]]
    lines = (folder / "table.md").read_text().splitlines()
    assert len(lines) == 2 + len(rows)
    assert len({line.count("|") for line in lines}) == 1


@pytest.fixture
def unreported(monkeypatch):
    """Without tables and pictures, which take longer than such runs."""
    monkeypatch.setattr(report, "write", lambda folder, results: None)


@pytest.mark.parametrize("after", [0, 3])
def test_resumed_comparison_gives_the_same_results(tmp_path, monkeypatch, options, unreported, after):
    given = options | {"optimizers": "adamw,sgd"}
    straight = compare(given, tmp_path / "straight", say=silent)
    train, calls = job.train, []

    def interrupted(*args, **kwargs):
        calls.append(1)
        if len(calls) > after:
            raise Interrupted(2)
        return train(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(job, "train", interrupted)
        with pytest.raises(Interrupted):
            compare(given, tmp_path / "broken", say=silent)
    assert len(list((tmp_path / "broken").rglob("lr*.json"))) == after
    done = []
    monkeypatch.setattr(job, "train", lambda *args, **kwargs: done.append(1) or train(*args, **kwargs))
    resumed = compare({}, tmp_path / "broken", resume=True, say=silent)
    assert without_timing(resumed) == without_timing(straight)
    assert len(done) == len(list((tmp_path / "straight").rglob("lr*.json"))) - after


def test_damaged_run_is_named(tmp_path, options, unreported):
    given = options | {"optimizers": "sgd", "lrs": 1, "seeds": 1}
    compare(given, tmp_path, say=silent)
    path = next(tmp_path.rglob("lr*.json"))
    path.write_text("{")
    with pytest.raises(UserError, match=re.escape(str(path))):
        compare({}, tmp_path, resume=True, say=silent)


def test_comparison_in_which_all_diverge_is_reported(tmp_path, monkeypatch, options):
    monkeypatch.setattr(job.Method, "default_lr", 1e28)
    results = compare(options | {"optimizers": "sgd,adamw", "lrs": 2, "extend": 1}, tmp_path, say=silent)
    assert results["best"] is None
    assert "Every optimiser diverged" in (tmp_path / "report.html").read_text()
    assert [len(m["sweep"]) for m in results["methods"]] == [3, 3]
    assert [len(m["runs"]) for m in results["methods"]] == [1, 1]  # other seeds are not worth it


def test_optimizer_that_cannot_train_the_model(tmp_path, monkeypatch, options):
    build = job.Method.build

    def refusing(method, model, lr, settings):
        if method.optimizer == "sgd":
            raise TypeError("SGD does not like it")
        return build(method, model, lr, settings)

    monkeypatch.setattr(job.Method, "build", refusing)
    with pytest.raises(UserError, match=r"--optimizers sgd: cannot train this model \(SGD does not like it\)"):
        compare(options | {"optimizers": "sgd,adamw"}, tmp_path / "named", say=silent)
    assert not (tmp_path / "named").exists()
    monkeypatch.setattr(Settings, "checked", unnamed(Settings.checked))
    monkeypatch.setattr(figures, "draw", lambda results: {})  # saves seconds
    results = compare(options | {"lrs": 1, "seeds": 1}, tmp_path / "all", say=silent)
    assert results["left_out"] == {"SGD": "SGD does not like it"}
    assert [m["key"] for m in results["methods"]] == ["adamw"]
    assert "SGD was left out: SGD does not like it" in (tmp_path / "all" / "report.html").read_text()


def unnamed(checked):
    """Settings that choose two optimisers where none are named, for speed."""
    import dataclasses

    return lambda self: checked(dataclasses.replace(self, optimizers=self.optimizers or ["adamw", "sgd"]))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"optimizers": "adm"}, r"--optimizers 'adm' is not known. Did you mean 'adam'\? Choose one of: .*shampoo"),
        ({"optimizers": "composed"}, "--optimizers 'composed' is not known"),
        ({"optimizers": " , "}, "--optimizers: names none. Choose from: "),
        ({"geometry": "round"}, "--geometry 'round' is not known"),
        ({"schedule": "cosin"}, "Did you mean 'cosine'"),
        ({"dtype": "float8"}, "--dtype"),
        ({"device": "abacus"}, "--device abacus"),
        ({"width": 30, "heads": 4}, r"--width 30: must be a multiple of twice --heads \(4\).*Give --width 32"),
        ({"tokens": 100}, "--tokens 100: are less than two steps .* Give at least 2048"),
        ({"warmup": 1.0}, "--warmup 1.0: is a share"),
        ({"lrs": 0}, "--lrs 0: must be at least 1"),
        ({"seeds": 0}, "--seeds 0: must be at least 1"),
        ({"lr_factor": 1.0}, "--lr-factor 1.0"),
        ({"adamw_lr": float("nan")}, "--adamw-lr nan"),
        ({"weight_decay": float("nan")}, "--weight-decay nan"),
    ],
)
def test_bad_option_is_named_and_nothing_is_written(tmp_path, given, message):
    with pytest.raises(UserError, match=message):
        compare(given, tmp_path / "out", say=silent)
    assert not (tmp_path / "out").exists()


def test_resume_refuses_what_would_not_compare(tmp_path, finished, options, text, unreported):
    folder, _, _ = finished
    with pytest.raises(UserError, match=r"holds a run already\. Add --resume"):
        compare(options, folder, say=silent)
    with pytest.raises(UserError, match="--tokens 999 conflicts with the interrupted run, which has 384"):
        compare({"tokens": 999}, folder, resume=True, say=silent)
    with pytest.raises(UserError, match="--optimizers"):
        compare({"optimizers": "sgd"}, folder, resume=True, say=silent)
    with pytest.raises(UserError, match="holds no interrupted run"):
        compare({}, tmp_path, resume=True, say=silent)
    before = text.read_text()
    try:
        text.write_text(before + "\nmore")
        with pytest.raises(UserError, match="is not what it was when the comparison"):
            compare({}, folder, resume=True, say=silent)
    finally:
        text.write_text(before)
    again = compare({"optimizers": "adamw,muon"}, folder, resume=True, say=silent)  # named in another order
    assert without_timing(again) == without_timing(finished[1])


# What is drawn. -----------------------------------------------------------------------------------------------------


def test_labels_keep_apart_and_near():
    import numpy as np

    wanted = np.array([0.5, 0.1, 0.51, 0.9, 0.52])
    placed = apart(wanted, 0.1)
    assert (np.diff(np.sort(placed)) > 0.1 - 1e-9).all()
    assert (np.argsort(placed) == np.argsort(wanted)).all()
    assert placed[[1, 3]] == pytest.approx([0.1, 0.9])
    assert placed[[0, 2, 4]].mean() == pytest.approx(wanted[[0, 2, 4]].mean())
    crowd = apart(np.full(50, 0.99), 0.1)
    assert crowd.min() >= -1e-9
    assert crowd.max() <= 1 + 1e-9


def test_window_shows_most_and_leaves_the_far_ones_out():
    methods = [{"summary": {"loss": loss}} for loss in (1.0, 1.05, 1.1, 9.0)]
    low, top = window(methods)
    assert low < 1.0 < 1.1 < top < 2


def test_summary_tells_the_gap_to_adamw(finished):
    text = report.summary(finished[1])
    assert re.search(r"reached the lowest held-out loss: \d\.\d{3} ± \d\.\d{3}", text)
    assert "AdamW" in text
