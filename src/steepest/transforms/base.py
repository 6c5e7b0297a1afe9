"""What a transform is: coordinates of a gradient in, coordinates of a step out. A chain of them is an optimiser."""

from __future__ import annotations

import abc
import dataclasses
import re
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from steepest.manifolds.base import Manifold
from steepest.spec import Spec

Blocks = tuple[Tensor, ...]
State = dict[str, Tensor]


@dataclasses.dataclass(frozen=True)
class Context:
    """What a transform may know besides its input; read-only."""

    manifold: Manifold
    frame: Any
    """`manifold.frame(x)` at the current point x."""
    lr: float | Tensor
    step: int
    """Number of this step, from 1."""
    block: int = 0
    """Index of the block at hand."""
    phase: int = 0
    """A number that differs from point to point, so that what is due now and then is not done for all at once."""

    @property
    def ndim(self) -> int:
        """Number of trailing dimensions of the block at hand; all before are batch dimensions."""
        return self.manifold.block_ndims[self.block]


class Transform(Spec, abc.ABC):
    """One idea about gradients, as a frozen dataclass whose fields are its hyper-parameters.

    It acts on one block `h` of the coordinates, shape `(*b, m, n)` (or `(*b, n)`: see `Context.ndim`), and treats
    batch elements alike and apart, so that an optimiser may stack points of one shape. Coordinates are plain matrices
    with the Frobenius inner product: a transform knows nothing of the manifold, and so works on all of them.

    Coordinates of complex points are complex, with the inner product Re tr(h^H k).
    """

    joint: ClassVar[bool] = False
    """Whether `h` is the tuple of all blocks of a point instead of one block."""
    entrywise: ClassVar[bool] = False
    """Whether every real number is treated by itself: a complex block, and its state, then come as real ones with one
    dimension more, of real and imaginary part, which `Context.ndim` does not count."""
    of_point: ClassVar[bool] = False
    """Whether it looks at the point itself, and not only at coordinates."""
    carried: ClassVar[tuple[str, ...]] = ()
    """Keys of first-order state: coordinates that must follow the point when it moves."""
    partial: ClassVar[bool] = False
    """Whether first-order state is only a part of the coordinates that were averaged, and so need not lie in the range
    of `Manifold.pull` as they did."""
    positive: ClassVar[tuple[str, ...]] = ()
    """Keys of state that is never negative, such as variances."""

    @property
    def name(self) -> str:
        """Prefix of this transform's state keys."""
        return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", type(self).__name__).lower()

    def init(self, h: Any, ctx: Context) -> State:
        """State for coordinates like `h`; every tensor begins with h's batch dimensions."""
        return {}

    def first_order(self, key: str, state: State, like: Tensor, ctx: Context) -> Tensor:
        """The state of this key as coordinates of the shape of `like`, from however it is kept."""
        return state[key]

    def set_first_order(self, key: str, value: Tensor, state: State, ctx: Context) -> None:
        """Replace the state of this key, given as such coordinates."""
        state[key].copy_(value)

    def idle(self, ctx: Context) -> bool:
        """Whether `update` only reads the state at this step, so that it need not be written down anew."""
        return False

    @abc.abstractmethod
    def update(self, h: Any, state: State, ctx: Context) -> Any:
        """The transformed coordinates. `h` is left alone, as it may be the gradient or another transform's state;
        `state` is changed."""

    @classmethod
    @abc.abstractmethod
    def examples(cls) -> list[Transform]:
        """Instances that the common suite runs on."""


