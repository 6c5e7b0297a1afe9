"""Parameters with gradients for timing optimisers: a language model's, and LoRA pairs.

The gradient of a matrix is U diag(s) V^T with U and V known, so that its polar factor U V^T is, too: what a Muon step
should be, without computing one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor, nn

VOCABULARY = 8192
PAIRS = 48
SMALLEST = 1e-2
"""Singular value of a gradient whose largest is one."""


class Block(nn.Module):
    """The parameters of a transformer's layer."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.q, self.k, self.v, self.o = (nn.Linear(d, d, bias=False) for _ in range(4))
        self.up, self.down = nn.Linear(d, 4 * d, bias=False), nn.Linear(4 * d, d, bias=False)


class GPT(nn.Module):
    """The parameters of a language model."""

    def __init__(self, d: int, layers: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, d)
        self.blocks = nn.ModuleList(Block(d) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(d), nn.Linear(d, VOCABULARY, bias=False)


class Pair(nn.Module):
    """LoRA's two factors, in the middle of training."""

    def __init__(self, d: int, r: int) -> None:
        super().__init__()
        self.B = nn.Parameter(torch.randn(d, r) / d**0.5)
        self.A = nn.Parameter(torch.randn(r, d) / d**0.5)


def lora(d: int, r: int) -> nn.Module:
    """Pairs for q and v in each of 24 layers."""
    return nn.ModuleList(Pair(d, r) for _ in range(PAIRS))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "GPT 384 x 6": partial(GPT, 384, 6),
    "GPT 1024 x 2": partial(GPT, 1024, 2),
    **{f"LoRA {d} {r}": partial(lora, d, r) for d in (768, 4096) for r in (4, 16, 64)},
}


@dataclass(frozen=True)
class Parameters:
    """A module whose parameters have gradients; its matrices, without embedding and head, with the polar factors of
    those, and all other parameters."""

    module: nn.Module
    matrices: list[nn.Parameter]
    polar: list[Tensor]
    others: list[nn.Parameter]

    @property
    def all(self) -> list[nn.Parameter]:
        return [*self.matrices, *self.others]


def parameters(name: str) -> Parameters:
    """The named model anew, with the same numbers and the same gradients each time."""
    torch.manual_seed(0)
    module = MODELS[name]()
    tables = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding)}
    tables |= {id(p) for n, p in module.named_parameters() if n == "head.weight"}
    inner = {id(p) for p in module.parameters() if p.ndim == 2} - tables
    polar = []
    for k, p in enumerate(module.parameters()):
        if id(p) in inner:
            p.grad, factor = _gradient(tuple(p.shape), k)
            polar.append(factor)
        else:
            p.grad = torch.randn(p.shape)
    matrices = [p for p in module.parameters() if id(p) in inner]
    return Parameters(module, matrices, polar, [p for p in module.parameters() if id(p) not in inner])


def _gradient(shape: tuple[int, int], seed: int) -> tuple[Tensor, Tensor]:
    """A gradient and its polar factor."""
    u, v = _bases(shape)
    s = torch.logspace(0, torch.tensor(SMALLEST).log10().item(), u.shape[1])
    s = s[torch.randperm(len(s), generator=torch.Generator().manual_seed(seed))]
    return (u * s) @ v.mT, u @ v.mT


@cache
def _bases(shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    u, v = (torch.linalg.qr(torch.randn(n, min(shape), generator=generator))[0] for n in shape)
    return u, v
