"""What a preconditioner of layers is: hooks, factors, and what it does to gradients."""

from __future__ import annotations

import abc
import contextlib
import inspect
from collections.abc import Iterator
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from steepest.curvature.activity import Hook, Layer, Seen, layers
from steepest.curvature.bucket import Bucket, State
from steepest.curvature.options import SHARED, check_options
from steepest.linalg.precision import widen

PRECONDITIONERS: dict[str, type[LayerPreconditioner]] = {}
"""Every preconditioner by its name in lower case; a class enters by being defined."""


class LayerPreconditioner(abc.ABC):
    """Rewrites the gradients of a model's layers, by what these layers saw and what came back to them.

    It is not an optimiser: it works on `.grad` before the step of any optimiser, of torch or of this library, on any
    manifold. `attach(optimizer)` lets every `optimizer.step()` begin with `precondition()`, which can be called by hand
    instead.

    Layers are `nn.Linear` (with any leading dimensions), `nn.Conv1d`, `nn.Conv2d` and `nn.Conv3d` with groups=1, and
    transformers' `Conv1D`; weight and bias are treated as one matrix [W | b] `(m, n)`. Left alone are all other
    parameters, layers that have not been used since the last step, layers whose weight is frozen when the
    preconditioner is built, or is shared with a module of another kind (an embedding).

    With inputs a `(rows, n)`, of a convolution all its patches, and gradients g `(rows, m)` of the outputs for the loss
    of a single example, factors are made of the averages of a a^T over all rows, and of g g^T, summed over the
    positions of an example and averaged over examples ("expand" of Eschenhagen et al. 2023, 2311.00636). Forward passes
    without gradients or in evaluation mode do not count. Passes that accumulate in `.grad` count as one with more
    examples; uses of a layer in one backward pass count as positions of the same examples. In runs of several processes
    (which must use the same layers) the averages are those over all of them.

    Nothing is kept of a pass but such sums, and only at steps when they are due; until the backward pass is over the
    inputs are, which autograd holds anyway (but for checkpointed activations).

    Where a layer's averages are not finite, its factors stay as they are; where its gradient is not, `.grad` stays, so
    that the optimiser can decide. Layers of one shape are worked off as one batch.

    A subclass says what it keeps (`_start`), what it sums (`_observe`) and what it makes of that (`_update`, `_apply`),
    each on stacked layers.
    """

    moment: ClassVar[int] = 2
    """2 where sums are of squares, 1 where they are of the vectors themselves."""
    linear: ClassVar[bool] = True
    """Whether, but for a rescaling, the preconditioned gradient is linear in the gradient."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not inspect.isabstract(cls):
            PRECONDITIONERS[cls.__name__.lower()] = cls

    def __init__(self, model: nn.Module, options: dict[str, Any]) -> None:
        self.options = options
        check_options(options)
        skip = (options["skip"],) if isinstance(options["skip"], str) else tuple(options["skip"])
        self._step = 0
        self._extra: State = {}
        """State that belongs to no layer."""
        self._sampling = False
        self._optimizer: torch.optim.Optimizer | None = None
        self._attached: RemovableHandle | None = None
        self._buckets = self._sorted([x for x in layers(model, skip) if max(x.shape) <= options["max_side"]])
        if not self._buckets:
            raise ValueError("model: has no layer to precondition: no trained Linear, Conv1d, Conv2d, Conv3d or Conv1D")
        self._handles = [
            module.register_forward_hook(Hook(self, (bucket, i)), with_kwargs=True)
            for bucket in self._buckets
            for i, layer in enumerate(bucket.layers)
            for module in layer.modules
        ]

    def _sorted(self, found: list[Layer]) -> list[Bucket]:
        alike: dict[Any, list[Layer]] = {}
        for layer in found:
            w = layer.weight
            alike.setdefault((layer.shape, layer.biased, w.dtype, w.device), []).append(layer)
        buckets = []
        for (shape, _, weight_dtype, device), members in alike.items():
            kept = self.options["dtype"] or weight_dtype
            dtype = widen(torch.empty(0, dtype=torch.promote_types(kept, weight_dtype))).dtype
            fresh = self._start(torch.empty(len(members), *shape, dtype=dtype, device=device))
            if self.options["dtype"] is not None:  # but for numbers, one to a layer
                fresh = {k: v if v.ndim == 1 else v.to(kept) for k, v in fresh.items()}
            buckets.append(Bucket(members, dtype, fresh, [None] * len(members)))
        return buckets

    # What a method is. ------------------------------------------------------------------------------------------------

    @abc.abstractmethod
    def _start(self, like: Tensor) -> State:
        """State of layers with matrices `like` `(l, m, n)`; every tensor begins with l."""

    @abc.abstractmethod
    def _observe(self, state: State, a: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        """What is summed over rows of inputs `(rows, n)` and of gradients `(rows, m)` of one layer."""

    @abc.abstractmethod
    def _update(self, state: State, a: Tensor, g: Tensor, shape: tuple[int, int]) -> State:
        """New state from the averages of what was observed, both `(l, ...)`, in layers of shape (m, n)."""

    @abc.abstractmethod
    def _apply(self, state: State, g: Tensor) -> Tensor:
        """The preconditioned gradients of g `(l, m, n)`."""

    @classmethod
    @abc.abstractmethod
    def examples(cls) -> list[dict[str, Any]]:
        """Options that the common suite runs it with."""

    def _is_over(self) -> bool:
        """Whether it has retired for good, and gradients stay as they are."""
        return bool(self._extra.get("over", False))

    # Using it. --------------------------------------------------------------------------------------------------------

    @property
    def layers(self) -> list[str]:
        """Names of the layers that it preconditions."""
        return [layer.name for bucket in self._buckets for layer in bucket.layers]

    @property
    def due(self) -> bool:
        """Whether the factors are updated at the step to come, so that a pass with sampled labels is of use."""
        return self._step % self.options["every"] == 0 and not self._is_over()

    def attach(self, optimizer: torch.optim.Optimizer) -> Self:
        """Precondition at the beginning of every step of an optimiser, after its closure if it has one.

        The optimiser then keeps the preconditioner alive. Steps that are taken in backward, without `step()`, pass it
        by.
        """
        if self._attached is not None:
            raise ValueError("optimizer: the preconditioner is attached already; for a second one call precondition()")
        if not self._handles:
            raise ValueError("optimizer: the preconditioner has left its model by detach(); build a new one")
        ours = {id(x.weight) for bucket in self._buckets for x in bucket.layers}
        if not ours & {id(p) for group in optimizer.param_groups for p in group["params"]}:
            raise ValueError("optimizer: has none of the weights of the preconditioner's model")
        self._optimizer = optimizer
        self._attached = optimizer.register_step_pre_hook(self._before_step)
        return self

    def detach(self) -> None:
        """Leave model and optimiser as they were before; for good, as for the model."""
        for handle in self._handles:
            handle.remove()
        if self._attached is not None:
            self._attached.remove()
        self._handles, self._attached, self._optimizer = [], None, None

    @contextlib.contextmanager
    def sampling(self) -> Iterator[None]:
        """With fisher="sampled": what runs forward and backward in this context is what the factors are made of.

        Take the loss there with labels drawn from what the model predicts, and call `zero_grad()` after: averages over
        such gradients are the true Fisher matrix, with the labels of the data they are the empirical one. Several
        passes are as one with more examples, so that each of k is to be divided by k.

        >>> layer = torch.nn.Linear(3, 2)
        >>> kfac = KFAC(layer, fisher="sampled", every=10).attach(SGD(layer.parameters(), lr=0.1))
        >>> if kfac.due:
        ...     with kfac.sampling():
        ...         output = layer(torch.randn(8, 3))
        ...         drawn = output.detach() + torch.randn(8, 2)
        ...         (0.5 * (output - drawn).square().sum(-1)).mean().backward()
        ...     layer.zero_grad()
        """
        if self.options["fisher"] != "sampled":
            raise ValueError("sampling: this preconditioner was built with fisher='empirical'")
        self._sampling = True
        try:
            yield
        finally:
            self._sampling = False

    @torch.no_grad()
    def precondition(self) -> None:
        """Update the factors, if that is due, and rewrite the gradients of all layers that have one."""
        if not self._is_over():
            for bucket in self._buckets:
                self._learn(bucket)
            self._rewrite()
        self._step += 1

    def _learn(self, bucket: Bucket) -> None:
        """New factors of the layers that have been used since the last step."""
        index = [i for i, seen in enumerate(bucket.seen) if seen is not None]
        if not index:
            return
        averages = [self._averages(bucket.seen[i]) for i in index]  # type: ignore[arg-type]
        bucket.seen = [None] * len(bucket.seen)
        a, g = (_over_processes(torch.stack(parts)) for parts in zip(*averages, strict=True))
        new = self._update(bucket.part(index), a, g, bucket.layers[0].shape)
        bucket.replace(index, new, _finite(a) & _finite(g) & torch.stack([_finite(v) for v in new.values()]).all(0))

    def _averages(self, seen: Seen) -> tuple[Tensor, Tensor]:
        """What a layer has seen, with gradients of single examples: their average over rows, or, of squares, over
        examples."""
        of_mean = self.options["loss"] != "sum"
        weight = (seen.examples if of_mean else 1) / (1 if self.moment == 2 else seen.rows)
        assert seen.inputs is not None
        assert seen.outputs is not None
        return seen.inputs / seen.rows, seen.outputs * weight

    def _rewrite(self) -> None:
        """Put preconditioned gradients in the place of the gradients."""
        work = []
        for bucket in self._buckets:
            index = [i for i, layer in enumerate(bucket.layers) if layer.has_grad()]
            if index:
                g = torch.stack([bucket.layers[i].grad().to(bucket.dtype) for i in index])
                p = self._apply(bucket.part(index), g)
                work.append(([bucket.layers[i] for i in index], g, torch.where(_finite(g)[:, None, None], p, g)))
        if work and self.options["rescale"] is not None:
            members, g_, p_ = (list(t) for t in zip(*work, strict=True))
            factors = self.options["rescale"].factors(g_, p_, [self._rates(m) for m in members])
            for g, p, factor in zip(g_, p_, factors, strict=True):
                p.copy_(torch.where(_finite(g)[:, None, None], p * factor[:, None, None], g))
        for members, _, p in work:
            for layer, part in zip(members, p.unbind(), strict=True):
                layer.write(part)

    def _rates(self, members: list[Layer]) -> list[float | Tensor]:
        """The learning rate of each layer's weight."""
        if not self.options["rescale"].needs_lr:
            return []
        if self._optimizer is None:
            raise ValueError(f"rescale: {self.options['rescale']} needs learning rates; attach() to an optimiser")
        of = {id(p): group["lr"] for group in self._optimizer.param_groups for p in group["params"]}
        return [of.get(id(layer.weight), 0.0) for layer in members]

    def _before_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> Any:
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)  # args[0] is the optimiser
        if closure is None:
            self.precondition()
            return None

        def preconditioned() -> Any:
            loss = closure()
            self.precondition()
            return loss

        return (args[0], preconditioned), {k: v for k, v in kwargs.items() if k != "closure"}

    # Recording. -------------------------------------------------------------------------------------------------------

    def wants(self) -> bool:
        """Whether a forward pass now is one to learn from."""
        sampled = self.options["fisher"] == "sampled"
        return self.due and self._sampling == sampled

    def record(self, index: tuple[Bucket, int], module: nn.Module, x: Tensor, g: Tensor) -> None:
        """Add what a layer has seen in one use; called by hooks in the backward pass."""
        bucket, i = index
        layer, seen, task = bucket.layers[i], bucket.seen[i], torch._C._current_graph_task_id()
        if seen is None or (task != seen.task and layer.weight.grad is None):  # zero_grad() has begun something new
            seen = bucket.seen[i] = Seen()
        scale = self.options["scale"]
        rows = layer.outputs(module, g).to(bucket.dtype) / (scale() if callable(scale) else scale)
        count = len(rows) if self.options["loss"] == "token_mean" else layer.examples(module, g)
        state = {k: v[i].to(bucket.dtype) for k, v in bucket.state.items()}
        sums = self._observe(state, layer.inputs(module, x).to(bucket.dtype), rows)
        seen.add(*sums, len(rows), count, task)

    # Checkpoints. -----------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The number of steps, and the factors of every layer by its name: plain tensors."""
        kept = {
            layer.name: {key: value[i].clone() for key, value in bucket.state.items()}
            for bucket in self._buckets
            for i, layer in enumerate(bucket.layers)
        }
        extra = {key: value.clone() for key, value in self._extra.items()}
        return {"method": type(self).__name__, "step": self._step, "layers": kept, "extra": extra}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` gave; refuses a state of another method, of other layers or other shapes."""
        if state_dict["method"] != type(self).__name__:
            raise ValueError(f"state_dict: was saved by {state_dict['method']}, and this is {type(self).__name__}")
        theirs, ours = state_dict["layers"], self.state_dict()["layers"]
        if strange := sorted(set(theirs) ^ set(ours)):
            where = "has" if strange[0] in theirs else "lacks"
            raise ValueError(f"state_dict: {where} the layer {strange[0]!r}; build it from the same model and options")
        if set(state_dict["extra"]) != set(self._extra):
            raise ValueError("state_dict: was saved with another option hybrid")
        for name, state in ours.items():
            said = {k: tuple(v.shape) for k, v in theirs[name].items()}
            if said != (here := {k: tuple(v.shape) for k, v in state.items()}):
                raise ValueError(f"state_dict: the factors of {name} are {said}, and here they are {here}")
        for bucket in self._buckets:
            bucket.seen = [None] * len(bucket.layers)
            for i, layer in enumerate(bucket.layers):
                for key, value in theirs[layer.name].items():
                    bucket.state[key][i].copy_(value)
        self._extra = {key: value.to(self._extra[key], copy=True) for key, value in state_dict["extra"].items()}
        self._step = state_dict["step"]

    def __repr__(self) -> str:
        said = {k: v for k, v in self.options.items() if k not in SHARED or v != SHARED[k]}
        count = f"{len(self.layers)} layers" if len(self.layers) > 1 else "1 layer"
        return f"{type(self).__name__}({', '.join([count, *(f'{k}={v!r}' for k, v in said.items())])})"


def _finite(x: Tensor) -> Tensor:
    """Whether all entries, and their sum, are finite, for each of the first dimension."""
    return (x.flatten(1).sum(1) if x.ndim > 1 else x).isfinite()


def _over_processes(x: Tensor) -> Tensor:
    """The average over all processes."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(x)
        x /= torch.distributed.get_world_size()
    return x
