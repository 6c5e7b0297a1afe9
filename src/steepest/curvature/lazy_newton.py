"""Newton's method with regularisation, and with Hessians that serve for several steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from steepest.checks import check_range
from steepest.curvature.coordinates import Coordinates, points_of
from steepest.linalg.cubic import cubic_step
from steepest.linalg.eigen import eigh
from steepest.linalg.precision import double, widen
from steepest.manifolds.euclidean import Euclidean
from steepest.manifolds.tensors import as_tuple
from steepest.optim.groups import param_groups
from steepest.optim.point import Point
from steepest.optim.sgd import SGD

REGULARIZATIONS = ("cubic", "quadratic")
GROUP = ("params", "param_names", "role", "geometry", "matrix", "sizes", "lr")
"""What a group keeps of what `param_groups` says."""
DECREASE = 0.1
"""Share of the model's decrease for which a step is accepted."""
CHUNK = 128
"""Products with the Hessian by one pass."""
TRIALS = 30
"""Doublings of the constant in one step."""


class LazyNewton(torch.optim.Optimizer):
    """Newton steps with a Hessian that is computed, and factored, at every `every`-th step alone.

    With H the Hessian at its last computation and g the gradient now, "cubic" goes to the global minimum of
    g^T h + h^T H h / 2 + M |h|^3 / 6, for any H, indefinite ones too; "quadratic" takes -(H + sqrt(M |g|) I)^-1 g, for
    convex functions (an H with a negative eigenvalue is shifted by that). One decomposition of H serves for all steps
    and all M: a step more costs d^2 for d coordinates, and a step with a Hessian d^3 and d products with it. Newton's
    fast convergence remains, less with each step that a Hessian is kept; most is gained for a budget of arithmetic with
    `every` of the order of d.

    On a manifold all of this is in coordinates: H is the Hessian of h -> f(retract(x, push(x, h))) at h = 0. A Hessian
    lies at the point where it was computed: gradients are carried there and steps are carried back, as momentum is.
    Several points are one problem, with the curvature between them.

    Args:
        params: the model, or parameters, named parameters or groups, real, as for `Optimizer`.
        lr: factor of the step, one by nature.
        every: steps for which a Hessian serves.
        smoothness: M, of the order of `every` times six times the Lipschitz constant of the Hessian.
        regularization: "cubic" or "quadratic".
        adaptive: search for M from `smoothness` on. A step for which the loss falls by less than a tenth of what the
            model says is taken back and M doubled; when the first attempt succeeds, M is halved. It takes one value of
            the loss more for each attempt. A search without success leaves the point, and orders a new Hessian.
        max_size: the largest d. The factors take 8 d^2 bytes, and d^3 operations.

    The loss must be twice differentiable by autograd, and the same function from call to call: no dropout, no batch
    normalisation in training mode, no other mini-batch before the next Hessian.

    Doikov, Chayti and Jaggi 2023, "Second-order optimization with lazy Hessians" (2212.00781), algorithms 1 and 2. The
    search for M is that of Cartis, Gould and Toint 2011 (adaptive cubic regularisation), step by step.

    >>> layer = torch.nn.Linear(3, 1)
    >>> x, y = torch.randn(20, 3), torch.randn(20, 1)
    >>> newton = LazyNewton(layer, every=3)
    >>> losses = [newton.step(lambda: (layer(x) - y).square().mean()).item() for _ in range(6)]
    >>> losses[-1] < losses[0]
    True
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1.0,
        every: int = 10,
        smoothness: float = 1.0,
        regularization: str = "cubic",
        adaptive: bool = True,
        max_size: int = 5000,
    ) -> None:
        check_range("lr", lr)
        check_range("every", every, 1)
        check_range("smoothness", smoothness, open_low=True)
        check_range("max_size", max_size, 1)
        if regularization not in REGULARIZATIONS:
            raise ValueError(
                f"regularization: unknown {regularization!r}, expected one of {', '.join(REGULARIZATIONS)}"
            )
        defaults = {
            "lr": lr,
            "every": every,
            "smoothness": smoothness,
            "regularization": regularization,
            "adaptive": adaptive,
            "max_size": max_size,
        }
        super().__init__(param_groups(params) if isinstance(params, nn.Module) else params, defaults)
        self._place()

    _known: list[tuple[int, Point]] | None = None
    """The points, each with the number of its group, once they have been looked up."""

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, sorted as `Optimizer` sorts it. Hessians of fewer parameters are forgotten."""
        for group in SGD([{"lr": self.defaults["lr"], **param_group}]).param_groups:
            for p in group["params"]:
                if p.is_complex():
                    raise ValueError(
                        "params: LazyNewton takes real parameters, got a complex one; view it as a real one with "
                        "torch.view_as_real"
                    )
            kept = {key: group[key] for key in GROUP if key in group}
            super().add_param_group({**param_group, **kept})
        self.state.clear()
        self._known = None

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor]) -> Tensor:
        """One step.

        Args:
            closure: computes the loss and returns it as a tensor, without `backward()`. `adaptive` calls it again.

        Returns:
            The loss before the step.
        """
        here, rates = self._place()
        state, group = self.state[here.params[0]], self.param_groups[0]
        due = "vectors" not in state or int(state["step"]) % group["every"] == 0
        with torch.enable_grad():
            loss = closure()
            grads = self._gradients(loss, here, due)
            g = double(here.pull([t.detach() for t in grads]))
            if not (loss.isfinite() & g.isfinite().all()):
                raise ValueError("closure: loss or gradient is NaN or infinite; nothing was changed")
            if due:
                self._decompose(here, grads, g)
        at = here if due else Coordinates(here.points, self._snapshots(here))
        self._advance(closure, loss.detach(), here, at, g, rates)
        state["step"] += 1
        return loss.detach()

    # The model. -------------------------------------------------------------------------------------------------------

    def _gradients(self, loss: Any, here: Coordinates, due: bool) -> list[Tensor]:
        if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
            raise TypeError("closure: expected it to return the loss, a tensor with its graph, without backward()")
        try:
            grads = torch.autograd.grad(
                loss.squeeze(), here.params, create_graph=due, allow_unused=True, materialize_grads=True
            )
        except RuntimeError as error:
            if "second time" in str(error):
                raise TypeError("closure: has called backward(); expected it to return the loss and no more") from error
            raise
        return list(grads)

    def _decompose(self, here: Coordinates, grads: Sequence[Tensor], g: Tensor) -> None:
        """Eigenvalues and eigenvectors of the Hessian here, into the state of the first tensor."""
        hessian = double(self._pulled_back(here, grads))
        if not hessian.isfinite().all():
            raise ValueError("closure: the loss has a second derivative that is NaN or infinite; nothing was changed")
        values, vectors = eigh((hessian + hessian.mT) / 2)
        state = self.state[here.params[0]]
        state.setdefault("step", torch.zeros(()))
        smoothness = torch.tensor(float(self.param_groups[0]["smoothness"]), dtype=torch.float64, device=g.device)
        state.setdefault("smoothness", smoothness)
        state["values"], state["vectors"] = values, vectors
        if not here.flat:
            for p in here.params:
                self.state[p]["snapshot"] = p.detach().clone()

    def _pulled_back(self, here: Coordinates, grads: Sequence[Tensor]) -> Tensor:
        """The Hessian in coordinates: that of the loss between push and pull, and of each point the second derivative
        of the retraction along the gradient."""
        eye = torch.eye(here.size, dtype=widen(grads[0]).dtype, device=grads[0].device)
        hessian = torch.cat([_products(here, grads, some) for some in eye.split(CHUNK)])
        start = 0
        for i, size in enumerate(here.sizes):
            bend = _bend(here, i, grads)
            if bend is not None:
                hessian[start : start + size, start : start + size] += bend
            start += size
        return hessian

    def _snapshots(self, here: Coordinates) -> list[Tensor] | None:
        return None if here.flat else [self.state[p]["snapshot"] for p in here.params]

    # The step. --------------------------------------------------------------------------------------------------------

    def _advance(
        self,
        closure: Callable[[], Tensor],
        loss: Tensor,
        here: Coordinates,
        at: Coordinates,
        g: Tensor,
        rates: Tensor,
    ) -> None:
        state, group = self.state[here.params[0]], self.param_groups[0]
        w, v, m = state["values"], state["vectors"], state["smoothness"]
        c = double(here.carried(at, g)) @ v
        if not group["adaptive"]:
            here.write(here.moved(at.carried(here, v @ self._solution(w, c, m, group) * rates)))
            return
        noise = 10 * torch.finfo(loss.dtype).eps * loss.abs()
        for trial in range(TRIALS):
            h = v @ self._solution(w, c, m * 2**trial, group) * rates
            here.write(here.moved(at.carried(here, h)))
            e = h @ v
            promised = -(c * e + w * e * e / 2).sum() - self._price(e, c, m * 2**trial, group)
            if loss - closure().detach() + noise >= DECREASE * promised:  # written so that NaN fails
                least = 1e-12 * group["smoothness"]
                state["smoothness"] = (m / 2).clamp_min(least) if trial == 0 else m * 2**trial
                return
        here.write(here.x)
        del state["vectors"]

    def _solution(self, w: Tensor, c: Tensor, m: Tensor, group: dict[str, Any]) -> Tensor:
        if group["regularization"] == "cubic":
            return cubic_step(w, c, m)
        shift = (m * torch.linalg.vector_norm(c)).sqrt() - w[:1].clamp_max(0)
        return torch.where(c == 0, 0, -c / (w + shift))

    def _price(self, e: Tensor, c: Tensor, m: Tensor, group: dict[str, Any]) -> Tensor:
        """What the regularisation adds to the model."""
        square = e.square().sum()
        if group["regularization"] == "cubic":
            return m / 6 * square**1.5
        return (m * torch.linalg.vector_norm(c)).sqrt() / 2 * square

    # Points and state. ------------------------------------------------------------------------------------------------

    def _place(self) -> tuple[Coordinates, Tensor]:
        """The points where they are, and the learning rate of each coordinate."""
        if self._known is None:
            plain = [{key: group[key] for key in GROUP if key in group} for group in self.param_groups]
            self._known = [(i, point) for i, group in enumerate(plain) for point in points_of(SGD([group]))]
        points = [point for _, point in self._known]
        if not points:
            raise ValueError("params: none of them requires a gradient")
        size = sum(p.numel() for point in points for p in point.params)
        if size > (limit := self.param_groups[0]["max_size"]):
            raise ValueError(
                f"params: LazyNewton keeps a Hessian of {size} x {size} numbers, got more than max_size = "
                f"{limit} parameters; freeze some, pass max_size={size} if there is memory and time for it, or "
                "take EGN, which solves in the space of the outputs"
            )
        here = Coordinates(points, [p.detach().clone() for point in points for p in point.params])
        first = here.params[0]
        rates = [float(self.param_groups[i]["lr"]) for i, _ in self._known]
        each = [torch.full((n,), lr, dtype=torch.float64) for n, lr in zip(here.sizes, rates, strict=True)]
        return here, torch.cat(each).to(first.device)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, but what is float64 stays so whatever the parameters are."""
        super().load_state_dict(state_dict)
        ours = [p for g in self.param_groups for p in g["params"]]
        theirs = [i for g in state_dict["param_groups"] for i in g["params"]]
        for p, i in zip(ours, theirs, strict=True):
            for key, value in state_dict["state"].get(i, {}).items():
                self.state[p][key] = value.detach().to("cpu" if key == "step" else p.device, copy=True)


def _products(here: Coordinates, grads: Sequence[Tensor], h: Tensor) -> Tensor:
    """The Euclidean Hessian between push and pull times each of the coordinates h `(k, n)`."""
    used = [i for i, t in enumerate(grads) if t.requires_grad]
    if not used:
        return torch.zeros_like(h)
    with torch.no_grad():
        pushed = torch.func.vmap(here.push)(h)
    rows = torch.autograd.grad(
        [grads[i] for i in used],
        here.params,
        [pushed[i].to(grads[i]) for i in used],
        retain_graph=True,
        is_grads_batched=True,
        allow_unused=True,
    )
    whole = [p.new_zeros((len(h), *p.shape)) if t is None else t for p, t in zip(here.params, rows, strict=True)]
    with torch.no_grad():
        return torch.func.vmap(here.pull)(whole)


def _bend(here: Coordinates, i: int, grads: Sequence[Tensor]) -> Tensor | None:
    """The Hessian of h -> <gradient, retract(x, push(x, h))> at h = 0, of the i-th point."""
    if isinstance(here.points[i].constraint.manifold, Euclidean):
        return None
    gradient = as_tuple(here.gradient(i, [t.detach() for t in grads]))
    bend = _bend_near(here, i, gradient, 0.0)
    if bend is None or bend.isfinite().all():
        return bend
    return _bend_near(here, i, gradient, 1e-9)  # a norm, as of a step's bound, has no second derivative at zero


def _bend_near(here: Coordinates, i: int, gradient: Sequence[Tensor], h0: float) -> Tensor | None:
    """That Hessian at the coordinates that are all h0; None where it is zero."""
    manifold, like = here.points[i].constraint.manifold, gradient[0]
    with torch.enable_grad():
        h = torch.full((here.sizes[i],), h0, dtype=like.dtype, device=like.device, requires_grad=True)
        moved = as_tuple(manifold._move(here.frames[i], here.of_point(i, h)))
        total = torch.stack([(g * y).sum() for g, y in zip(gradient, moved, strict=True)]).sum()
        (slope,) = torch.autograd.grad(total, h, create_graph=True)
        if not slope.requires_grad:
            return None
        # one by one: not every matrix function's derivative can be mapped over a batch, and these are small
        rows = [torch.autograd.grad(n, h, retain_graph=True, materialize_grads=True)[0] for n in slope]
        return torch.stack(rows)
