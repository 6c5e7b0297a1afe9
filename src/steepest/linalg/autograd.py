"""Hand-written derivatives: one kind of `torch.autograd.Function` for the whole layer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad


def plain(*args: Any) -> bool:
    """Whether a formula of these arguments need only be evaluated: nobody will differentiate it, backward or forward,
    and nothing transforms, traces or compiles it. Then it may also be cut short by what its values are."""
    return not (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        or torch._C._len_torch_dispatch_stack()
        or (torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in args))
    )


class Rule(Function):
    """A Function of one output with `forward`, `backward` and `tangent`, the forward-mode rule (torch's `jvp`).

    torch.compile with fullgraph refuses a Function that has a `jvp` ("Unsupported custom jvp"), so there are two
    classes: the one that is written, and a subclass of it with `jvp`, used whenever nothing is being compiled. Apply
    by `call`, not `apply`. The rule of vmap is generated, so `forward` is made of torch operations only.
    """

    generate_vmap_rule = True
    eager: ClassVar[type[Rule]]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "tangent" in vars(cls):
            cls.eager = type(cls.__name__, (cls,), {"jvp": staticmethod(_nested(cls.tangent))})

    @classmethod
    def call(cls, *args: Any) -> Any:
        """`cls.apply`, with forward mode where that can be had; `forward` alone where there is nothing to derive, for
        `apply` costs as much as ten products of small matrices."""
        if plain(*args):
            return cls.forward(*args)
        return (cls if torch.compiler.is_compiling() else cls.eager).apply(*args)

    @staticmethod
    def tangent(ctx: Any, *tangents: Any) -> Any:
        """Derivative of the output along the tangents of the inputs; None stands for a zero tangent."""
        raise NotImplementedError

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Keep every tensor among the inputs, in order, as `ctx.saved_tensors`, and what is left as `ctx.rest`."""
        tensors = [x for x in inputs if isinstance(x, Tensor)]
        ctx.rest = [x for x in inputs if not isinstance(x, Tensor)]
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)


def _nested(tangent: Callable[..., Any]) -> Callable[..., Any]:
    """The rule as torch's `jvp`, right for `torch.func.jvp` inside `torch.func.jvp` too.

    While a `jvp` runs, torch turns forward mode off for the outer transform as well, whose result would be wrong
    without a word. What goes through a Function escapes that, so under `torch.func` the rule becomes one.
    """

    def jvp(ctx: Any, *tangents: Any) -> Any:
        if not torch._C._are_functorch_transforms_active():
            return tangent(ctx, *tangents)
        saved, along = ctx.saved_tensors, {i: t for i, t in enumerate(tangents) if t is not None}
        rest = getattr(ctx, "rest", [])

        def formula(*args: Tensor) -> Tensor:
            given = dict(zip(along, args[len(saved) :], strict=True))
            context = SimpleNamespace(saved_tensors=args[: len(saved)], rest=rest)
            return tangent(context, *(given.get(i) for i in range(len(tangents))))

        return _Formula.apply(formula, *saved, *along.values())

    return jvp


class _Formula(Function):
    """A formula made of torch operations, differentiated by torch; its forward derivative is one as well."""

    generate_vmap_rule = True

    @staticmethod
    def forward(formula: Callable[..., Any], *args: Tensor) -> Any:
        return formula(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.formula, *args = inputs
        ctx.save_for_backward(*args)
        ctx.save_for_forward(*args)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return None, *torch.func.vjp(ctx.formula, *ctx.saved_tensors)[1](g)

    @staticmethod
    def jvp(ctx: Any, _: None, *tangents: Any) -> Any:
        args = ctx.saved_tensors
        moved = [torch.zeros_like(x) if t is None else t for x, t in zip(args, tangents, strict=True)]
        return _Formula.apply(partial(_derivative, ctx.formula), *args, *moved)


def _derivative(formula: Callable[..., Any], *args: Tensor) -> Any:
    half = len(args) // 2
    return torch.func.jvp(formula, args[:half], args[half:])[1]
