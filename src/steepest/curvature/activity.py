"""Layers as matrices: what a layer saw, what came back to it, and where its gradient is kept."""

from __future__ import annotations

import dataclasses
import fnmatch
import weakref
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

CONVOLUTIONS: dict[type[nn.Module], int] = {nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3}
"""The convolutions that are layers, and their number of axes."""


@dataclasses.dataclass(frozen=True, eq=False)
class Layer:
    """A weight and its bias as one matrix [W | b] `(m, n)`: n counts what comes in, and one more for the bias, as if
    every input ended with a 1.

    Args:
        name: as the model has it.
        modules: those that hold this weight, all of one kind; more than one where it is tied.
        biased: whether the bias belongs to the matrix: it is there, and was not frozen.
    """

    name: str
    modules: tuple[nn.Module, ...]
    biased: bool

    @property
    def weight(self) -> Tensor:
        """The parameter that is there now."""
        return self.modules[0].weight  # type: ignore[return-value]

    @property
    def bias(self) -> Tensor | None:
        """The bias, if it belongs to the matrix."""
        return self.modules[0].bias if self.biased else None  # type: ignore[return-value]

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n)."""
        m, n = self._matrix(self.weight).shape
        return m, n + self.biased

    def inputs(self, module: nn.Module, x: Tensor) -> Tensor:
        """Every vector that the weight has multiplied, `(rows, n)`: of a convolution its patches."""
        rows = _patches(module, x) if isinstance(module, tuple(CONVOLUTIONS)) else x
        rows = rows.reshape(-1, rows.shape[-1])
        return torch.cat([rows, rows.new_ones(len(rows), 1)], -1) if self.biased else rows

    def outputs(self, module: nn.Module, g: Tensor) -> Tensor:
        """The gradients of what these products gave, `(rows, m)`."""
        if isinstance(module, tuple(CONVOLUTIONS)):
            g = g.movedim(-1 - CONVOLUTIONS[type(module)], -1)
        return g.reshape(-1, g.shape[-1])

    def examples(self, module: nn.Module, g: Tensor) -> int:
        """How many examples the outputs' gradient g is of: its first dimension, where it has one."""
        return len(g) if g.ndim > 1 + CONVOLUTIONS.get(type(module), 0) else 1

    def has_grad(self) -> bool:
        """Whether there is a gradient to precondition."""
        return self.weight.grad is not None and self.weight.requires_grad

    def grad(self) -> Tensor:
        """The gradient as a matrix; zero for a bias that has none."""
        g = self._matrix(self.weight.grad)  # type: ignore[arg-type]
        if not self.biased:
            return g
        b = None if self.bias is None else self.bias.grad
        return torch.cat([g, (g.new_zeros(len(g)) if b is None else b).unsqueeze(-1)], -1)

    def write(self, g: Tensor) -> None:
        """Put the matrix g into the gradients that are there."""
        weight, bias = self.weight.grad, None if self.bias is None else self.bias.grad
        w = g[:, :-1] if self.biased else g
        weight.copy_(w.T if self._is_transposed else w.reshape(weight.shape))  # type: ignore[union-attr]
        if bias is not None:
            bias.copy_(g[:, -1])

    @property
    def _is_transposed(self) -> bool:
        return _is_conv1d(self.modules[0])

    def _matrix(self, t: Tensor) -> Tensor:
        return t.T if self._is_transposed else t.flatten(1)


def _is_conv1d(module: nn.Module) -> bool:
    """GPT-2's linear layer, of transformers, which keeps its weight as in x out."""
    return type(module).__name__ == "Conv1D"


def _patches(module: Any, x: Tensor) -> Tensor:
    """What a convolution multiplies its weight with, `(*b, positions, n)`, in the order of the flattened weight."""
    axes = len(module.kernel_size)
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    batched = x if x.ndim == axes + 2 else x.unsqueeze(0)
    x = functional.pad(batched, module._reversed_padding_repeated_twice, mode=mode)
    for i, (k, s, d) in enumerate(zip(module.kernel_size, module.stride, module.dilation, strict=True)):
        x = x.unfold(2 + i, (k - 1) * d + 1, s)[..., ::d]
    return x.movedim(1, 1 + axes).flatten(1 + axes).flatten(1, axes)


