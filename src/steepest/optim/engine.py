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
from steepest.optim.advance import Compiled, advance
from steepest.optim.bucket import Bucket, Buckets
from steepest.optim.constrain import Constraint, dtype_error
from steepest.optim.fused import fused_step
from steepest.optim.listing import MATRICES, ROLES, constrained, names_of, normalise, part_of
from steepest.optim.options import SHARED, check_options
from steepest.optim.point import Point
from steepest.spec import Spec
from steepest.transforms.base import Chain, Context, chain_of

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
    as one batch. Plain parameters take torch's fused kernels where there are any. What all optimisers take by
    keyword says `steepest.optim.Shared`: `maximize`, `nonfinite`, `compile`, `rounding`.

    Parameters may be complex. The inner product is then Re tr(a^H b), for which torch's `.grad` of a real loss is the
    gradient.

    A subclass gives `chain(group)`, and passes its options' defaults to `__init__`.
    """

    needs_matrices: ClassVar[bool] = False
    """Whether parameters must be seen as matrices, by their groups' `matrix` patterns."""
    shared: ClassVar[Any] = SHARED
    """The options that it takes as all others do, with their defaults."""
    chains: ClassVar[tuple[str, ...]] = ()
    """Options that are chains of transforms."""
    in_suite: ClassVar[dict[str, Any]] = {}
    """Options with which the common suite runs it, on points of a dozen entries and for a few dozen steps, where its
    defaults are made for thousands of both."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not inspect.isabstract(cls):
            OPTIMIZERS[cls.__name__.lower()] = cls

    def __init__(self, params: Any, defaults: dict[str, Any]) -> None:
        if isinstance(params, set):
            raise TypeError("params: got a set, which has no order; expected a list")
        self._forget()
        super().__init__(params, {**self.shared, **defaults, **self._plain(defaults)})

    @abc.abstractmethod
    def chain(self, group: dict[str, Any]) -> Chain:
        """The method with the options of one group."""

    # Building. --------------------------------------------------------------------------------------------------------

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; one that mixes constrained with plain parameters, or matrices with others where the method tells
        them apart, becomes several. A group that is refused leaves the optimiser as it was."""
        if not isinstance(param_group, dict):
            raise TypeError(f"param_group: expected a dictionary, got {type(param_group).__name__}")
        parts = list(self._sort(normalise(param_group)))
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
        for constraint, ids in constrained(set(position)):
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
        group.update(self._plain(group))
        group["shapes"] = [list(p.shape) for p in group["params"]]
        full = {**self.defaults, **group}
        check_options(full)
        if (role := full.get("role", "matrix")) not in ROLES:
            raise ValueError(f"role: unknown {role!r}, expected one of {', '.join(ROLES)}")
        check_range("lr", float(full["lr"]))
        self.chain(full)
        for point in self._points(full):
            point.check()

    def _plain(self, group: dict[str, Any]) -> dict[str, Any]:
        """The group's values that are none of JSON's, as such."""
        chains = {key: chain_of(group[key]).to_spec() for key in self.chains if key in group}
        return {key: value.to_spec() for key, value in group.items() if isinstance(value, Spec)} | chains

    def _points(self, group: dict[str, Any]) -> list[Point]:
        """The points of a group, from the tensors that it holds now."""
        params, names = group["params"], names_of(group)
        manifold = self._manifold(group["geometry"])
        arity = manifold.arity if manifold else 1
        if len(params) % arity:
            raise ValueError(f"params: a point of {manifold} is made of {arity} tensors, got {len(params)} tensors")
        pattern = group["matrix"]
        matrix = (pattern,) * arity if pattern is None or isinstance(pattern, str) else tuple(pattern)
        as_matrix = manifold is not None or (self.needs_matrices and group.get("role", "matrix") in MATRICES)
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
        self._step({i: self._active(i, g) for i, g in enumerate(self.param_groups)})
        return loss

    def _step(self, work: dict[int, list[Point]]) -> None:
        """One step of these points, listed by the number of their group."""
        groups = self.param_groups
        bad = _nonfinite([p for i, points in work.items() if groups[i]["nonfinite"] != "ignore" for p in points])
        for i, points in work.items() if bad else ():
            if groups[i]["nonfinite"] == "raise" and (hit := [p for p in points if p in bad]):
                raise ValueError(
                    f"the gradient of {', '.join(n for p in hit[:5] for n in p.names)} has NaN or infinite entries; "
                    "nothing was changed. Look for a loss that overflows (a GradScaler for float16, a smaller lr, "
                    "gradient clipping), or pass nonfinite='skip' to leave such parameters out of a step."
                )
        for i, points in work.items():
            chain = self.chain(groups[i])
            points = [p for p in points if p not in bad] if bad else points
            points = fused_step(chain, points, self.state, groups[i])
            for bucket in self._buckets.of(i, points, self.state):
                try:
                    _update(bucket, chain, groups[i], self._compiled)
                except torch.linalg.LinAlgError as error:
                    names = ", ".join(n for p in bucket.points[:5] for n in p.names)
                    raise ValueError(f"the step of {names} is too large to compute with; lower lr ({error})") from error

    def _active(self, index: int, group: dict[str, Any]) -> list[Point]:
        """The points of a group that have gradients; found anew only when something about them has changed."""
        said = [group[key] for key in ("geometry", "matrix", "sizes")], group.get("role")
        facts = [(id(p), p.shape, p.dtype, p.device, p.grad is None or p.grad.layout) for p in group["params"]]
        last = self._last.get(index)
        if last is None or last[0] != (said, facts):
            points = [p for p in self._points(group) if p.has_grad()]
            self._last[index] = last = (copy.deepcopy(said), facts), points
        return last[1]

    def residual(self) -> float:
        """The largest distance of a constrained parameter from its manifold: feasibility, as a number without unit."""
        points = [p for g in self.param_groups if g["geometry"] is not None for p in self._points(g)]
        return max((p.constraint.manifold.residual(p.value()).max().item() for p in points), default=0.0)

    # Checkpoints. -----------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Options and state, in which first-order state has been carried to where the points are now."""
        with torch.no_grad():
            self._buckets.settle()
        saved = super().state_dict()
        for group in saved["param_groups"]:
            group.update(self._plain(group))
        return saved

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
        self._forget()
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

    def __getstate__(self) -> dict[str, Any]:
        with torch.no_grad():
            self._buckets.settle()
        return super().__getstate__()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._forget()

    def _forget(self) -> None:
        """Start with nothing known of earlier steps but the state that torch keeps."""
        self._buckets, self._compiled = Buckets(), Compiled()
        self._geometries: list[tuple[dict[str, Any], Manifold]] = []
        self._last: dict[int, Any] = {}


