"""What every preconditioner of layers must satisfy."""

from __future__ import annotations

import copy
import functools
import io
import pickle
from collections.abc import Callable

import torch
from torch import Tensor, nn

from steepest.curvature import LayerPreconditioner
from steepest.manifolds import Sphere
from steepest.optim import SGD, Muon, constrain, param_groups
from steepest.testing.asserts import assert_close

Make = Callable[..., LayerPreconditioner]
"""Takes a model, and options that go before the example's own."""

PRECONDITIONER_CHECKS: list[Callable[[Make], None]] = []
"""Every check, in order."""

EXAMPLES = 12
DOUBLE = torch.float64


def check_preconditioner(make: Make) -> None:
    """Run every check on what `make(model, **options)` builds: a class, or a partial of one with options."""
    for check in PRECONDITIONER_CHECKS:
        check(make)


def _check(function: Callable[[Make], None]) -> Callable[[Make], None]:
    PRECONDITIONER_CHECKS.append(function)
    return function


# Models and steps. ----------------------------------------------------------------------------------------------------


def _model(dtype: torch.dtype = DOUBLE) -> nn.Sequential:
    """Three layers of one shape among others, with and without biases."""
    torch.manual_seed(0)
    same = [m for _ in range(3) for m in (nn.Linear(4, 4), nn.Tanh())]
    return nn.Sequential(nn.Linear(3, 4, bias=False), *same, nn.Linear(4, 2)).to(dtype)


def _batch(step: int, *shape: int, dtype: torch.dtype = DOUBLE) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(*(shape or (EXAMPLES, 3)), generator=generator, dtype=torch.float64).to(dtype)


def _backward(model: nn.Module, x: Tensor, factor: float = 1.0) -> float:
    """Add the gradients of the mean over examples of a loss that is not zero anywhere near the start."""
    loss = (model(x).flatten(1) - 1).square().sum(1).mean() * factor
    loss.backward()
    return loss.item()


def _grads(model: nn.Module) -> list[Tensor]:
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters()]


def _step(
    model: nn.Module, p: LayerPreconditioner, x: Tensor, factor: float = 1.0
) -> tuple[list[Tensor], list[Tensor]]:
    """Gradients on x before and after."""
    model.zero_grad()
    _backward(model, x, factor)
    before = _grads(model)
    p.precondition()
    return before, _grads(model)


def _steps(make: Make, model: nn.Module, count: int = 3, **options: object) -> LayerPreconditioner:
    """The preconditioner after some steps, in which the model stays."""
    p = make(model, **options)
    for step in range(count * p.options["every"]):
        _step(model, p, _batch(step))
    return p


def _same_state(a: LayerPreconditioner, b: LayerPreconditioner | dict) -> bool:
    ours, theirs = a.state_dict()["layers"], b["layers"] if isinstance(b, dict) else b.state_dict()["layers"]
    return all(torch.equal(v, theirs[name][k]) for name, state in ours.items() for k, v in state.items())