def _supported(module: nn.Module) -> bool:
    """Whether the module's output is a product with its weight, at every position the same."""
    if type(module) in CONVOLUTIONS:
        return module.groups == 1  # type: ignore[return-value]
    return isinstance(module, nn.Linear) or _is_conv1d(module)


def layers(model: nn.Module, skip: tuple[str, ...]) -> list[Layer]:
    """The layers of a model that are trained, without those that a pattern of `skip` names."""
    found: dict[int, list[tuple[str, nn.Module]]] = {}
    foreign: set[int] = set()
    for name, module in model.named_modules():
        weight = module._parameters.get("weight")
        if weight is not None and _supported(module):
            found.setdefault(id(weight), []).append((name, module))
            foreign |= {id(p) for key, p in module._parameters.items() if key not in ("weight", "bias")}
        else:
            foreign |= {id(p) for p in module._parameters.values()}
    return [layer for key, places in found.items() if key not in foreign for layer in _layer(places, skip)]


def _layer(places: list[tuple[str, nn.Module]], skip: tuple[str, ...]) -> Iterator[Layer]:
    names, modules = zip(*places, strict=True)
    weight, bias = modules[0]._parameters["weight"], modules[0]._parameters.get("bias")
    alike = all(type(m) is type(modules[0]) and m._parameters.get("bias") is bias for m in modules)
    if isinstance(weight, nn.parameter.UninitializedParameter):
        raise ValueError(f"{names[0]}: its weight has no shape yet; run the model once before")
    named = any(fnmatch.fnmatchcase(name, pattern) for name in names for pattern in skip)
    if not alike or named or not weight.requires_grad:
        return
    if hasattr(weight, "full_tensor"):
        raise ValueError(f"{names[0]}: is sharded (a DTensor), and its factors need it whole; replicate it or skip it")
    if weight.is_complex():
        raise ValueError(f"{names[0]}: is complex, and factors are made for real layers; name it in skip")
    yield Layer(names[0], modules, bias is not None and bias.requires_grad)


# Recording. -----------------------------------------------------------------------------------------------------------


class Recorder(Protocol):
    """Whom a hook works for."""

    def wants(self) -> bool:
        """Whether what is going on now is to be recorded."""

    def record(self, index: Any, module: nn.Module, x: Tensor, g: Tensor) -> None:
        """Take a module's input, and the gradient of its output."""


class Hook:
    """A forward hook that hands a module's input, and later the gradient of its output, to a recorder that it does not
    keep alive. A copy of the model, and a pickled one, carries an idle one."""

    def __init__(self, recorder: Recorder | None = None, index: Any = None) -> None:
        self._recorder = (lambda: None) if recorder is None else weakref.ref(recorder)
        self._index = index

    def __call__(self, module: nn.Module, args: Any, kwargs: dict[str, Any], output: Tensor) -> None:
        """Watch the output, if somebody wants it and there is a gradient to come."""
        recorder = self._recorder()
        if recorder is None or not module.training or not output.requires_grad or not recorder.wants():
            return
        x = (args[0] if args else next(iter(kwargs.values()))).detach()
        # A hook on the output, for a backward hook of the module would not survive an in-place activation behind it.
        output.register_hook(lambda g: self._hand_on(module, x, g))

    @torch.no_grad()
    def _hand_on(self, module: nn.Module, x: Tensor, g: Tensor) -> None:
        recorder = self._recorder()
        if recorder is not None:
            recorder.record(self._index, module, x, g)

    def __deepcopy__(self, memo: Any) -> Hook:
        return Hook()

    def __reduce__(self) -> Any:
        return Hook, ()


@dataclasses.dataclass
class Seen:
    """What a layer has seen since the last step, in sums over all rows.

    Backward passes are told apart: what one of them shows in several uses of a layer are positions of the same
    examples, what another one shows are more examples.
    """

    inputs: Tensor | None = None
    outputs: Tensor | None = None
    rows: int = 0
    examples: int = 0
    task: int = -1
    """The backward pass that was the last."""
    _of_task: int = 0

    def add(self, inputs: Tensor, outputs: Tensor, rows: int, examples: int, task: int) -> None:
        """One use of the layer."""
        self.inputs = inputs if self.inputs is None else self.inputs + inputs
        self.outputs = outputs if self.outputs is None else self.outputs + outputs
        before = self._of_task if task == self.task else 0
        self.rows += rows
        self.examples += max(0, examples - before)
        self.task, self._of_task = task, max(before, examples)
