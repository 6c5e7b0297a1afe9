"""A tiny random BERT and small tables, for the whole pipeline in seconds and without any download."""

import csv
import os
import random
import string
from pathlib import Path

import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

WORDS = [
    "file", "path", "socket", "thread", "queue", "parse", "token", "error",
    "value", "string", "number", "class", "module", "event", "loop", "buffer",
]  # fmt: skip


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> str:
    """Folder of a BERT with 2 layers of width 32 and a WordPiece vocabulary."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("tiny-bert")
    letters = [*string.ascii_lowercase, *string.digits]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *letters, *(f"##{c}" for c in letters)]
    BertTokenizerFast(vocab={token: i for i, token in enumerate(vocabulary)}).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
        max_position_embeddings=64, initializer_range=0.2,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def pairs(tmp_path_factory) -> str:
    """Table `text,positive,group`: 60 texts of 6 words, and the same words in another order with one more."""
    draw = random.Random(0)
    rows = []
    for i in range(60):
        words = draw.sample(WORDS, 6)
        rows.append({"text": " ".join(words), "positive": " ".join([*reversed(words), f"n{i}"]), "group": f"g{i % 12}"})
    return write_table(tmp_path_factory.mktemp("pairs") / "pairs.csv", rows)


@pytest.fixture(scope="session")
def labels(tmp_path_factory) -> str:
    """Table `text,label`: the label is the first of three words that appears."""
    draw = random.Random(0)
    rows = []
    for _ in range(60):
        label = draw.choice(WORDS[:3])
        rows.append({"text": " ".join([label, *draw.sample(WORDS[3:], 5)]), "label": label})
    return write_table(tmp_path_factory.mktemp("labels") / "labels.csv", rows)


@pytest.fixture
def options(tiny_model, pairs) -> dict:
    """Options of a run that takes a second."""
    return {
        "model": tiny_model, "data": pairs, "steps": 8, "batch_size": 6, "max_tokens": 16, "rank": 2, "lr": 1e-2,
        "threads": 1, "save_every": 3, "measure_every": 2,
    }  # fmt: skip


def write_table(path: Path, rows: list[dict]) -> str:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return str(path)