def _all_equal(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def _unlengthened(make: Make) -> Make:
    """Without rescaling, of which some do not go layer by layer, or need an optimiser."""
    return functools.partial(make, rescale=None)


# Laws. ----------------------------------------------------------------------------------------------------------------


@_check
def check_descends(make: Make) -> None:
    """Every layer's preconditioned gradient is a descent direction, finite and of the gradient's dtype, and is another
    than the gradient."""
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        model = _model(dtype)
        p = _unlengthened(make)(model)
        for step in range(2 * p.options["every"] + 1):
            before, after = _step(model, p, _batch(step, dtype=dtype))
        for (name, parameter), g, d in zip(model.named_parameters(), before, after, strict=True):
            assert d.dtype == dtype, f"{name}: the gradient has become {d.dtype}"
            assert d.isfinite().all(), f"{name}: NaN or infinite entries"
            assert dtype == torch.bfloat16 or not torch.equal(g, d), f"{name}: nothing was done"  # may round to it
            assert parameter.requires_grad
        layers = [m for m in model if isinstance(m, nn.Linear)]
        pairs = iter(zip(before, after, strict=True))
        for layer in layers:
            parts = [next(pairs) for _ in layer.parameters()]
            slope = sum((g.double() * d.double()).sum() for g, d in parts)
            assert slope > 0, f"{dtype}: the gradient is turned by more than a right angle"


@_check
def check_linear(make: Make) -> None:
    """With the factors as they are, a gradient twice as long becomes twice as long, and sums become sums where the
    method says so."""
    model = _model()
    p = _steps(_unlengthened(make), model)
    model.eval()  # the factors stay
    a, b = _batch(50), _batch(51)
    (g, of_g), (h, of_h) = _step(model, p, a), _step(model, p, b)
    _, double = _step(model, p, a, 2.0)
    for x, y in zip(double, of_g, strict=True):
        assert_close(x, 2 * y, "a gradient twice as long", 1e-9)
    if p.linear:
        for parameter, s, t in zip(model.parameters(), g, h, strict=True):
            parameter.grad = s + t
        p.precondition()
        for x, y, z in zip(_grads(model), of_g, of_h, strict=True):
            assert_close(x, y + z, "a sum of gradients", 1e-9)


@_check
def check_batched(make: Make) -> None:
    """Layers of one shape get together what each gets alone."""
    model = _model()
    p = _steps(_unlengthened(make), model)
    _, together = _step(model, p, _batch(9))
    names = [name for name, _ in model.named_parameters()]
    for alone in p.layers:
        others = [name for name in p.layers if name != alone]
        model = _model()
        single = _steps(_unlengthened(make), model, skip=others)
        assert single.layers == [alone], f"skip leaves {single.layers}"
        before, after = _step(model, single, _batch(9))
        for name, x, y, z in zip(names, together, after, before, strict=True):
            mine = name.startswith(f"{alone}.")
            assert_close(y, x if mine else z, f"{name} with {alone} alone", 1e-9)


@_check
def check_resume(make: Make) -> None:
    """State goes through a file and continues to the last bit, and is refused by other models."""
    model = _model()
    p = _steps(make, model, 2, rescale=None)
    _step(model, p, _batch(99))  # so that it is not at the beginning of a period
    file = io.BytesIO()
    torch.save(p.state_dict(), file)
    file.seek(0)
    other_model = _model()
    other = _unlengthened(make)(other_model)
    other.load_state_dict(torch.load(file, weights_only=True))
    for step in range(100, 103):
        _, a = _step(model, p, _batch(step))
        _, b = _step(other_model, other, _batch(step))
        assert _all_equal(a, b), "state does not hold all that the preconditioner remembers"
    assert _same_state(p, other), "factors differ after a resumption"
    saved = p.state_dict()
    fewer = _unlengthened(make)(_model(), skip="1")
    for wrong in ({**saved, "method": "Another"}, saved):
        try:
            fewer.load_state_dict(wrong)
        except ValueError:
            continue
        raise AssertionError("the state of another method, or of other layers, is taken")


@_check
def check_nonfinite(make: Make) -> None:
    """NaN and infinite inputs leave gradients as they are, and no trace in the factors."""
    for bad in (float("nan"), float("inf"), 1e300):
        model = _model()
        p = _steps(_unlengthened(make), model)
        state = copy.deepcopy(p.state_dict())
        x = _batch(9)
        x[0, 0] = bad
        while not p.due:
            p.precondition()
        before, after = _step(model, p, x)
        broken = [not g.isfinite().all() for g in before]
        for g, d, is_broken in zip(before, after, broken, strict=True):
            assert not is_broken or torch.equal(g.nan_to_num(), d.nan_to_num()), f"{bad}: a gradient was rewritten"
        if all(broken):
            assert _same_state(p, state), f"{bad} has come into the factors"
        assert all(v.isfinite().all() for s in p.state_dict()["layers"].values() for v in s.values())
        _, after = _step(model, p, _batch(10))
        assert all(g.isfinite().all() for g in after), f"{bad} stays in what comes after"
        model.zero_grad()
        _backward(model, _batch(11))
        weight = model.get_parameter("1.weight").grad
        assert weight is not None
        weight[0, 0] = float("nan")
        kept = weight.clone()
        p.precondition()
        assert torch.equal(weight.nan_to_num(7.0), kept.nan_to_num(7.0)), "one bad entry, and the others were rewritten"


@_check
def check_zero(make: Make) -> None:
    """Gradients of zero stay zero, inputs of zero do no harm."""
    model = _model()
    p = _steps(make, model, 1, rescale=None)
    model.zero_grad()
    (model(_batch(1)) * 0).sum().backward()
    p.precondition()
    assert all((g == 0).all() for g in _grads(model)), "a gradient of zero has become another"
    for _ in range(2 * p.options["every"]):
        _, after = _step(model, p, _batch(1) * 0)
        assert all(g.isfinite().all() for g in after), "inputs of zero lead to NaN"


@_check
def check_optimizers(make: Make) -> None:
    """Attached to an optimiser, of torch or ours, also with a manifold, it does at a step what it does by hand before
    it, closures included; detached, it does nothing."""
    builders: list[Callable[[nn.Module], torch.optim.Optimizer]] = [
        lambda m: torch.optim.AdamW(m.parameters(), lr=1e-3),
        lambda m: SGD(param_groups(m), lr=1e-2, momentum=0.9),
        lambda m: Muon(param_groups(m), lr=1e-3),
    ]
    for build in builders:
        models = [_model() for _ in range(3)]
        for model in models:
            constrain(model[1], "weight", Sphere())
        optimizers = [build(model) for model in models]
        by_step, by_hand, by_closure = (make(m, **_by_hand(make)) for m in models)
        by_step.attach(optimizers[0])
        by_closure.attach(optimizers[2])
        for step in range(4):
            x = _batch(step)
            for optimizer in optimizers:
                optimizer.zero_grad()
            _backward(models[0], x)
            optimizers[0].step()
            _backward(models[1], x)
            by_hand.precondition()
            optimizers[1].step()
            optimizers[2].step(functools.partial(_backward, models[2], x))
        results: list[list[Tensor]] = [list(model.parameters()) for model in models]
        assert _all_equal(results[0], results[1]), f"{type(optimizers[0]).__name__}: a step is not precondition() first"
        assert _all_equal(results[1], results[2]), f"{type(optimizers[0]).__name__}: a closure's gradients are others"
        by_step.detach()
        hooks = [m._forward_hooks for m in models[0].modules()] + [optimizers[0]._optimizer_step_pre_hooks]
        assert not any(hooks), "hooks are left behind"
        optimizers[0].zero_grad()
        _backward(models[0], _batch(7))
        before = _grads(models[0])
        optimizers[0].step()
        assert _all_equal(before, _grads(models[0])), "it goes on after detach()"


def _by_hand(make: Make) -> dict[str, object]:
    """No rescaling that needs an optimiser."""
    rescale = make(_model()).options["rescale"]
    return {"rescale": None} if rescale is not None and rescale.needs_lr else {}


# What layers are. -----------------------------------------------------------------------------------------------------


@_check
def check_accumulation(make: Make) -> None:
    """Halves of a batch, of which each adds half its loss, are the whole batch; what `zero_grad` has wiped away was not
    seen; passes in evaluation mode, or without gradients, do not count."""
    whole, halves = _model(), _model()
    p, q = _unlengthened(make)(whole), _unlengthened(make)(halves)
    for step in range(2 * p.options["every"]):
        x = _batch(step)
        _, a = _step(whole, p, x)
        halves.zero_grad()
        _backward(halves, _batch(77))  # a step that was given up, as a GradScaler gives up
        halves.zero_grad()
        for part in x.chunk(2):
            _backward(halves, part, 0.5)
        with torch.no_grad():
            halves(_batch(88))
        halves.eval()(_batch(99)).sum()
        halves.train()
        q.precondition()
        for s, t in zip(a, _grads(halves), strict=True):
            assert_close(s, t, "two halves", 1e-9)


@_check
def check_scale(make: Make) -> None:
    """A loss that was scaled up, and gradients that were scaled down since, make no difference."""
    plain, scaled = _model(), _model()
    p, q = _unlengthened(make)(plain), _unlengthened(make)(scaled, scale=lambda: 128.0)
    for step in range(2 * p.options["every"]):
        _, a = _step(plain, p, _batch(step))
        scaled.zero_grad()
        _backward(scaled, _batch(step), 128.0)
        for parameter in scaled.parameters():
            parameter.grad.div_(128)  # type: ignore[union-attr]
        q.precondition()
        for s, t in zip(a, _grads(scaled), strict=True):
            assert_close(t, s, "a scaled loss", 1e-9)


class _Reused(nn.Module):
    """One layer twice, one never, one with a frozen weight, one with a frozen bias, and an embedding."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(5, 3)
        self.first, self.twice, self.never, self.frozen, self.part, self.last = (nn.Linear(3, 3) for _ in range(6))
        self.tied = nn.Linear(3, 5, bias=False)
        self.tied.weight = self.table.weight
        self.frozen.weight.requires_grad_(False)
        self.part.bias.requires_grad_(False)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        x = self.twice(torch.tanh(self.first(x)))
        return self.tied(self.last(self.part(self.frozen(self.twice(torch.tanh(x))))))


@_check
def check_layers(make: Make) -> None:
    """Layers may be used twice, never, or in part; what is no layer of its own stays as it is."""
    model = _Reused()
    p = _unlengthened(make)(model)
    assert sorted(p.layers) == ["first", "last", "never", "part", "twice"], f"takes the layers {p.layers}"
    start = p.state_dict()["layers"]["never"]
    for step in range(2 * p.options["every"] + 1):
        model.zero_grad()
        _backward(model, _batch(step))
        before = {name: q.grad.clone() for name, q in model.named_parameters() if q.grad is not None}
        p.precondition()
        for name, q in model.named_parameters():
            if name.startswith(("first", "twice", "part.weight", "last")):
                assert q.grad is not None, name
                assert q.grad.isfinite().all(), name
            elif q.grad is not None:
                assert torch.equal(q.grad, before[name]), f"{name} was rewritten"
    assert not any(torch.equal(before[n], model.get_parameter(n).grad) for n in ("twice.weight", "part.weight"))  # type: ignore[arg-type]
    same = p.state_dict()["layers"]["never"]
    assert all(torch.equal(v, same[k]) for k, v in start.items()), "a layer that was not used has learnt"
    assert all(q.grad is None for q in (model.part.bias, model.frozen.weight, model.never.weight)), "a gradient is new"


@_check
def check_positions(make: Make) -> None:
    """A convolution is a linear layer on its patches; leading dimensions other than the first are positions."""
    torch.manual_seed(0)
    cases = [
        (nn.Conv1d(2, 3, 2, stride=2), (4, 2, 6), lambda x: x.unfold(2, 2, 2).movedim(1, 2).flatten(2)),
        (
            nn.Conv2d(2, 3, (2, 1), stride=(2, 1), dilation=(1, 2)),
            (4, 2, 4, 2),
            lambda x: x.unfold(2, 2, 2).movedim(1, 3).flatten(1, 2).flatten(2),
        ),
        (nn.Conv3d(2, 3, 2, bias=False), (4, 2, 2, 2, 2), lambda x: x.flatten(1).unsqueeze(1)),
        (nn.Conv2d(2, 3, 1, padding=1), (4, 2, 1, 1), lambda x: torch.nn.functional.pad(x, [1] * 4).flatten(2).mT),
    ]
    for convolution, shape, patches in cases:
        convolution.double()
        rows = patches(_batch(0, *shape))
        linear = nn.Linear(rows.shape[-1], 3, bias=convolution.bias is not None).double()
        with torch.no_grad():
            linear.weight.copy_(convolution.weight.flatten(1))
            if convolution.bias is not None:
                linear.bias.copy_(convolution.bias)
        p, q = (_unlengthened(make)(m) for m in (convolution, linear))
        for step in range(2 * p.options["every"]):
            x = _batch(step, *shape)
            _, a = _step(convolution, p, x)
            _, b = _step(linear, q, patches(x))
            for s, t in zip(a, b, strict=True):
                assert_close(s.flatten(1) if s.ndim > 2 else s, t, f"{convolution}", 1e-9)


@_check
def check_dtype(make: Make) -> None:
    """Factors can be kept in bfloat16, and are next to what they are otherwise."""
    model = _model(torch.float32)
    p = _unlengthened(make)(model, dtype=torch.bfloat16)
    for step in range(2 * p.options["every"] + 1):
        _, after = _step(model, p, _batch(step, dtype=torch.float32))
    kept = [v for s in p.state_dict()["layers"].values() for v in s.values() if v.ndim]
    assert all(v.dtype == torch.bfloat16 for v in kept), f"factors in { ({v.dtype for v in kept}) }"
    assert all(g.isfinite().all() for g in after)


@_check
def check_copies(make: Make) -> None:
    """A model can be copied and pickled as before, and the copy is not watched."""
    model = _model()
    p = make(model, **_by_hand(make))
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        state = p.state_dict()
        _backward(other, _batch(3))
        p.precondition()
        assert _same_state(p, state), "a copy of the model is watched"


@_check
def check_repr(make: Make) -> None:
    """It says in a line what it is, and refuses a model without layers, and options that nobody has."""
    p = make(_model())
    assert repr(p).startswith(f"{type(p).__name__}(5 layers"), repr(p)
    assert "\n" not in repr(p), repr(p)
    for arguments in ({"model": nn.LayerNorm(3)}, {"model": _model(), "loss": "median"}, {"model": _model(), "lr": 1}):
        try:
            make(**arguments)
        except (ValueError, TypeError) as error:
            assert str(error), "an error without a word"
            continue
        raise AssertionError(f"takes {arguments}")
