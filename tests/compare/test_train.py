"""One run, with optimisers of the library and of others."""

import dataclasses

import pytest
import torch

from steepest import param_groups
from steepest.compare.job import builder
from steepest.compare.methods import Method, methods
from steepest.compare.train import Trainer, train
from steepest.optim import MatrixOptimizer, RoleOptimizer
from steepest.runs.optimizers import known_optimizers


def adamw(model, lr):
    return torch.optim.AdamW(model.parameters(), lr=lr)


def losses(trainer: Trainer) -> list[float]:
    return list(trainer.steps())


@pytest.mark.parametrize("name", sorted(known_optimizers()))
@pytest.mark.parametrize("geometry", ["none", "orthogonal"])
def test_every_optimizer_takes_two_steps(settings, corpus, name, geometry):
    method = Method(name, geometry)
    trainer = Trainer(builder(method, settings), settings, 0, method.default_lr, corpus, geometry)
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
    for step in range(2):
        trainer.step(step)
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())
    moved = {n for n, p in trainer.model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == set(before)


def test_matrix_optimizers_share_one_rate_for_the_rest(settings, corpus):
    for method in methods(dataclasses.replace(settings, optimizers=sorted(known_optimizers()))):
        trainer = Trainer(builder(method, settings), settings, 0, 0.125, corpus)
        rates = {g["role"]: g["lr"] for optimizer in trainer.optimizers for g in optimizer.param_groups}
        cls = known_optimizers()[method.optimizer]
        own = rates if issubclass(cls, RoleOptimizer) else ("matrix",)
        own = cls.roles if issubclass(cls, MatrixOptimizer) else own
        assert {"matrix", "other"} <= rates.keys()
        assert rates == {role: 0.125 if role in own else settings.adamw_lr for role in rates}


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_weight_decay_is_of_all_but_the_gains(settings, corpus, name):
    decaying = dataclasses.replace(settings, weight_decay=0.25)
    trainer = Trainer(builder(Method(name), decaying), decaying, 0, 1e-3, corpus)
    for group in trainer.optimizers[0].param_groups:
        assert {p.ndim for p in group["params"]} == ({2} if group["weight_decay"] == 0.25 else {1})


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_other_precisions(settings, corpus, dtype):
    other = dataclasses.replace(settings, dtype=dtype)
    record = train(builder(Method("muon"), other), other, 0, 0.02, corpus)
    same = train(builder(Method("muon"), settings), settings, 0, 0.02, corpus)
    assert record["loss"] == pytest.approx(same["loss"], rel=0.02 if dtype == "bfloat16" else 1e-3)
    assert record["loss"] != same["loss"]


def test_foreign_optimizers_agree_with_ours(settings, corpus):
    def build(model, lr):
        groups = [
            {
                "params": [p for g in param_groups(model) if (g["role"] == "matrix") == matrix for p in g["params"]],
                **own,
            }
            for matrix, own in ((True, {"lr": lr}), (False, {"lr": settings.adamw_lr, "betas": (0.9, 0.95)}))
        ]
        return torch.optim.AdamW(groups, weight_decay=0)

    ours = train(builder(Method("adamw"), settings), settings, 0, 3e-3, corpus)
    theirs = train(build, settings, 0, 3e-3, corpus)
    assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
    assert ours["loss"] < ours["curve"][0]["loss"]
    assert ours["state_bytes_per_parameter"] == pytest.approx(8, rel=0.02)


def test_several_optimizers_share_a_model(settings, corpus):
    def build(model, lr):
        matrices = [p for p in model.parameters() if p.ndim == 2]
        rest = [p for p in model.parameters() if p.ndim < 2]
        return [torch.optim.AdamW(matrices, lr=lr, weight_decay=0), torch.optim.AdamW(rest, lr=lr, weight_decay=0)]

    one = train(lambda m, lr: torch.optim.AdamW(m.parameters(), lr=lr, weight_decay=0), settings, 0, 3e-3, corpus)
    two = train(build, settings, 0, 3e-3, corpus)
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-6)
    assert two["state_bytes_per_parameter"] == one["state_bytes_per_parameter"]


