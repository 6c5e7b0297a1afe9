"""Characters to learn: the standard library's own text, or any text file; the last part is held out."""

from __future__ import annotations

import hashlib
import importlib
import sysconfig
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from steepest.runs.errors import UserError

HELD_OUT = 0.05
"""Share of the text, at its end, that no run trains on."""
RARE = 1e-5
"""Characters with a smaller share of the text count as one, the unknown character."""
MOST = 1023
"""Characters in the vocabulary, without the unknown one."""
UNKNOWN = "\ufffd"


@dataclass(frozen=True)
class Corpus:
    """A text as numbers: the index of each character in `characters`."""

    source: str
    """Where the text comes from, in words."""
    digest: str
    """Hash of the text; a resumed comparison must have the same."""
    characters: str
    """The vocabulary; its first entry stands for all characters that are not in it."""
    train: Tensor
    valid: Tensor

    def batch(self, seed: int, step: int, size: int, context: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets `(size, context)` of a step: a function of the arguments alone, whatever the optimiser."""
        generator = torch.Generator().manual_seed(1_000_003 * seed + step)
        starts = torch.randint(len(self.train) - context, (size,), generator=generator)
        return _windows(self.train, starts, context)

    def held_out(self, tokens: int, context: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets `(n, context)` of about this many held-out characters, spread evenly, always the same."""
        room = len(self.valid) - context
        count = max(1, min(tokens, room) // context)
        return _windows(self.valid, torch.linspace(0, room - 1, count).long(), context)


def _windows(text: Tensor, starts: Tensor, context: int) -> tuple[Tensor, Tensor]:
    windows = text[starts[:, None] + torch.arange(context + 1)].long()
    return windows[:, :-1], windows[:, 1:]


def load(path: str | None, context: int) -> Corpus:
    """The text of a file, or the standard library's where no path is given."""
    if path is None:
        return encode("text of the Python standard library", standard_library(), context)
    return encode(str(path), read_file(Path(path)), context)


def encode(source: str, text: str, context: int) -> Corpus:
    """The text as numbers, and its end held out."""
    counts = Counter(text)
    common = [c for c, n in counts.most_common(MOST) if n >= RARE * len(text) and c != UNKNOWN]
    characters = UNKNOWN + "".join(sorted(common))
    index = {c: i for i, c in enumerate(characters)}
    tokens = torch.tensor([index.get(c, 0) for c in text], dtype=torch.int16)
    held_out = int(HELD_OUT * len(tokens))
    if held_out < context + 2:
        needed = int((context + 2) / HELD_OUT) + 1
        raise UserError(
            f"--data {source}: {len(text):,} characters are too few, as the last {HELD_OUT:.0%} are held out and must "
            f"be longer than --context {context}. Give at least {needed:,} characters, or a smaller --context."
        )
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    return Corpus(source, digest, characters, tokens[:-held_out], tokens[-held_out:])


def read_file(path: Path) -> str:
    """The text of a UTF-8 file."""
    if not path.is_file():
        raise UserError(f"--data {path}: no such file. Give the path of a text file, or leave --data out.")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"--data {path}: not UTF-8 text ({error}). Save it as UTF-8.") from None
    except OSError as error:
        raise UserError(f"--data {path}: cannot be read ({error.strerror}). Give another text file.") from None


def standard_library() -> str:
    """Help topics and module sources with their docstrings, a few million characters, in the order of a hash of their
    names: so that the end of the text is of the same kind as the rest, and the same wherever this Python is."""
    pieces = sorted(_pieces(Path(sysconfig.get_path("stdlib"))), key=lambda piece: _digest(piece[0]))
    if not pieces:
        raise UserError("the standard library's sources are not installed here. Give a text file with --data FILE.")
    return "\n".join(text for _, text in pieces)


def _pieces(root: Path) -> Iterator[tuple[str, str]]:
    """Names and texts; sources are read, never imported."""
    for path in root.glob("*.py"):
        if not path.name.startswith("_sysconfigdata"):  # differs from machine to machine
            yield path.name, path.read_text(encoding="utf-8", errors="replace")
    try:
        topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    except ImportError:
        topics = {}
    yield from ((f"topic {name}", text) for name, text in topics.items())


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()
