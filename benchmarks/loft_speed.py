"""Orthogonal adapters beside LoRA: time of a forward and a backward pass, and what is kept between the two.

    python benchmarks/loft_speed.py
    python benchmarks/loft_speed.py --size 2048 --rank 64

One linear layer inside PEFT, in float32 on the CPU, whose input requires a gradient as that of every layer but the
first does. Rounds are interleaved, so that what else the machine does meets all of them; the table gives medians,
their ratios to LoRA's, and the same of what comes on top of the frozen layer alone. What is kept: the bytes of all
storages that a forward pass saves for the backward one, without those of the layer's own parameters and buffers.
"""

from __future__ import annotations

import argparse
import statistics
import time

import peft
import torch
from torch import nn

from steepest.adapters import HRAConfig, LOFTConfig

BLOCK = 32
BASE, LORA = "no adapter", "LoRA (PEFT)"


def configs(rank):
    """Each method at equal rank; of OFT blocks of that size."""
    layer = {"target_modules": ["0"]}
    return {
        BASE: None,
        LORA: peft.LoraConfig(r=rank, init_lora_weights=False, **layer),
        "LOFT": LOFTConfig(r=rank, init_weights=False, **layer),
        "HRA": HRAConfig(r=rank, init_weights=False, **layer),
        "HRA (PEFT)": peft.HRAConfig(r=rank, init_weights=False, **layer),
        "OFT (PEFT)": peft.OFTConfig(r=0, oft_block_size=BLOCK, init_weights=False, **layer),
        "PSOFT (PEFT)": peft.PsoftConfig(r=rank, psoft_alpha=rank, init_weights=False, **layer),
    }


def adapted(config, size):
    torch.manual_seed(0)
    if config is None:
        return nn.Sequential(nn.Linear(size, size)).requires_grad_(False)
    return peft.get_peft_model(nn.Sequential(nn.Linear(size, size)), config)


def once(model, x, g):
    """Seconds of a forward and a backward pass; of one thread its own, which other programs do not take from it."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    model.zero_grad(set_to_none=True)
    x.grad = None
    start = clock()
    model(x).backward(g)
    return clock() - start


def kept(model, x):
    """Bytes that the forward pass keeps for the backward one, besides parameters and buffers."""
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    found = {}

    def pack(t):
        storage = t.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = model(x)
    assert y.requires_grad  # alive until here, so that no storage has been used twice
    return sum(found.values())


def measure(options):
    """Rows (method, seconds, ratio to LoRA, ratio of what the adapter adds, bytes, ratio to LoRA)."""
    models = {name: adapted(config, options.size) for name, config in configs(options.rank).items()}
    x = torch.randn(options.batch, options.tokens, options.size).requires_grad_()
    g = torch.randn(options.batch, options.tokens, options.size)
    memory = {name: kept(model, x) for name, model in models.items()}
    times = {name: [] for name in models}
    for i in range(options.rounds + 1):
        for name, model in models.items():
            seconds = once(model, x, g)
            if i:  # the first round warms up
                times[name].append(seconds)
    middle = {name: statistics.median(seconds) for name, seconds in times.items()}
    base, lora = middle[BASE], middle[LORA]
    return [
        (n, middle[n], middle[n] / lora, (middle[n] - base) / (lora - base), memory[n], memory[n] / memory[LORA])
        for n in models
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=1024, help="inputs and outputs of the layer")
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print("| method | forward and backward, ms | to LoRA | on top, to LoRA | kept, MB | to LoRA |")
    print("|---|--:|--:|--:|--:|--:|")
    for name, seconds, ratio, on_top, size, share in measure(options):
        print(f"| {name} | {seconds * 1e3:.1f} | {ratio:.2f} | {on_top:.2f} | {size / 1e6:.2f} | {share:.2f} |")


if __name__ == "__main__":
    main()