def test_schedule_multiplies_each_group_s_own_rate(settings, corpus):
    rates = []

    class Watched(torch.optim.SGD):
        def step(self, closure=None):
            rates.append([g["lr"] for g in self.param_groups])
            super().step(closure)

    def build(model, lr):
        first, *rest = model.parameters()
        return Watched([{"params": [first], "lr": 10 * lr}, {"params": rest}], lr=lr)

    train(build, dataclasses.replace(settings, schedule="linear", warmup=0.0), 0, 0.01, corpus)
    assert [b for _, b in rates] == pytest.approx([0.01 * (1 - i / 6) for i in range(6)])
    assert [a for a, _ in rates] == pytest.approx([10 * b for _, b in rates])


def test_every_run_has_the_same_tokens_and_data(settings, corpus, monkeypatch):
    seen = []
    batch = type(corpus).batch
    monkeypatch.setattr(type(corpus), "batch", lambda *args: seen.append(args[1:]) or batch(*args))
    records = [train(builder(Method(name), settings), settings, 7, 1e-3, corpus) for name in ("adamw", "muon")]
    assert [r["tokens"] for r in records] == [settings.tokens] * 2
    assert seen[:6] == seen[6:] == [(7, step, 4, 16) for step in range(6)]
    assert records[0]["curve"][0] == records[1]["curve"][0]  # the same start
    assert [p["tokens"] for p in records[0]["curve"]] == [0, 192, 384]
    assert records[0]["training"][-1]["tokens"] == 384


def test_schedule_free_optimizers_are_told_when_they_are_evaluated(settings, corpus):
    calls = []

    class Modal(torch.optim.SGD):
        def train(self):
            calls.append("train")

        def eval(self):
            calls.append("eval")

    train(lambda m, lr: Modal(m.parameters(), lr=lr), settings, 0, 0.1, corpus)
    # At the start, twice on the way, and for what is measured at the end.
    assert calls == ["eval", "train"] * 3 + ["eval"]


def test_geometry_keeps_residuals_small_and_plain_weights_move_away(settings, corpus):
    longer = dataclasses.replace(settings, tokens=4 * settings.tokens)
    method = Method("muon", "orthogonal")
    kept = train(builder(method, longer), longer, 0, 0.05, corpus, geometry="orthogonal")
    assert kept["residual"] < 1e-5
    assert kept["condition"] == pytest.approx(1, abs=1e-4)
    assert kept["loss"] < kept["curve"][0]["loss"]
    assert train(builder(Method("muon"), longer), longer, 0, 0.05, corpus)["condition"] > 1.5


@pytest.mark.parametrize(("name", "lr"), [("adamw", 1e30), ("sgd", 1e6), ("muon", 1e25)])
def test_divergence_is_recorded(settings, corpus, name, lr):
    record = train(builder(Method(name), settings), settings, 0, lr, corpus)
    assert record["loss"] is None
    assert record["diverged"]


def test_loss_above_its_start_is_divergence(settings, corpus):
    def ascent(model, lr):
        return torch.optim.SGD(model.parameters(), lr=lr, maximize=True)

    record = train(ascent, settings, 0, 0.01, corpus)
    assert record["loss"] is None
    assert "it began at" in record["diverged"]
    assert record["tokens"] == settings.tokens  # but slowly: the run went to its end


def test_mistake_of_an_optimizer_is_no_divergence(settings, corpus):
    class Broken(torch.optim.SGD):
        def step(self, closure=None):
            raise ValueError("no such option")

    with pytest.raises(ValueError, match="no such option"):
        train(lambda m, lr: Broken(m.parameters(), lr=lr), settings, 0, 0.1, corpus)
