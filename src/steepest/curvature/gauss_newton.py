"""Exact Gauss-Newton: the damped Gauss-Newton step of a mini-batch, solved in the space of its outputs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from steepest.checks import check_range
from steepest.curvature.coordinates import Coordinates, points_of
from steepest.curvature.linearised import Linearised
from steepest.curvature.output_losses import CrossEntropy, OutputLoss, Squared
from steepest.linalg.precision import double
from steepest.optim.point import Point

LOSSES = ("cross_entropy", "squared")
SOLVERS = ("dense", "rows", "cg")
ENTRIES = 2**26
"""Of a batch of gradients, where `chunk` does not say how many."""
MINIMUM, MAXIMUM = 1e-12, 1e6
"""Between which `adaptive` damping stays."""


class EGN:
    """Gauss-Newton gradients for any optimiser: d = (J^T Q J / b + damping I)^-1 g in place of g.

    With J the Jacobian of the b rows of outputs, r and Q gradient and Hessian of their loss in the outputs, g is
    J^T r / b and d = J^T c, where

        (Q K + b damping I) c = r,    K = J P J^T, a number for each pair of outputs.

    So d is what `backward` gives from the cotangent c instead of r / b, and is written to `.grad`: the optimiser pulls
    it back to coordinates, may add momentum, and retracts, on every manifold, where P is the map from a gradient to the
    Riemannian one and I the identity of the metric. An optimiser that is no steepest descent (Adam) will transform d as
    it would g, which is seldom what one wants; `SGD` with lr 1 is the published method.

    The outputs come from one pass through the model in whatever mode it is in. Dropout draws once and batch statistics
    move once, even where `adaptive` computes the loss a second time: with the same noise, and buffers put back. All
    but "rows" without `adaptive` differentiate the model twice, which fused attention does not allow: choose
    `torch.nn.attention.SDPBackend.MATH` for it.

    Args:
        model: its outputs are a tensor, or an object with `logits`.
        optimizer: one of this library, or another one, of the model's parameters.
        loss: "cross_entropy", the mean over rows (*,) of outputs (*, C), with targets (*,) of classes, or (*, C) of
            probabilities; "squared", half of |z - y|^2, summed over the last axis and averaged over the others.
        damping: positive. In the metric of the points; of a plain parameter it has the unit of the curvature.
        solver: "dense" writes K down, b C x b C numbers, by as many products with J^T and J, for a batch of up to some
            thousand outputs; "rows" does so from J, b C x n numbers that are kept, which takes more time and memory and
            differentiates the model only once (half precision is always done so); "cg" takes a few products alone.
        adaptive: Levenberg-Marquardt. After each step damping is multiplied by 1.5 where the loss fell by less than a
            quarter of what the quadratic model, damping and all, said of the step that was taken, by 0.5 where it fell
            by more than three quarters of it. As published, no step is taken back: start with too much rather than with
            too little. It takes one more value of the loss, and a copy of the parameters.
        chunk: how many rows of K or J are computed by one backward pass, which bounds the memory that "dense" takes.
            None: as many as have 2^26 entries.
        tolerance: of "cg": of the gradient of the quadratic model, relative to g.
        iterations: of "cg", at most.
        warm_start: "cg" starts from the last c, if that has the same shape and is better than zero; for full batches.
        ignore_index: rows with this class do not count.

    Korbit, Adeoye, Bemporad and Zanon 2024, "Exact Gauss-Newton optimization" (2402.18158). They write Q + 1e-6 I as
    L L^T and solve (L^T K L + b damping I) u = L^-1 r, c = L u. "dense" does so with a root of Q itself
    (`CrossEntropy`), singular as it is. "cg" needs none: Q K + b damping I is self-adjoint and positive in the inner
    product u^T K v, in which these are the conjugate gradients of the problem for d, step for step, and their residual
    is that of d. (In the authors' code, python-somax, the cross-entropy operator has L where the formula has L^T.)
    Damping below the rounding of K, eps times the trace of L^T K L, counts as that.

    >>> model = torch.nn.Linear(3, 2)
    >>> egn = EGN(model, SGD(model.parameters(), lr=1.0), damping=1e-3, adaptive=True)
    >>> x, y = torch.randn(8, 3), torch.arange(8) % 2
    >>> losses = [egn.step(x, y).item() for _ in range(10)]
    >>> losses[-1] < losses[0]
    True
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        loss: str = "cross_entropy",
        damping: float = 1.0,
        solver: str = "dense",
        *,
        adaptive: bool = False,
        chunk: int | None = None,
        tolerance: float = 1e-5,
        iterations: int = 20,
        warm_start: bool = True,
        ignore_index: int = -100,
    ) -> None:
        for name, value, known in (("loss", loss, LOSSES), ("solver", solver, SOLVERS)):
            if value not in known:
                raise ValueError(f"{name}: unknown {value!r}, expected one of {', '.join(known)}")
        check_range("damping", damping, open_low=True)
        check_range("tolerance", tolerance)
        check_range("iterations", iterations, 1)
        if chunk is not None:
            check_range("chunk", chunk, 1)
        self.model, self.optimizer = model, optimizer
        self.loss, self.solver, self.adaptive, self.chunk = loss, solver, adaptive, chunk
        self.tolerance, self.iterations, self.warm_start = tolerance, iterations, warm_start
        self.ignore_index = ignore_index
        self._damping = torch.tensor(float(damping), dtype=torch.float64)
        self._start: Tensor | None = None
        self._noise: list[Tensor] = []
        self._tensors()  # refuses parameters that are not the model's

    @property
    def damping(self) -> float:
        """What it is now; may be set, by a schedule say."""
        return float(self._damping)

    @damping.setter
    def damping(self, value: float) -> None:
        check_range("damping", value, open_low=True)
        self._damping = torch.tensor(float(value), dtype=torch.float64)

    def step(self, inputs: Any, targets: Tensor) -> Tensor:
        """Gradients, the optimiser's step, and, if `adaptive`, the damping of the next one; the loss before the step.

        Args:
            inputs: what the model takes: a tensor, a tuple of positional or a dictionary of named arguments.
            targets: see the class.
        """
        linear, now = self._backward(inputs, targets)
        self.optimizer.step()
        if self.adaptive:
            self._adapt(inputs, targets, linear, now)
        return now.loss

    def backward(self, inputs: Any, targets: Tensor) -> Tensor:
        """Gradients alone, in place of those that there are; the loss."""
        return self._backward(inputs, targets)[1].loss

    def state_dict(self) -> dict[str, Any]:
        """The damping, and where "cg" starts; the optimiser's state is its own."""
        return {"damping": self._damping.clone(), "start": None if self._start is None else self._start.clone()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """What `state_dict` returned."""
        self._damping = torch.as_tensor(state_dict["damping"], dtype=torch.float64).clone()
        self._start = state_dict["start"] if state_dict["start"] is None else state_dict["start"].clone()

    # The step. --------------------------------------------------------------------------------------------------------

    def _backward(self, inputs: Any, targets: Tensor) -> tuple[Linearised, OutputLoss]:
        points, tensors = self._tensors()
        self._noise = self._noise_state(points) if self.adaptive else []
        with torch.enable_grad():
            params = [p for point in points for p in point.params]
            named = {name: t for p, t in zip(params, tensors, strict=True) for name in self._names[id(p)]}
            now = self._rows(self._outputs(inputs, named), targets)
        if not now.z.requires_grad:
            raise ValueError("model: its outputs do not depend on any parameter that the optimiser moves")
        if not (now.loss.isfinite() & now.residual.isfinite().all()):
            raise ValueError(
                "the model's outputs have NaN or infinite entries; no parameter was changed. Lower lr, or raise damping"
            )
        linear = Linearised(now.z, tensors, Coordinates(points, [t.detach() for t in tensors]))
        c, start = self._cg(linear, now) if self.solver == "cg" else self._dense(linear, now)
        if not c.isfinite().all():
            raise ValueError("the model's derivatives have NaN or infinite entries; no parameter was changed")
        self._start = start
        self._write(points, linear.vjp(c))
        return linear, now

    def _dense(self, linear: Linearised, now: OutputLoss) -> tuple[Tensor, None]:
        """c = S u, (S^T K S + b damping I) u = w."""
        shape = now.residual.shape
        chunk = self.chunk or max(1, ENTRIES // linear.coordinates.size)
        if self.solver == "rows" or torch.finfo(now.z.dtype).bits < 32:
            h = linear.rows(chunk)
            k = h @ h.mT
        else:
            k = linear.gram(chunk)
        eps, k = torch.finfo(k.dtype).eps, double(k).unflatten(1, shape)
        a = now.root_t(k).flatten(1)
        a = now.root_t(a.mT.unflatten(1, shape)).flatten(1)
        floor = eps * a.diagonal().sum()
        mu = torch.maximum(self._mu(now), floor)
        factor = torch.linalg.cholesky_ex((a + a.mT) / 2 + mu * torch.eye(len(a), dtype=a.dtype, device=a.device)).L
        u = torch.cholesky_solve(now.white.reshape(-1, 1), factor)
        return now.root(u.reshape(shape)), None

    def _cg(self, linear: Linearised, now: OutputLoss) -> tuple[Tensor, Tensor | None]:
        """Conjugate gradients for (Q K + b damping I) c = r in the inner product of K."""
        mu, e = self._mu(now), now.residual
        c = torch.zeros_like(e)
        ke, ee = linear.kernel(e)
        goal = self.tolerance**2 * ee
        if self._start is not None and self._start.shape == e.shape:
            start = self._start.to(e)
            rest = e - now.bend(linear.kernel(start)[0]) - mu * start
            k_rest, left = linear.kernel(rest)
            better = left < ee
            c, e, ke = (torch.where(better, *pair) for pair in ((start, c), (rest, e), (k_rest, ke)))
            ee = torch.where(better, left, ee)
        p, kp = e, ke
        for _ in range(self.iterations):
            if ee <= goal:
                break
            ap = now.bend(kp) + mu * p
            step = ee / (kp * ap).sum()
            c, e = c + step * p, e - step * ap
            ke, left = linear.kernel(e)
            p, kp = e + left / ee * p, ke + left / ee * kp
            ee = left
        return c, c if self.warm_start else None

    def _mu(self, now: OutputLoss) -> Tensor:
        return len(now.residual) * self._damping.to(now.residual)

    @torch.no_grad()
    def _adapt(self, inputs: Any, targets: Tensor, linear: Linearised, now: OutputLoss) -> None:
        """The damping of the next step, by the ratio of the actual to the predicted decrease. The loss's rounding is
        added to both (Conn, Gould and Toint 2000, section 17.4.2), lest damping rise where there is no more to gain."""
        moved = [p.detach() - old for p, old in zip(linear.coordinates.params, linear.params, strict=True)]
        damped = self._damping.to(now.residual) / 2 * double(linear.coordinates.coords(moved)).square().sum()
        promised = -now.change(linear.jvp(moved).to(now.residual)) - damped
        with self._as_it_was():
            gained = now.loss - self._rows(self._outputs(inputs, {}), targets).loss
        by_outputs = (now.residual * now.z.detach()).abs().sum() / len(now.residual)
        noise = 10 * torch.finfo(now.z.dtype).eps * (now.loss + by_outputs)
        ratio = (gained + noise) / (promised + noise)
        factor = torch.where(ratio > 0.75, 0.5, torch.where(ratio >= 0.25, 1.0, 1.5))  # 1.5 for a ratio that is NaN
        factor = torch.where(promised > -noise, factor, 1.0)  # momentum may go uphill
        self._damping = (self._damping * factor.to(self._damping)).clamp(MINIMUM, MAXIMUM)

    # The model. -------------------------------------------------------------------------------------------------------

    def _tensors(self) -> tuple[list[Point], list[Tensor]]:
        """The optimiser's points, and the tensors from which outputs are computed: theirs, or copies, where the pass
        through the model is to outlive the step."""
        points = points_of(self.optimizer)
        self._names = _places(self.model)
        for point in points:
            for label, p in zip(point.names, point.params, strict=True):
                if id(p) not in self._names:
                    raise ValueError(f"optimizer: {label} of shape {tuple(p.shape)} is no parameter of the model")
        params = [p for point in points for p in point.params]
        if not params:
            raise ValueError("optimizer: moves no parameter that requires a gradient")
        return points, [p.detach().clone().requires_grad_() for p in params] if self.adaptive else params

    def _outputs(self, inputs: Any, tensors: dict[str, Tensor]) -> Tensor:
        """The model's, with these tensors in place of its own."""
        args, kwargs = (inputs if isinstance(inputs, tuple) else (inputs,)), {}
        if isinstance(inputs, dict):
            args, kwargs = (), inputs
        out = torch.func.functional_call(self.model, tensors, args, kwargs, tie_weights=False)
        out = getattr(out, "logits", out)
        if not isinstance(out, Tensor) or out.is_complex():
            got = f"a tensor of {out.dtype}" if isinstance(out, Tensor) else type(out).__name__
            raise TypeError(f"model: returned {got}, expected a real tensor, or an object with one as `logits`")
        return out

    def _rows(self, outputs: Tensor, targets: Tensor) -> OutputLoss:
        if self.loss == "squared":
            return Squared(outputs, targets)
        return CrossEntropy(outputs, targets, self.ignore_index)

    def _write(self, points: list[Point], grads: list[Tensor | None]) -> None:
        """Gradients into `.grad`: None for points on which the outputs do not depend, as torch has it."""
        rest = list(grads)
        for point in points:
            own, rest = rest[: len(point.params)], rest[len(point.params) :]
            for p, g in zip(point.params, own, strict=True):
                touched = any(other is not None for other in own)
                p.grad = (torch.zeros_like(p) if g is None else g.detach()) if touched else None

    def _noise_state(self, points: list[Point]) -> list[Tensor]:
        """The states of torch's generators: of the CPU, and of the GPUs that hold parameters."""
        self._devices = sorted({p.device.index or 0 for point in points for p in point.params if p.is_cuda})
        return [torch.get_rng_state(), *(torch.cuda.get_rng_state(i) for i in self._devices)]

    @contextlib.contextmanager
    def _as_it_was(self) -> Iterator[None]:
        """The noise of the last pass through the model; buffers are put back at the end."""
        buffers = [(b, b.clone()) for b in self.model.buffers()]
        with torch.random.fork_rng(self._devices):
            torch.set_rng_state(self._noise[0])
            for i, state in zip(self._devices, self._noise[1:], strict=True):
                torch.cuda.set_rng_state(state, i)
            yield
        for b, old in buffers:
            b.copy_(old)


def _places(model: nn.Module) -> dict[int, list[str]]:
    """By the ids of a model's parameters, all names under which modules have them: several of tied ones, but one of a
    module that is found twice, which `functional_call` does not put back as it was."""
    places: dict[int, list[str]] = {}
    for prefix, module in model.named_modules():
        for name, p in module._parameters.items():
            if p is not None:
                places.setdefault(id(p), []).append(f"{prefix}.{name}" if prefix else name)
    return places
