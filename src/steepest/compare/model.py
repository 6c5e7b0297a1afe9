"""A small GPT of today's kind: RMSNorm before each part, rotary positions, no biases, an untied head."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BASE = 10_000.0
"""Longest wavelength of the rotary positions, over 2 pi."""


class Attention(nn.Module):
    """Causal attention with separate projections; the rotary positions come as `(context, head width / 2)` tables."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.o = (nn.Linear(width, width, bias=False) for _ in range(4))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """`(batch, time, width)` to the same."""
        q, k, v = (self._split(part(x)) for part in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(_rotate(q, cos, sin), _rotate(k, cos, sin), v, is_causal=True)
        return self.o(y.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        """`(batch, time, width)` to `(batch, heads, time, head width)`."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (x_i, x_{i + d/2}) of each head by angles that grow with time (Su et al. 2021, 2104.09864)."""
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)


class MLP(nn.Module):
    """Two layers of four times the width, with squared ReLU between them (So et al. 2021, 2109.08668)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """`(batch, time, width)` to the same."""
        return self.down(F.relu(self.up(x)).square())


class Block(nn.Module):
    """Attention, then MLP, each added to the stream."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.before_attention, self.attention = nn.RMSNorm(width), Attention(width, heads)
        self.before_mlp, self.mlp = nn.RMSNorm(width), MLP(width)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """`(batch, time, width)` to the same."""
        x = x + self.attention(self.before_attention(x), cos, sin)
        return x + self.mlp(self.before_mlp(x))


class GPT(nn.Module):
    """Logits of the next character; initialised from torch's global random numbers.

    Args:
        vocabulary: number of characters.
        width: of the stream between the layers.
        layers: number of blocks.
        heads: of the attention; twice their number divides `width`.
        context: longest text.
    """

    def __init__(self, vocabulary: int, width: int, layers: int, heads: int, context: int) -> None:
        super().__init__()
        # A vocabulary as long as a layer is wide would make that layer look like an output head; one row more tells
        # them apart, for whoever sorts parameters by their shapes.
        rows = vocabulary + (vocabulary in (width, 4 * width))
        self.embedding = nn.Embedding(rows, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = nn.RMSNorm(width)
        self.head = nn.Linear(width, rows, bias=False)
        half = width // heads // 2
        angles = torch.arange(context)[:, None] * BASE ** (-torch.arange(half) / half)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        self._initialise(layers)

    def _initialise(self, layers: int) -> None:
        """Gaussian, so that every layer keeps the size of what passes it; what is added to the stream is smaller the
        more layers add to it; embeddings have length about 1; all characters start about equally likely."""
        for name, p in self.named_parameters():
            if p.ndim == 2:
                std = p.shape[-1] ** -0.5
                if name.endswith(("o.weight", "down.weight")):
                    std *= (2 * layers) ** -0.5
                nn.init.normal_(p, std=0.02 if name == "head.weight" else std)

    def hidden(self, tokens: Tensor) -> Tensor:
        """The stream `(batch, time, width)` after the last block."""
        x, time = self.embedding(tokens), tokens.shape[-1]
        for block in self.blocks:
            x = block(x, self.cos[:time], self.sin[:time])  # type: ignore[index]
        return x

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits `(batch, time, vocabulary)` of characters `(batch, time)`."""
        return self.head(self.norm(self.hidden(tokens)))


KINDS = ("matrix", "embedding", "head", "other")
"""Kinds of parameters; "other" are the gains of the norms."""


def kind(name: str, p: Tensor) -> str:
    """Which kind of parameter one of a `GPT` is."""
    part = name.partition(".")[0]
    return part if part in ("embedding", "head") else "matrix" if p.ndim == 2 else "other"


def projections(model: GPT) -> list[Tensor]:
    """The query, key, value and output matrices of every attention."""
    found = (getattr(block.attention, name) for block in model.blocks for name in "qkvo")
    return [layer.weight for layer in found]
