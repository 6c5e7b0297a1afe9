"""`--adapter`: every name trains, is saved and loaded; options and their mistakes."""

import copy

import pytest
import torch

from steepest.finetune import adapters, checkpoint, data, encoder, measure
from steepest.finetune.adapters import methods, parse
from steepest.finetune.job import Job, finetune
from steepest.finetune.settings import Settings
from steepest.finetune.train import History, baseline_optimizer, batch, chosen_optimizer, take_step
from steepest.runs.errors import UserError
from steepest.runs.settings import SETTINGS
from steepest.runs.signals import Stop

SMALL = {
    "miss": ["r=4"],
    "oft": ["oft_block_size=8"],
    "osf": ["effective_rank=28"],
    "road": ["group_size=8"],
    "shira": ["r=2"],
}
"""Options of methods whose defaults do not fit layers of 32 inputs."""


@pytest.fixture(scope="module")
def small(tiny_model, pairs):
    """Options of a run of two steps."""
    return {
        "model": tiny_model, "data": pairs, "steps": 2, "batch_size": 4, "max_tokens": 8, "lr": 1e-2, "threads": 1,
        "eval_size": 4, "baseline": False,
    }  # fmt: skip


@pytest.fixture(scope="module")
def split(pairs):
    return data.load(pairs)


def made(settings, split, folder):
    job = Job(settings.checked(), folder, Stop(), lambda line: None)
    return job, *job.load(split)


@pytest.fixture(scope="module")
def base(tiny_model):
    """The frozen model."""
    return encoder.load(tiny_model, torch.float32, torch.device("cpu"))[0]


OFTEN = {name for name, method in methods().items() if method.ours} | {"lora", "asymmetric", "osf", "oft", "peft-hra"}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in OFTEN else pytest.mark.slow) for n in sorted(methods())]
)
def test_every_adapter_trains_and_is_saved_and_loaded(tmp_path, small, split, base, name):
    """From W' = W, under torch's optimiser and this library's; what PEFT loads gives the same vectors."""
    from peft import PeftModel

    settings = Settings(adapter=name, adapter_option=SMALL.get(name, []), **small)
    job, model, backbone, task = made(settings, split, tmp_path)
    ids = task.test_ids[0]
    before = encoder.embed(encoder.Encoder(base, True), ids)
    torch.testing.assert_close(encoder.embed(model, ids), before, rtol=0, atol=1e-5)  # float32, in two orders of sums
    assert 0 < job.trained < job.total

    history, fresh, start = History(), measure.Start.of(model), checkpoint.trainable(model)
    take_step(model, task, baseline_optimizer(model, job.settings), 0, job.settings, history, fresh)
    checkpoint.load_trainable(model, start)
    optimizer = chosen_optimizer(model, job.settings)
    for step in range(2):
        take_step(model, task, optimizer, step, job.settings, history, fresh)
    assert history.loss[0] == pytest.approx(history.loss[1], rel=1e-5)  # points may have been moved, by rounding
    assert history.measured[-1]["change"][0] > 0
    assert ("cond_B" in history.measured[-1]) == (methods()[name].config.__name__ == "LoraConfig")
    after = encoder.embed(model, ids)
    assert (after - before).abs().max() > 1e-4

    backbone.save_pretrained(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "adapter").eval()
    found = encoder.embed(encoder.Encoder(loaded, True), ids)
    torch.testing.assert_close(found, after, rtol=0, atol=1e-5)  # bases are computed anew


@pytest.mark.slow
def test_job_with_an_orthogonal_adapter_that_is_calibrated(tmp_path, small, labels):
    """The whole command: gradients of a fitted head, the report's words, singular values that stay."""
    given = small | {"data": labels, "adapter": "loft", "rank": 6, "adapter_option": ["support=gradient"]}
    results = finetune(given, tmp_path, say=lambda line: None)
    (run,) = results["runs"].values()
    assert list(results["runs"]) == ["Adam (LOFT)"]
    assert results["settings"]["calibration_batches"] == 4
    assert results["settings"]["geometry"] is results["settings"]["alpha"] is None
    assert results["adapter"]["options"] == ["rank 6", "support=gradient"]
    assert 0 < run["drift"][2] < 1e-5  # rounding of float32
    html = (tmp_path / "report.html").read_text()
    assert "import steepest.adapters" in html
    assert "Condition number" not in html
    assert ">None<" not in html
    assert len(list(tmp_path.glob("*.png"))) == 5


