"""A small text of two kinds of sentences, and settings of a run that takes a tenth of a second."""

import random
from pathlib import Path

import pytest

from steepest.compare import corpus as corpora
from steepest.compare.corpus import Corpus
from steepest.compare.settings import Settings

WORDS = ["file", "path", "queue", "parse", "token", "value", "class", "event", "loop", "buffer"]


@pytest.fixture(scope="session")
def text(tmp_path_factory) -> Path:
    draw = random.Random(0)
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n".join(" ".join(draw.choices(WORDS, k=6)) for _ in range(300)), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def options(text) -> dict:
    """Six steps of a transformer with one layer."""
    return {
        "data": str(text), "tokens": 6 * 4 * 16, "batch_size": 4, "context": 16, "width": 16, "layers": 1, "heads": 2,
        "seeds": 2, "extend": 2, "threads": 1, "device": "cpu", "evaluations": 2, "eval_tokens": 256,
    }  # fmt: skip


@pytest.fixture(scope="session")
def settings(options) -> Settings:
    return Settings(**options).checked()


@pytest.fixture(scope="session")
def corpus(text) -> Corpus:
    return corpora.load(str(text), 16)
