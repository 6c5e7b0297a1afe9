"""Inside transformers.Trainer and accelerate: nothing but the usual ways to pass an optimiser."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch

from steepest import SGD, AdamW, Muon, Stiefel, constrain, param_groups
from steepest.optim import constraints

transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")
accelerate = pytest.importorskip("accelerate")


@pytest.fixture(autouse=True)
def _fresh_accelerator():
    yield
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerate.state.GradientState._reset_state()


def model():
    """A tiny BERT with LoRA on its attention and orthonormal rows in its classifier."""
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=8, num_labels=2,
    )  # fmt: skip
    bert = transformers.BertForSequenceClassification(config)
    adapter = peft.LoraConfig(r=2, target_modules=["query", "value"], modules_to_save=["classifier"], lora_dropout=0.1)
    bert = peft.get_peft_model(bert, adapter)
    constrain(bert.base_model.model.classifier.modules_to_save["default"], "weight", Stiefel(), matrix="o i -> i o")
    return bert


class Data(torch.utils.data.Dataset):
    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        self.tokens = torch.randint(0, 30, (24, 6), generator=generator)

    def __len__(self):
        return len(self.tokens)

    def __getitem__(self, i):
        return {"input_ids": self.tokens[i], "labels": int(self.tokens[i, 0] > 15)}


def trainer(folder, bert, *, epochs=2.0, **options):
    arguments = {
        "per_device_train_batch_size": 6, "report_to": [], "save_strategy": "epoch", "logging_steps": 1, "seed": 1,
        "use_cpu": True, "bf16": False, "disable_tqdm": True, "learning_rate": 0.02, "lr_scheduler_type": "linear",
        "dataloader_pin_memory": False,
    } | options.pop("arguments", {})  # fmt: skip
    return transformers.Trainer(
        bert,
        transformers.TrainingArguments(str(folder), num_train_epochs=epochs, **arguments),
        train_dataset=Data(),
        **options,
    )


def trained(bert):
    return {n: p.detach().clone() for n, p in bert.named_parameters() if p.requires_grad}


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(t, b[n]) for n, t in a.items())


def feasible(bert) -> bool:
    w = bert.base_model.model.classifier.modules_to_save["default"].weight.detach()
    return (w @ w.T - torch.eye(2)).abs().max() < 1e-5


WAYS = {
    "an optimiser": lambda bert: {"optimizers": (Muon(param_groups(bert), lr=0.02), None)},
    "a class and options": lambda bert: {
        "optimizer_cls_and_kwargs": (Muon, {"params": param_groups(bert), "lr": 0.02})
    },
}


def test_both_ways_to_pass_an_optimiser_train_alike_and_on_the_manifold(tmp_path):
    results = []
    for i, way in enumerate(WAYS.values()):
        bert = model()
        start = trained(bert)
        host = trainer(tmp_path / str(i), bert, **way(bert))
        host.train()
        losses = [entry["loss"] for entry in host.state.log_history if "loss" in entry]
        assert len(losses) == 8
        results.append((trained(bert), losses))
        assert feasible(bert)
        assert not any(torch.equal(t, results[-1][0][n]) for n, t in start.items())
    assert same(results[0][0], results[1][0])
    assert results[0][1] == results[1][1]


@pytest.mark.parametrize("way", WAYS)
def test_resume_is_bit_for_bit(tmp_path, way):
    straight = model()
    host = trainer(tmp_path, straight, **WAYS[way](straight))
    host.train()
    again = model()
    for p in again.parameters():
        if p.requires_grad and p.ndim == 1:
            p.data.add_(1)  # what the checkpoint has to overwrite
    resumed = trainer(tmp_path, again, **WAYS[way](again))
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert resumed.state.global_step == 8
    assert same(trained(straight), trained(again))


def test_accumulation_and_clipping_as_with_torchs_own_adamw(tmp_path):
    arguments = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 3, "max_grad_norm": 0.1}
    results = []
    for family in (AdamW, torch.optim.AdamW):
        bert = model()
        constraints(bert.base_model.model.classifier.modules_to_save["default"]).clear()
        groups = param_groups(bert, lora=None) if family is AdamW else [p for p in bert.parameters() if p.requires_grad]
        optimizer = family(groups, lr=0.01, weight_decay=0.0)
        host = trainer(tmp_path / family.__module__, bert, arguments=arguments, optimizers=(optimizer, None))
        host.train()
        assert host.state.global_step == 4
        results.append(trained(bert))
    for n, t in results[0].items():
        torch.testing.assert_close(t, results[1][n], rtol=0, atol=1e-6)


def test_max_grad_norm_reaches_the_optimiser(tmp_path):
    moves = []
    for max_norm in (0.0, 1e-3):
        bert = model()
        before = trained(bert)
        optimizer = SGD(param_groups(bert), lr=0.1)
        arguments = {"max_grad_norm": max_norm, "max_steps": 1, "save_strategy": "no"}
        trainer(tmp_path / str(max_norm), bert, arguments=arguments, optimizers=(optimizer, None)).train()
        moves.append(max((t - before[n]).abs().max().item() for n, t in trained(bert).items()))
    assert 0 < moves[1] <= 0.1 * 1e-3 < moves[0]


def test_the_scheduler_moves_every_rate_of_its_group(tmp_path):
    bert = model()
    optimizer = Muon(param_groups(bert), lr=0.02, adamw_lr=0.002)
    trainer(tmp_path, bert, epochs=1.0, optimizers=(optimizer, None)).train()
    initial = [g["initial_lr"] for g in optimizer.param_groups]
    assert set(initial) == {0.02, 0.002}
    assert all(g["lr"] == 0.0 for g in optimizer.param_groups)  # linear to zero


def test_accelerate_prepare_and_its_state(tmp_path):
    bert = model()
    optimizer = AdamW(param_groups(bert), lr=0.01)
    accelerator = accelerate.Accelerator(cpu=True)
    loader = torch.utils.data.DataLoader(Data(), batch_size=8)
    wrapped, prepared, loader = accelerator.prepare(bert, optimizer, loader)

    def epoch():
        for batch in loader:
            prepared.zero_grad()
            accelerator.backward(wrapped(**batch).loss)
            accelerator.clip_grad_norm_(wrapped.parameters(), 1.0)
            prepared.step()
        return trained(bert)

    epoch()
    accelerator.save_state(tmp_path)
    second = epoch()
    assert feasible(bert)
    torch.manual_seed(5)
    accelerator.load_state(tmp_path)
    assert same(second, epoch())