def test_gradients_come_from_the_first_batches(tmp_path, small, split, base):
    """Supports are those of the gradients that autograd gives the frozen weights."""
    from steepest.adapters.base import Source
    from steepest.adapters.loft import gradient_support

    settings = Settings(adapter="loft", rank=4, adapter_option=["support=gradient"], calibration_batches=2, **small)
    _, _, backbone, task = made(settings, split, tmp_path)
    base = copy.deepcopy(base)
    weight = base.encoder.layer[0].attention.self.query.weight.requires_grad_(True)
    for step in range(2):
        task.loss(task.model(base, 0), batch(step, len(task.train), 4, 0)).backward()
    expected = gradient_support(Source(weight.detach().double(), weight.grad.double()), 4)
    found = backbone.base_model.model.encoder.layer[0].attention.self.query.steepest_loft_P["default"].double()
    torch.testing.assert_close(found @ found.mT, expected @ expected.mT, rtol=0, atol=1e-3)  # gradients in float32


def test_penalty_is_added(tmp_path, small, split):
    losses = []
    for options in ([], ["regularizer=0.5"]):
        job, model, _, task = made(Settings(adapter="hra", rank=2, adapter_option=options, **small), split, tmp_path)
        history = History()
        take_step(model, task, chosen_optimizer(model, job.settings), 0, job.settings, history, measure.Start.of(model))
        losses.append(history.loss[0])
    assert losses[1] - losses[0] == pytest.approx(12 * 0.5 * 2**0.5, rel=1e-4)  # 12 layers with two equal unit vectors


@pytest.mark.parametrize("build", [chosen_optimizer, baseline_optimizer])
def test_osf_stays_out_of_what_it_protects(tmp_path, small, split, base, build):
    settings = Settings(adapter="osf", adapter_option=SMALL["osf"], **small)
    job, model, backbone, task = made(settings, split, tmp_path)
    optimizer = build(model, job.settings)
    for step in range(2):
        take_step(model, task, optimizer, step, job.settings, History(), measure.Start.of(model))
    layer = backbone.base_model.model.encoder.layer[0].attention.self.query
    weight = base.encoder.layer[0].attention.self.query.weight
    protected = torch.linalg.svd(weight)[0][:, :28]
    change = measure.response(layer, torch.eye(32)).mT.float() - weight
    assert change.norm() > 1e-3
    assert (protected.mT @ change).norm() < 1e-4 * change.norm()


def test_change_and_drift_are_those_of_dense_weights(tmp_path, small, split):
    from steepest.finetune.measure import adapted_layers, response, singular_values

    _, model, _, _ = made(Settings(adapter="lora", rank=2, **small), split, tmp_path)
    start = measure.Start.of(model, dense=True)
    torch.manual_seed(1)
    for name, p in model.named_parameters():
        if "lora_B" in name:
            p.data.normal_()
    for layer, drift, change in zip(adapted_layers(model), start.drifts(model), start.changes(model), strict=True):
        w = layer.get_base_layer().weight.double()
        merged = w + layer.get_delta_weight("default").double()
        values, now = torch.linalg.svdvals(w), torch.linalg.svdvals(merged)
        assert drift == pytest.approx(((now - values).abs().max() / values[0]).item(), rel=1e-4)
        assert change == pytest.approx(((merged - w).norm() / w.norm()).item(), rel=0.4)  # 64 probes of rank two
        torch.testing.assert_close(singular_values(layer), now.flip(0), rtol=0, atol=1e-4 * now[0].item())
        x = torch.randn(3, w.shape[1])
        torch.testing.assert_close(response(layer, x), x.double() @ merged.mT, rtol=0, atol=1e-4 * now[0].item())


