"""Hand-written derivatives: one kind of `torch.autograd.Function` for the whole layer."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.autograd import Function


class Rule(Function):
    """A Function with `forward`, `backward` and `tangent`, the forward-mode rule (what torch calls `jvp`).

    torch.compile with fullgraph refuses a Function that has a `jvp` ("Unsupported custom jvp"), so there are two
    classes: the one that is written, and a subclass of it with `jvp`, used whenever nothing is being compiled. Apply
    by `call`, not `apply`. The rule of vmap is generated, so `forward` is made of torch operations only.
    """

    generate_vmap_rule = True
    eager: ClassVar[type[Rule]]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "tangent" in vars(cls):
            cls.eager = type(cls.__name__, (cls,), {"jvp": staticmethod(cls.tangent)})

    @classmethod
    def call(cls, *args: Any) -> Any:
        """`cls.apply`, with forward mode where that can be had."""
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
