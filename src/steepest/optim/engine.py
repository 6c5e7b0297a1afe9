"""The one optimiser: every method is a chain of transforms, run here on every manifold."""

from __future__ import annotations

import abc
import copy
import inspect
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, overload

import torch
from torch import Tensor

from steepest.checks import check_range
from steepest.manifolds.base import Manifold
from steepest.manifolds.euclidean import Euclidean
from steepest.manifolds.tensors import as_tuple, like
from steepest.optim.bucket import Bucket, Buckets, Point
from steepest.optim.constrain import Constraint, constraints, contradiction, dtype_error, members, owners
from steepest.spec import Spec
from steepest.transforms.base import Chain, Context

OPTIMIZERS: dict[str, type[Optimizer]] = {}
"""Every optimiser by its name in lower case; a class enters by being defined."""

PLAIN: dict[str, Any] = {"geometry": None, "matrix": None, "sizes": {}}
"""What a group says of plain parameters."""


class Optimizer(torch.optim.Optimizer, abc.ABC):
    """A `torch.optim.Optimizer` whose step is `retract(x, push(x, -lr * chain(pull(x, g))))`.

    Parameters come as torch takes them: tensors, named tensors or groups; `param_groups(model)` makes groups that know
    the model's geometry, and constrained parameters are recognised among bare tensors as well. A group may hold,
    besides the method's options, `geometry` (a manifold, or its spec), `matrix` and `sizes` (see `constrain`) and
    `role`; of a manifold with several tensors to a point, `params` lists one point after another.

    All options are read from the group at each step, so that schedulers move them and checkpoints hold them. State is
    kept for each tensor, under `<transform>.<key>`, in float32 for the half precisions. Points of one small shape step
    as one batch. A gradient with NaN or infinite entries raises an error before anything is changed
    (`nonfinite="raise"`), leaves out its point (`"skip"`), or is not looked for (`"ignore"`, which saves one
    synchronisation a step on a GPU).

    Parameters may be complex. The inner product is then Re tr(a^H b), for which torch's `.grad` of a real loss is the
    gradient.

    A subclass gives `chain(group)`, and passes its options' defaults to `__init__`.
    """

    needs_matrices: ClassVar[bool] = False
    """Whether parameters must be seen as matrices, by their groups' `matrix` patterns."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not inspect.isabstract(cls):
            OPTIMIZERS[cls.__name__.lower()] = cls

    def __init__(self, params: Any, defaults: dict[str, Any]) -> None:
        if isinstance(params, set):
            raise TypeError("params: got a set, which has no order; expected a list")
        self._buckets = Buckets()
        self._geometries: list[tuple[dict[str, Any], Manifold]] = []
        super().__init__(params, {"maximize": False, "nonfinite": "raise", **defaults})

    @abc.abstractmethod
    def chain(self, group: dict[str, Any]) -> Chain:
        """The method with the options of one group."""

    # Building. --------------------------------------------------------------------------------------------------------

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; one that mixes constrained with plain parameters, or matrices with others where the method tells
        them apart, becomes several. A group that is refused leaves the optimiser as it was."""
        if not isinstance(param_group, dict):
            raise TypeError(f"param_group: expected a dictionary, got {type(param_group).__name__}")
        parts = list(self._sort(_normalise(param_group)))
        for part in parts:
            self._check(part)
        count = len(self.param_groups)
        try:
            for part in parts:
                super().add_param_group(part)
        except Exception:
            del self.param_groups[count:]
            raise

    def _sort(self, group: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The group, or its parts where it does not say what its parameters are."""
        if "geometry" in group:
            yield {**PLAIN, **group}
            return
        position = {id(p): i for i, p in enumerate(group["params"])}
        points: list[tuple[list[int], Constraint]] = []
        for constraint, ids in _constrained(set(position)):
            if missing := [i for i in ids if i not in position]:
                raise ValueError(
                    f"params: {len(missing)} tensor(s) of a point of {constraint.manifold} are in no, or in another, "
                    "parameter group; give all tensors of a point together, best by param_groups(model)."
                )
            points.append(([position[i] for i in ids], constraint))
        alike: dict[str, tuple[Constraint, list[int]]] = {}
        for index, constraint in sorted(points, key=lambda point: point[0]):  # as given, not as they were found
            alike.setdefault(repr(constraint.options()), (constraint, []))[1].extend(index)
        for constraint, index in alike.values():
            said = constraint.options()
            yield {**part_of(group, index), **said, "role": group.get("role", said["role"])}
        taken = {i for index, _ in points for i in index}
        if rest := [i for i in range(len(group["params"])) if i not in taken]:
            yield from self._sort_plain({**PLAIN, **part_of(group, rest)})

    def _sort_plain(self, group: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """A group of plain parameters, or its parts."""
        yield group

    def _check(self, group: dict[str, Any]) -> None:
        """Refuse a group that cannot be stepped, before anything is kept of it; write down its values as plain ones."""
        for name, p in zip(names_of(group), group["params"], strict=True):
            if fault := dtype_error(p):
                raise ValueError(f"{name}: {fault}")
        if group["geometry"] is not None:
            group["geometry"] = Manifold.from_spec(group["geometry"])
        group.update({key: value.to_spec() for key, value in group.items() if isinstance(value, Spec)})
        group["shapes"] = [list(p.shape) for p in group["params"]]
        full = {**self.defaults, **group}
        if full["nonfinite"] not in ("raise", "skip", "ignore"):
            raise ValueError(f"nonfinite: got {full['nonfinite']!r}, expected 'raise', 'skip' or 'ignore'")
        check_range("lr", float(full["lr"]))
        self.chain(full)
        for point in self._points(full):
            point.check()

    def _points(self, group: dict[str, Any]) -> list[Point]:
        """The points of a group, from the tensors that it holds now."""
        params, names = group["params"], names_of(group)
        manifold = self._manifold(group["geometry"])
        arity = manifold.arity if manifold else 1
        if len(params) % arity:
            raise ValueError(f"params: a point of {manifold} is made of {arity} tensors, got {len(params)} tensors")
        pattern = group["matrix"]
        matrix = (pattern,) * arity if pattern is None or isinstance(pattern, str) else tuple(pattern)
        as_matrix = manifold is not None or (self.needs_matrices and group.get("role") != "other")
        matrix = matrix if as_matrix else (None,) * arity
        points = []
        for i in range(0, len(params), arity):
            if as_matrix and any(hasattr(p, "full_tensor") for p in params[i : i + arity]):
                raise ValueError(
                    f"{names[i]}: is sharded (a DTensor), and {type(self).__name__} needs this matrix whole; leave its "
                    "module out of fully_shard, or replicate it (DistributedDataParallel)."
                )
            ndim = 2 if as_matrix else params[i].ndim
            constraint = Constraint(manifold or Euclidean(ndim), matrix, group["sizes"])
            points.append(Point(tuple(params[i : i + arity]), tuple(names[i : i + arity]), constraint))
        return points

    def _manifold(self, spec: dict[str, Any] | None) -> Manifold | None:
        """The manifold that a group's `geometry` spells; read again only when that has changed, as it may hold a whole
        matrix."""
        if spec is None:
            return None
        for known, manifold in self._geometries:
            if known == spec:
                return manifold
        manifold = Manifold.from_spec(spec)
        self._geometries.append((copy.deepcopy(spec), manifold))
        return manifold

    # Stepping. --------------------------------------------------------------------------------------------------------

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step on every point that has a gradient.

        Args:
            closure: computes the loss anew, with gradients enabled, and returns it.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        work = [(g, [p for p in self._points(g) if p.has_grad()]) for g in self.param_groups]
        bad = _nonfinite([p for g, points in work if g["nonfinite"] != "ignore" for p in points])
        for group, points in work:
            if bad and group["nonfinite"] == "raise" and (hit := [p for p in points if p in bad]):
                raise ValueError(
                    f"the gradient of {', '.join(n for p in hit[:5] for n in p.names)} has NaN or infinite entries; "
                    "nothing was changed. Look for a loss that overflows (a GradScaler for float16, a smaller lr, "
                    "gradient clipping), or pass nonfinite='skip' to leave such parameters out of a step."
                )
        for group, points in work:
            chain = self.chain(group)
            for bucket in self._buckets.of([p for p in points if p not in bad], self.state):
                try:
                    _update(bucket, chain, group)
                except torch.linalg.LinAlgError as error:
                    names = ", ".join(n for p in bucket.points[:5] for n in p.names)
                    raise ValueError(f"the step of {names} is too large to compute with; lower lr ({error})") from error
        return loss

    def residual(self) -> float:
        """The largest distance of a constrained parameter from its manifold: feasibility, as a number without unit."""
        points = [p for g in self.param_groups if g["geometry"] is not None for p in self._points(g)]
        return max((p.constraint.manifold.residual(p.value()).max().item() for p in points), default=0.0)

    # Checkpoints. -----------------------------------------------------------------------------------------------------

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore options and state; refuses a state of other parameters, in another order or on other manifolds, or of
        another method."""
        loaded: dict[str, Any] = {}

        def check(_: Any, state: dict[str, Any]) -> dict[str, Any]:
            loaded.update(self._accepted(state))
            return loaded

        handle = self.register_load_state_dict_pre_hook(check)  # after the users' hooks, which may translate a state
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()
        ours = [p for g in self.param_groups for p in g["params"]]
        theirs = [i for g in loaded["param_groups"] for i in g["params"]]
        for p, i in zip(ours, theirs, strict=True):  # torch casts state to the parameter's dtype: ours keeps its own
            for key, value in loaded["state"].get(i, {}).items():
                if isinstance(value, Tensor):
                    self.state[p][key] = value.detach().to(value.device if key == "step" else p.device, copy=True)

    def _accepted(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """The state dictionary, if it is one of these parameters; options newer than it have the values given here."""
        groups = list(state_dict["param_groups"])
        for i, (saved, group) in enumerate(zip(groups, self.param_groups, strict=False)):
            for key in ("param_names", "shapes", "geometry", "matrix"):
                if key in group and saved.get(key, group[key]) != group[key]:
                    theirs, ours = (_abridged(repr(g[key])) for g in (saved, group))
                    raise ValueError(
                        f"state_dict: {key} of group {i} is {theirs}, and here it is {ours}. Build the optimiser from "
                        "the same parameters in the same order."
                    )
            groups[i] = {**group, **saved}
            kept = [state_dict["state"].get(key) for key in saved["params"]]
            self._check_state({**groups[i], "params": group["params"]}, kept)
        return {**state_dict, "param_groups": groups}

    def _check_state(self, group: dict[str, Any], saved: list[dict[str, Any] | None]) -> None:
        """Refuse the state of another method: the first point's must have the keys and shapes that it has here."""
        for i, point in enumerate(self._points(group)):
            theirs = saved[i * len(point.params) : (i + 1) * len(point.params)]
            if theirs[0] and not any(p.is_meta for p in point.params):
                ours = _fresh_state(point, self.chain(group), group)
                for name, a, b in zip(point.names, map(_layout, ours), map(_layout, theirs), strict=True):
                    if a != b:
                        raise ValueError(
                            f"state_dict: the state of {name} holds {b or 'nothing'}, and {type(self).__name__} keeps "
                            f"{a or 'nothing'}. It was saved by another method."
                        )
                return

    def __repr__(self) -> str:
        """As torch's, with long values, such as a geometry that holds a matrix, cut short."""
        return "\n".join(map(_abridged, super().__repr__().splitlines()))

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._buckets, self._geometries = Buckets(), []


def options(arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments of an optimiser's `__init__`, its `locals()`, as the defaults of its groups."""
    return {key: value for key, value in arguments.items() if key not in ("self", "params", "__class__")}


def clip_grad_norm_(optimizer: Optimizer, max_norm: float) -> Tensor:
    """Scale all gradients of an optimiser so that the Riemannian norm of all of them together is at most `max_norm`.

    On a manifold the norm is that of `pull(x, g)`: `torch.nn.utils.clip_grad_norm_` would measure the Euclidean
    gradient. Changes `.grad` in place, like its model in torch, and returns the norm from before. Where that is not
    finite, gradients stay as they are, so that the step can tell which one is to blame.

    >>> x = torch.nn.Parameter(torch.zeros(2))
    >>> optimizer = SGD([x], lr=1.0)
    >>> (3 * x[0] + 4 * x[1]).backward()
    >>> clip_grad_norm_(optimizer, 1.0).item(), [round(g, 3) for g in x.grad.tolist()]
    (5.0, [0.6, 0.8])
    """
    check_range("max_norm", max_norm, open_low=True)
    with torch.no_grad():
        points = [p for g in optimizer.param_groups for p in optimizer._points(g) if p.has_grad()]
        norms = [torch.linalg.vector_norm(block) for p in points for block in as_tuple(p.pull())]
        if not norms:
            return torch.zeros(())
        total = torch.linalg.vector_norm(torch.stack([n.to(norms[0].device, torch.float64) for n in norms]))
        scale = torch.where(total.isfinite(), (max_norm / (total + 1e-6)).clamp_max(1.0), 1.0)
        for p in points:
            for t in p.params:
                t.grad.mul_(scale.to(t.device, t.grad.dtype.to_real()))  # type: ignore[union-attr]
    return total


def _update(bucket: Bucket, chain: Chain, group: dict[str, Any]) -> None:
    """The one step: pull, transform, push and retract in one move, and carry what has to follow the point."""
    manifold, lr = bucket.manifold, group["lr"]
    x = bucket.gather()
    frame = manifold.frame(x)
    h = as_tuple(manifold._pull(frame, bucket.gather_grads()))
    h = tuple(-b for b in h) if group["maximize"] else h
    ctx = Context(manifold, frame, lr, bucket.step)
    states = bucket.states(chain, h, ctx)
    h = chain.update(h, states, ctx)
    if isinstance(manifold, Euclidean):
        bucket.descend(h[0], lr)
        return
    h = tuple(-lr * b for b in h)
    y = manifold._move(frame, h if len(h) > 1 else h[0])
    if chain.carried and not manifold.identity_carry:
        there = manifold.frame(y)
        for key in chain.carried:
            old = tuple(state[key] for state in states)
            new = as_tuple(manifold._carry(frame, there, old if len(old) > 1 else old[0]))
            for kept, moved in zip(old, new, strict=True):
                kept.copy_(moved)
    bucket.scatter(y)  # last, as the frame may hold the very parameters


def _fresh_state(point: Point, chain: Chain, group: dict[str, Any]) -> list[dict[str, Any]]:
    """The state of each of the point's tensors as it is before the first step."""
    kept: list[dict[str, Any]] = [{} for _ in point.params]
    with torch.no_grad():
        x, manifold = point.value(), point.constraint.manifold
        frame = manifold.frame(x)
        h = as_tuple(manifold._pull(frame, like(x, [torch.zeros_like(t) for t in as_tuple(x)])))
        Bucket([point], [kept], 1).states(chain, h, Context(manifold, frame, group["lr"], 1))
    return kept


def _layout(state: dict[str, Any] | None) -> str:
    """Keys and shapes, in the order of the alphabet."""
    return ", ".join(
        f"{k} {tuple(v.shape) if isinstance(v, Tensor) else v!r}" for k, v in sorted((state or {}).items())
    )


def _normalise(group: dict[str, Any]) -> dict[str, Any]:
    """A copy of the group with a list of tensors, and their names apart."""
    group = dict(group)
    params = group["params"]
    if isinstance(params, set):
        raise TypeError("params: got a set, which has no order; expected a list")
    params = [params] if isinstance(params, Tensor) else list(params)
    if named := [p for p in params if isinstance(p, tuple)]:
        if len(named) < len(params):
            raise ValueError(
                f"params: got {len(named)} named and {len(params) - len(named)} unnamed ones; name all or none"
            )
        group["param_names"] = [name for name, _ in params]
        params = [p for _, p in params]
    if not params:
        raise ValueError("params: got an empty list; does anything in the model require a gradient?")
    if wrong := [p for p in params if not isinstance(p, Tensor)]:
        raise TypeError(f"params: expected tensors, got {type(wrong[0]).__name__}")
    if len({id(p) for p in params}) < len(params):
        raise ValueError("params: the same parameter is given twice")
    return group | {"params": params}


def names_of(group: dict[str, Any]) -> list[str]:
    """The names of a group's parameters, or what to call them."""
    return group.get("param_names") or [f"parameter {i}" for i in range(len(group["params"]))]


def part_of(group: dict[str, Any], index: list[int]) -> dict[str, Any]:
    """The group restricted to some of its parameters."""
    lists: dict[str, Any] = {k: [group[k][i] for i in index] for k in ("params", "param_names") if k in group}
    return {**group, **lists}


def _constrained(ids: set[int]) -> Iterator[tuple[Constraint, list[int]]]:
    """Constraints that any living module puts on tensors with these ids, each with the ids of its whole point."""
    seen: dict[int, Constraint] = {}
    for module in owners():
        for names, constraint in constraints(module).items():
            point = [id(t) for t in members(module, names)]
            if not ids & set(point):
                continue
            if not seen.keys() & set(point):
                seen.update(dict.fromkeys(point, constraint))
                yield constraint, point
            elif other := [seen.get(i) for i in point if seen.get(i) != constraint]:
                raise ValueError(contradiction(module, names, constraint, other[0]))


def _nonfinite(points: list[Point]) -> set[Point]:
    """Points whose gradient has a NaN or infinite entry: one synchronisation."""
    grads = [g for p in points for g in p.grads() if g.numel()]
    if not grads or torch.nn.utils.get_total_norm(grads, float("inf")).isfinite():
        return set()
    return {p for p in points if not all(g.isfinite().all() for g in p.grads())}


def _abridged(text: str) -> str:
    return text if len(text) < 300 else f"{text[:300]}..."