@dataclasses.dataclass(frozen=True)
class Chain:
    """Transforms one after another, over all blocks of a point. State is one dictionary per block, keyed by
    `<transform>.<key>`: never by position, so that a checkpoint outlives a change of the chain around it."""

    links: tuple[Transform, ...]

    def __post_init__(self) -> None:
        names = [link.name for link in self.links]
        if twice := sorted({n for n in names if names.count(n) > 1 and n not in _stateless(self.links)}):
            raise ValueError(
                f"two transforms of one chain are both called {twice}: wrap one as Named('another name', ...)"
            )

    def init(self, h: Blocks, ctx: Context) -> tuple[State, ...]:
        """Fresh state for blocks like `h`."""
        states: tuple[State, ...] = tuple({} for _ in h)
        for link in self.links:
            blocks = [(states[0], h, ctx)] if link.joint else zip(states, h, _each_block(ctx, h), strict=True)
            for state, block, at in blocks:
                state.update({f"{link.name}.{key}": value for key, value in _init(link, block, at).items()})
        return states

    def update(self, h: Blocks, states: tuple[State, ...], ctx: Context) -> Blocks:
        """The step's coordinates; `states` is changed in place."""
        at = _each_block(ctx, h)
        for link in self.links:
            if link.joint:
                h = _run(link, h, states[0], ctx)
            else:
                h = tuple(_run(link, block, state, here) for block, state, here in zip(h, states, at, strict=True))
        return h

    def carry(
        self,
        states: tuple[State, ...],
        like: Blocks,
        ctx: Context,
        move: Callable[[Blocks], Blocks],
        conform: Callable[[Blocks], Blocks],
    ) -> None:
        """Apply `move`, from coordinates of all blocks to such coordinates, to all first-order state; `like` are
        coordinates of these shapes, and `ctx` is of the step after which the state was left. Of partial state the part
        in the range of the frame, by `conform`, moves, and the rest stays: to project it away would, step by step, take
        away what has been averaged."""
        at = _each_block(ctx, like)
        for link in self.links:
            own = [part_of_state(state, link.name) for state in states]
            for key in link.carried:
                old = tuple(link.first_order(key, *args) for args in zip(own, like, at, strict=True))
                part = conform(old) if link.partial else old
                new = move(part)
                if link.partial:
                    new = tuple(a + b - c for a, b, c in zip(old, new, part, strict=True))
                for value, state, here in zip(new, own, at, strict=True):
                    link.set_first_order(key, value, state, here)

    def to_spec(self) -> list[dict[str, Any]]:
        """The transforms as plain values, which `chain_of` reads."""
        return [link.to_spec() for link in self.links]

    @property
    def carried(self) -> tuple[str, ...]:
        """Full keys of the first-order state."""
        return tuple(f"{link.name}.{key}" for link in self.links for key in link.carried)


def chain(*transforms: Transform | Chain) -> Chain:
    """The transforms, in the order in which they act; chains among them are laid open.

    >>> from steepest.transforms import Dualize, Momentum, chain
    >>> muon = chain(Momentum(0.95), Dualize())
    """
    return Chain(tuple(link for t in transforms for link in (t.links if isinstance(t, Chain) else (t,))))


def chain_of(value: Any) -> Chain:
    """The chain of one transform, of several in order, or of what their `to_spec` wrote down."""
    if isinstance(value, Chain):
        return value
    parts = value if isinstance(value, list | tuple) else [value]
    return chain(*(t if isinstance(t, Chain) else Transform.from_spec(t) for t in parts))


def as_matrix(h: Tensor, ndim: int) -> Tensor:
    """A block as a matrix: a vector is a column, and of three axes or more the first one counts the rows."""
    shape = h.shape[h.ndim - ndim :]
    rows = shape[0] if shape else 1
    return h.reshape(*h.shape[: h.ndim - ndim], rows, shape.numel() // rows if rows else 0)


def _init(link: Transform, h: Any, ctx: Context) -> State:
    """One link's fresh state; of an entrywise one, what is like a complex block is complex."""
    if not (link.entrywise and h.is_complex()):
        return link.init(h, ctx)
    parts = _parts(h)
    return {key: _whole(v) if v.shape == parts.shape else v for key, v in link.init(parts, ctx).items()}


def _run(link: Transform, h: Any, state: State, ctx: Context) -> Any:
    """One link, on the part of the state that is its own, under its own keys; an entry that it replaced is copied back,
    as the tensors of `state` may be views into a batch."""
    own = part_of_state(state, link.name)
    split = link.entrywise and h.is_complex()
    if split:
        h, own = _parts(h), {key: _parts(value) if value.is_complex() else value for key, value in own.items()}
    kept = dict(own)
    h = link.update(h, own, ctx)
    for key, value in kept.items():
        if own[key] is not value:
            value.copy_(own[key])
    return _whole(h) if split else h


def part_of_state(state: State, name: str) -> State:
    """The entries under a name, such as a link's, by the rest of their keys."""
    return {key[len(name) + 1 :]: value for key, value in state.items() if key.startswith(f"{name}.")}


def link_of(links: tuple[Transform, ...], key: str, state: State) -> tuple[Transform, State, str]:
    """The transform that a key of first-order state belongs to, its part of the state, and the key there."""
    link = next(link for link in links if key.startswith(f"{link.name}."))
    return link, part_of_state(state, link.name), key.removeprefix(f"{link.name}.")


def _parts(z: Tensor) -> Tensor:
    """Real and imaginary parts along a new last dimension; a view, but of a conjugate not yet computed."""
    return torch.view_as_real(z.resolve_conj())


def _whole(x: Tensor) -> Tensor:
    """The inverse of `_parts`."""
    return torch.view_as_complex(x.contiguous())


def _each_block(ctx: Context, h: Blocks) -> list[Context]:
    return [dataclasses.replace(ctx, block=i) if i else ctx for i in range(len(h))]


def _stateless(links: tuple[Transform, ...]) -> set[str]:
    return {link.name for link in links if type(link).init is Transform.init}
