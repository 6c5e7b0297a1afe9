"""Learning rates and initial weights that were found on a narrow model, for a wide one."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from steepest.manifolds.euclidean import Euclidean
from steepest.optim.axes import to_matrix
from steepest.optim.engine import Optimizer
from steepest.optim.groups import clean, param_groups
from steepest.optim.listing import part_of
from steepest.transforms import Chain, Context

PARAMETRIZATIONS = ("mup", "u-mup")


def width_transfer(
    optimizer: type[Optimizer],
    model: nn.Module,
    base: nn.Module | None = None,
    *,
    parametrization: str = "mup",
    init: bool = True,
    **options: Any,
) -> Optimizer:
    """An optimiser of `model` under which the best learning rate does not depend on the model's width; the model's
    initial weights are rescaled in place to match.

    One rule serves every optimiser (Yang, Simon and Bernstein 2023, 2310.17813, the spectral condition): a step of a
    weight m x n (out x in) should have the size sqrt(m / n), so that every layer changes its output by as much at any
    width. What size a method's steps have for a shape is measured, on a gradient as a network of that width has it: of
    rank one, with entries 1 / m. So SGD gets learning rates as m / n, Adam as 1 / n, and Muon what its shape factor
    lacks, as derived for each by Yang et al. 2022 (2203.03466), and for Shampoo by Ishikawa and Karakida 2024
    (2312.12226).

    "mup" is relative to `base`, the same model of the width at which the learning rate was found. A weight's root mean
    square at the start is that in `base` times the ratio of sqrt(m / n) / (sqrt(m) + sqrt(n)) between the two; its
    learning rate that of the optimiser times the ratio of sqrt(m / n) over the size of a step. Embeddings, biases and
    gains keep the size of their entries and of these entries' steps. Where a head is tied to an embedding, a hook
    scales its input by the ratio of widths.

    "u-mup" is that part of Blake et al. 2025 (2407.17465) which concerns weights: all start with root mean square one,
    and hooks scale the input of a layer by 1 / sqrt(n), of a head by 1 / n; embeddings learn at lr / sqrt(width). There
    is no base: lr is that of a weight 1 x 1. Unit-scaled activations, attention and residuals are up to the model.

    Args:
        optimizer: any class of this library.
        model: the wide model, as initialised.
        base: the narrow model, initialised in the same way, with parameters of the same names; for "mup" alone.
        parametrization: "mup" or "u-mup".
        init: False leaves the weights as they are; `base` may then be on the meta device.
        **options: the optimiser's, as found at the base width.

    Returns:
        The optimiser, with a learning rate in every group of `param_groups`. Decoupled weight decay keeps lr times
        weight_decay as it is.

    Points on manifolds, LoRA's pairs among them, keep their learning rate: frames measure a step against the point.
    Attention should get more heads, not longer ones, or else be scaled by the inverse of their length in the model.
    Hooks belong to the model in memory and its copies, not to its state dictionary: call this again on a model built
    anew.

    >>> narrow, wide = (torch.nn.Sequential(torch.nn.Linear(3, n), torch.nn.Linear(n, n)) for n in (8, 32))
    >>> optimizer = width_transfer(Adam, wide, narrow, lr=0.01)
    >>> [(g["param_names"], round(g["lr"], 6)) for g in optimizer.param_groups]
    [(['0.weight'], 0.01), (['1.weight'], 0.0025), (['0.bias', '1.bias'], 0.01)]
    """
    if parametrization not in PARAMETRIZATIONS:
        raise ValueError(f"parametrization: unknown {parametrization!r}, expected one of {', '.join(PARAMETRIZATIONS)}")
    if (base is None) == (parametrization == "mup"):
        word = "needs a" if base is None else "takes no"
        raise ValueError(f"base: {parametrization!r} {word} model of the width at which lr was found")
    weights = _weights(model, base)
    hooks = list(_hooks(model, weights))
    result = optimizer(list(_alike(model, weights)), **options)
    for group in result.param_groups:
        rate = weights[group["param_names"][0]].rate(result.chain(group))
        group["lr"] *= rate
        if "weight_decay" in group:
            group["weight_decay"] /= rate
    for weight in weights.values() if init else ():
        weight.rescale()
    for module, factor in hooks:
        module.register_forward_pre_hook(functools.partial(_scale_input, factor=factor))
    return result


@dataclasses.dataclass(frozen=True)
class _Weight:
    """A parameter as a map from n inputs to m outputs; an embedding has one, the token, and so has a vector."""

    p: Tensor
    role: str
    base: Tensor | None
    pattern: str | None = None
    lengths: dict[str, int] = dataclasses.field(default_factory=dict)
    tied: bool = False

    def matrix(self, p: Tensor) -> Tensor:
        return to_matrix(p, self.pattern, self.lengths)

    def shape(self, p: Tensor) -> tuple[int, int]:
        """m and n."""
        if self.is_table:
            return (p.shape[-1] if p.ndim else 1), 1
        x = self.matrix(p)
        return x.shape[-2], x.shape[-1]

    @property
    def is_table(self) -> bool:
        """Whether rows are what comes out: tables of embeddings or positions, vectors."""
        if self.role in ("embedding", "other") or self.tied:
            recurrent = self.role == "other" and self.p.ndim == 2 and self.base is not None
            return not (recurrent and self.p.shape[0] != self.base.shape[0])  # type: ignore[union-attr]
        return False

    @property
    def sizes(self) -> Any:
        """What the learning rate depends on."""
        return self.is_table, tuple(self.p.shape), self.base is not None and tuple(self.base.shape)

    def rate(self, chain: Chain) -> float:
        """Factor of the learning rate."""
        if self.role == "point":
            return 1.0
        if self.base is not None:
            return self._unscaled_rate(chain, self.p) / self._unscaled_rate(chain, self.base)
        rate = self._unscaled_rate(chain, self.p) * _mean_step(chain, torch.empty(1, 1), 1) / self.multiplier()
        return rate / self.p.shape[-1] ** 0.5 if self.role == "embedding" or self.tied else rate

    def _unscaled_rate(self, chain: Chain, p: Tensor) -> float:
        """sqrt(m / n) over the size of a step, for a weight of the shape of p: a step of mean entry e along a rank-one
        pattern of signs has the size e sqrt(m n)."""
        m, n = self.shape(p)
        x = torch.empty(p.shape) if self.role in ("embedding", "other") or self.tied else _one(self.matrix(p))
        return 1 / (n * _mean_step(chain, x, m))

    def multiplier(self) -> float:
        """Of the input under u-muP."""
        n = self.shape(self.p)[1]
        return {"matrix": n**-0.5, "head": 1.0 if self.tied else 1 / n}.get(self.role, 1.0)

    def input_factor(self) -> float:
        """By what a hook scales the input of the layer."""
        if self.tied:
            return (self.base.shape[-1] if self.base is not None else 1) / self.p.shape[-1]
        return self.multiplier() if self.base is None else 1.0

    @torch.no_grad()
    def rescale(self) -> None:
        """Bring the initial weights to their size."""
        size = _rms(self.p)
        if self.role == "point" or self.p.ndim < 2 or size == 0:
            return
        if self.base is None:
            self.p.mul_(1 / size)
        else:
            self.p.mul_(_rms(self.base) / size * self._deviation(self.p) / self._deviation(self.base))

    def _deviation(self, p: Tensor) -> float:
        """Of entries that give a Gaussian matrix m x n the size sqrt(m / n)."""
        m, n = self.shape(p)
        return 1.0 if self.is_table else (m / n) ** 0.5 / (m**0.5 + n**0.5)


def _weights(model: nn.Module, base: nn.Module | None) -> dict[str, _Weight]:
    """Every trainable parameter by its name, with its counterpart."""
    theirs = {clean(name): p for name, p in base.named_parameters()} if base is not None else {}
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)}
    found = {}
    for group in param_groups(model):
        for name, p in zip(group["param_names"], group["params"], strict=True):
            if base is not None and (name not in theirs or theirs[name].ndim != p.ndim):
                raise ValueError(
                    f"base: has no parameter like {name} of the model; it must be the same model but for width"
                )
            pattern = group["matrix"][0] if isinstance(group["matrix"], list | tuple) else group["matrix"]
            tied = group["role"] == "head" and id(p) in tables
            found[name] = _Weight(p, group["role"], theirs.get(name), pattern, group["sizes"], tied)
    return found


def _alike(model: nn.Module, weights: dict[str, _Weight]) -> Iterator[dict[str, Any]]:
    """Groups whose parameters share a learning rate; points of several tensors stay together."""
    for group in param_groups(model):
        alike: dict[Any, list[int]] = {}
        for i, name in enumerate(group["param_names"]):
            alike.setdefault(weights[name].sizes if group["role"] != "point" else None, []).append(i)
        yield from (part_of(group, index) for index in alike.values())


def _mean_step(chain: Chain, x: Tensor, m: int) -> float:
    """The mean entry of a method's first step on a weight like x, along its gradient: signs of rank one over m; of the
    second, where a method only looks at its first gradient."""
    generator = torch.Generator().manual_seed(0)
    signs = torch.ones(())
    for size in x.shape:
        signs = signs.unsqueeze(-1) * torch.randint(0, 2, (size,), generator=generator).mul(2).sub(1).float()
    manifold = Euclidean(x.ndim)
    first = Context(manifold, manifold.frame(torch.zeros_like(signs)), 1.0, 1)
    h = (signs / m,)
    with torch.no_grad():
        states = chain.init(h, first)
        steps = [chain.update(h, states, dataclasses.replace(first, step=i))[0].clone() for i in (1, 2)]
    return next((step * signs).mean().item() for step in steps if step.any())


def _one(x: Tensor) -> Tensor:
    """The first matrix of a batch, without its entries."""
    return torch.empty(x.shape[-2:])


def _rms(p: Tensor) -> float:
    return p.detach().float().square().mean().sqrt().item()


def _hooks(model: nn.Module, weights: dict[str, _Weight]) -> Iterator[tuple[nn.Module, float]]:
    """Modules whose input has to be scaled, and by what."""
    by_id = {id(w.p): (name, w) for name, w in weights.items()}
    for module in model.modules():
        for own, p in module._parameters.items():
            name, weight = by_id.get(id(p), ("", None))
            if weight is None or isinstance(module, nn.Embedding | nn.EmbeddingBag):
                continue
            factor = weight.input_factor()
            if factor == 1:
                continue
            if own != "weight":
                raise ValueError(
                    f"{name}: is no layer's `weight`, so that u-muP cannot scale its layer's input; use 'mup'"
                )
            if any(getattr(hook, "func", None) is _scale_input for hook in module._forward_pre_hooks.values()):
                raise ValueError(f"{name}: its layer's input is scaled already; call width_transfer once on a model")
            yield module, factor


def _scale_input(module: nn.Module, inputs: tuple[Any, ...], factor: float) -> tuple[Any, ...]:
    return (inputs[0] * factor, *inputs[1:])