def _update(bucket: Bucket, chain: Chain, group: dict[str, Any], compiled: Compiled) -> None:
    """One step of a bucket."""
    manifold, lr, step = bucket.manifold, group["lr"], bucket.step + 1
    x, g = bucket.gather(), bucket.gather_grads()
    g = like(g, [-b for b in as_tuple(g)]) if group["maximize"] else g
    if not bucket.is_started(chain):
        frame = manifold.frame(x)
        bucket.start(chain, as_tuple(manifold._pull(frame, g)), Context(manifold, frame, lr, step, phase=bucket.phase))
    arguments = manifold, chain, x, g, bucket.storage, bucket.left, lr, step, bucket.phase
    y, bucket.left = compiled.advance(bucket.layout, *arguments) if group["compile"] else advance(*arguments)
    bucket.chain = chain
    bucket.count()
    if isinstance(manifold, Euclidean):
        bucket.descend(y, lr, group["rounding"])
    else:
        bucket.scatter(y, group["rounding"])


def _fresh_state(point: Point, chain: Chain, group: dict[str, Any]) -> list[dict[str, Any]]:
    """The state of each of the point's tensors as it is before the first step."""
    kept: list[dict[str, Any]] = [{} for _ in point.params]
    with torch.no_grad():
        x, manifold = point.value(), point.constraint.manifold
        frame = manifold.frame(x)
        h = as_tuple(manifold._pull(frame, like(x, [torch.zeros_like(t) for t in as_tuple(x)])))
        Bucket([point], [kept], 0).start(chain, h, Context(manifold, frame, group["lr"], 1))
    return kept


def _layout(state: dict[str, Any] | None) -> str:
    """Keys and shapes, in the order of the alphabet."""
    return ", ".join(
        f"{k} {tuple(v.shape) if isinstance(v, Tensor) else v!r}" for k, v in sorted((state or {}).items())
    )


def _nonfinite(points: list[Point]) -> set[Point]:
    """Points whose gradient has a NaN or infinite entry: one synchronisation. Where the norm of a tensor is finite, its
    entries are; only where it is not, as by an overflow, they are looked at."""
    grads = [g for p in points for g in p.grads() if g.numel()]
    if not grads:
        return set()
    norms = torch._foreach_norm(grads)
    if torch.stack([n.to(norms[0].device) for n in norms]).isfinite().all():
        return set()
    return {p for p in points if not all(g.isfinite().all() for g in p.grads())}


def _abridged(text: str) -> str:
    return text if len(text) < 300 else f"{text[:300]}..."
