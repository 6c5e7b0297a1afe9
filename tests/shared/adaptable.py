"""A small model with every kind of layer that PEFT's LoRA adapts; needs transformers, for one of them."""

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D


class Net(nn.Module):
    """Every kind of layer that LoRA adapts."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 12)
        self.conv = nn.Conv2d(1, 6, 3, padding=1)
        self.grouped = nn.Conv2d(6, 6, 3, padding=1, groups=2)
        self.signal = nn.Conv1d(12, 12, 3, padding=1)
        self.lin = nn.Linear(12, 10)
        self.old = Conv1D(8, 10)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, tokens):
        x = self.embed(tokens)
        x = x + self.grouped(self.conv(x[:, None])).mean(1) + self.signal(x.mT).mT
        x = self.old(torch.tanh(self.lin(x)))
        return self.head(x + self.attention(x, x, x)[0]).mean(1)