def test_old_settings_still_mean_lora(tmp_path):
    """What was saved before there was a choice of adapters."""
    saved = {"optimizer": "muon", "geometry": "fixed-rank", "rank": 4, "alpha": 8.0, "lr": 1e-3, "baseline_lr": 1e-3}
    settings = Settings.from_json(saved, SETTINGS).checked()
    config, later = settings.configured()
    assert (settings.adapter, config.r, config.lora_alpha, later) == ("lora", 4, 8.0, {})


def test_defaults_are_loras():
    settings = Settings().checked()
    assert (settings.adapter, settings.geometry, settings.rank, settings.alpha) == ("lora", "fixed-rank", 8, 16.0)
    assert (settings.lr, settings.baseline_lr, settings.calibration_batches) == (3e-4, 1e-3, None)


def test_options_reach_the_config():
    loft = methods()["loft"]
    config, _ = loft.configured(["support=random", "block=4", "scales=true", "layers_pattern=none"], 8, None, seed=5)
    assert (config.support, config.block, config.scales, config.r, config.seed) == ("random", 4, True, 8, 5)
    config, later = methods()["asymmetric"].configured(["train=A"], None, None, seed=7)
    assert later == {"train": "A", "seed": 7}
    assert methods()["dora"].configured([], 4, 8.0)[0].use_dora
    assert methods()["soda"].configured(["factors=[4, 8]"], None, None)[0].factors == (4, 8)


@pytest.mark.parametrize(
    ("text", "hint", "value"),
    [
        ("8", int, 8),
        ("8", int | None, 8),
        ("None", int | None, None),
        ("false", bool | str, False),
        ("0.5", float, 0.5),
        ("all-linear", list[str] | str | None, "all-linear"),
        ('["a", "b"]', list[str] | str, ["a", "b"]),
        ('{"a": 2}', dict[str, int], {"a": 2}),
    ],
)
def test_parse(text, hint, value):
    assert parse("key", text, hint) == value


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"adapter": "lofd"}, r"--adapter 'lofd' is not known. Did you mean 'loft'\? Choose one of: asymmetric, boft"),
        ({"adapter_option": ["r"]}, r"--adapter-option r: write key=value; the keys are .*lora_alpha"),
        ({"adapter": "hra", "adapter_option": ["rank=4"]}, r"--adapter-option of hra 'rank' is not known"),
        ({"adapter_option": ["lora_dropout=0.1"]}, r"--adapter-option of lora 'lora_dropout' is not known"),
        ({"adapter": "hra", "adapter_option": ["r=four"]}, r"--adapter-option r=four: expected a whole number"),
        ({"adapter": "hra", "adapter_option": ["r=3"]}, r"--adapter hra: r: got 3, expected an even number"),
        ({"adapter": "hra", "rank": 4, "adapter_option": ["r=8"]}, r"--rank 4: --adapter-option says r=8"),
        ({"adapter": "qgoft", "rank": 4}, r"--rank 4: the adapter qgoft has no rank"),
        ({"adapter": "loft", "alpha": 4.0}, r"--alpha 4.0: the adapter loft has no alpha"),
        ({"adapter": "loft", "geometry": "fixed-rank"}, r"--geometry fixed-rank: .*loft has a geometry of its own"),
        ({"adapter": "loft", "calibration_batches": 2}, r"--calibration-batches 2: loft with these options does not"),
        ({"adapter": "loft", "calibration_batches": 0}, r"--calibration-batches 0: must be a positive number"),
        ({"adapter": "dora", "adapter_option": ["use_dora=false"]}, r"'use_dora' is not known"),
    ],
)
def test_mistake_is_named(tmp_path, given, message):
    with pytest.raises(UserError, match=message):
        finetune(given, tmp_path / "out", say=lambda line: None)
    assert not (tmp_path / "out").exists()


def test_adapter_that_does_not_fit_the_model_is_named(tmp_path, small):
    with pytest.raises(UserError, match=r"--adapter loft: r: got 64"):
        finetune(small | {"adapter": "loft", "rank": 64}, tmp_path, say=lambda line: None)


def test_method_of_each_family_is_found():
    from steepest.adapters import FAMILIES

    assert {name.lower() for name in FAMILIES} <= methods().keys()
    assert adapters.method("loft").ours
    assert not adapters.method("oft").ours
