"""What every adapter must satisfy: as pure functions of its tensors, and inside PEFT."""

from __future__ import annotations

import copy
import dataclasses
import json
import tempfile
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from steepest.manifolds.tensors import as_tuple
from steepest.testing.asserts import assert_close, distance

if TYPE_CHECKING:  # importing it imports PEFT
    from steepest.adapters import Adapter

ADAPTER_CHECKS: list[Callable[[Adapter], None]] = []
"""Every check, in order."""

OUT, IN = 10, 12
"""Outputs and inputs of the layer that is adapted."""
ROUNDING = {torch.float64: 1e-12, torch.float32: 1e-5}
"""Some hundred times the rounding of a handful of products of matrices of that size."""


def check_adapter(adapter: Adapter) -> None:
    """Run every check on an adapter that fits a layer of 12 inputs and 10 outputs.

    >>> from steepest.adapters import LOFT
    >>> from steepest.testing import check_adapter
    >>> check_adapter(LOFT(r=4))
    """
    for check in ADAPTER_CHECKS:
        check(adapter)


def _check(function: Callable[[Adapter], None]) -> Callable[[Adapter], None]:
    ADAPTER_CHECKS.append(function)
    return function


def _random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def _made(
    adapter: Adapter, *, shaken: float = 0.0, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, dict[str, Tensor]]:
    """A weight, and the adapter's tensors for it: at the start, or moved away from it by random numbers."""
    from steepest.adapters import Source

    source = Source(_random(OUT, IN), _random(OUT, IN, seed=1), seed=5)
    bases = adapter.bases(source)
    trained = adapter.start(source, bases)
    if shaken:
        trained = {n: v + shaken * _random(*v.shape, seed=i + 2) for i, (n, v) in enumerate(trained.items())}
        for names, manifold in adapter.points().items():
            x = tuple(trained[n] for n in names)
            x = manifold.project(x if manifold.arity > 1 else x[0])
            trained.update(zip(names, as_tuple(x), strict=True))
    tensors = {n: v.to(dtype) if v.is_floating_point() else v for n, v in (bases | trained).items()}
    return source.weight.to(dtype), tensors


def _output(adapter: Adapter, t: dict[str, Tensor], weight: Tensor, x: Tensor) -> Tensor:
    """What the adapted layer makes of its input, without a bias."""
    z = adapter.turn(t, x)
    added = adapter.add(t, z)
    return z @ weight.mT if added is None else z @ weight.mT + added


@_check
def check_start(adapter: Adapter) -> None:
    """At the start the layer is as it was; what is trained has the announced names, and the announced number."""
    weight, t = _made(adapter)
    x = _random(7, IN, seed=9)
    assert_close(_output(adapter, t, weight, x), x @ weight.mT, "the start changes the layer", 1e-12)
    trained = {n: v for n, v in t.items() if n in adapter.trained}
    assert set(t) <= {*adapter.trained, *adapter.frozen}, f"tensors that are not announced: {sorted(t)}"
    assert trained, "nothing is trained"
    number = sum(v.numel() for v in trained.values())
    assert number == adapter.count(OUT, IN), f"count says {adapter.count(OUT, IN)}, but {number} numbers are trained"
    for names, manifold in adapter.points().items():
        point = tuple(t[n] for n in names)
        manifold.check_point(point if manifold.arity > 1 else point[0], f"start of {names}")


@_check
def check_moves(adapter: Adapter) -> None:
    """Away from the start the layer is another one, and the way there has gradients that are right."""
    weight, t = _made(adapter, shaken=0.3)
    x = _random(5, IN, seed=9)
    gap = distance(_output(adapter, t, weight, x), x @ weight.mT)
    assert gap > 1e-3, "other trained numbers make no other layer"
    names = [n for n in t if n in adapter.trained]

    def output(x: Tensor, *values: Tensor) -> Tensor:
        return _output(adapter, t | dict(zip(names, values, strict=True)), weight, x)

    if adapter.mergeable:  # a choice of experts jumps
        inputs = [v.clone().requires_grad_() for v in (x, *(t[n] for n in names))]
        torch.autograd.gradcheck(output, inputs, fast_mode=True)


@_check
def check_first_step(adapter: Adapter) -> None:
    """From the start there is a gradient: some trained number moves the layer to first order."""
    weight, t = _made(adapter)
    leaves = {n: v.clone().requires_grad_() for n, v in t.items() if n in adapter.trained}
    y = _output(adapter, t | leaves, weight, _random(5, IN, seed=9))
    (y * _random(5, OUT, seed=10)).sum().backward()
    gradients = [v.grad for v in leaves.values() if v.grad is not None]
    assert all(g.isfinite().all() for g in gradients), "the gradient at the start is not finite"
    assert any(g.abs().max() > 1e-6 for g in gradients), "the gradient at the start is zero"


@_check
def check_adjoint(adapter: Adapter) -> None:
    """`turn_back` is the transpose of `turn`, and `shift` the matrix of `add`; a batch is as its elements."""
    _, t = _made(adapter, shaken=0.3)
    x, y = _random(2, 3, IN, seed=9), _random(2, 3, IN, seed=10)
    there, back = adapter.turn(t, x), adapter.turn_back(t, y)
    assert_close((there * y).sum(), (x * back).sum(), "turn_back is not the transpose of turn", 1e-10)
    assert_close(adapter.turn(t, x[1, 2]), there[1, 2], "turn of one row differs from that in a batch", 1e-12)
    assert adapter.turn(t, x[:0]).shape == (0, 3, IN), "turn of no rows"
    if not adapter.mergeable:
        return
    added, matrix = adapter.add(t, x), adapter.shift(t)
    if added is None:
        assert matrix is None, "shift, but nothing to add"
        return
    assert matrix is not None, "add, but no shift"
    assert_close(added, x @ matrix.mT, "shift is not the matrix of add", 1e-12)
    assert adapter.add(t, x[:0]).shape == (0, 3, OUT), "add of no rows"  # type: ignore[union-attr]


@_check
def check_merge(adapter: Adapter) -> None:
    """The merged weight does what the adapted layer does, and merging can be undone."""
    if not adapter.mergeable:
        return
    for dtype, tolerance in ROUNDING.items():
        weight, t = _made(adapter, shaken=0.3, dtype=dtype)
        x = _random(7, IN, seed=9, dtype=dtype)
        merged = adapter.merge(t, weight)
        assert_close(x @ merged.mT, _output(adapter, t, weight, x), f"merged in {dtype}", tolerance)
        assert_close(adapter.unmerge(t, merged), weight, f"unmerged in {dtype}", 10 * tolerance)


@_check
def check_orthogonal(adapter: Adapter) -> None:
    """What says that it is orthogonal keeps the singular values, however far the trained numbers have gone."""
    if not adapter.orthogonal():
        return
    for far in (0.01, 0.3, 3.0):
        weight, t = _made(adapter, shaken=far)
        singular = torch.linalg.svdvals(adapter.merge(t, weight))
        assert_close(singular, torch.linalg.svdvals(weight), f"singular values at {far} from the start", 1e-10)


@_check
def check_bases(adapter: Adapter) -> None:
    """Bases are the same when computed again; after other signs and rotations a probe finds the right ones."""
    from steepest.adapters import Source
    from steepest.adapters.bases import probe, recover

    source = Source(_random(OUT, IN), _random(OUT, IN, seed=1), seed=5)
    bases = adapter.bases(source)
    for name, again in adapter.bases(source).items():
        assert torch.equal(again, bases[name]), f"{name} is not the same when it is computed again"
    if adapter.basis not in bases:
        return
    v = bases[adapter.basis]
    assert_close(v.mT @ v, torch.eye(v.shape[1], dtype=v.dtype), "the basis is not orthonormal", 1e-12)
    other = v @ torch.linalg.qr(_random(v.shape[1], v.shape[1], seed=3))[0]
    found = recover(other, probe(v))
    assert found is not None, "the basis is not found from its span"
    for name, value in adapter.bases(source, found).items():
        assert_close(value, bases[name], f"{name} from a recovered basis", 1e-10)


@_check
def check_options(adapter: Adapter) -> None:
    """Frozen, plain values that survive JSON, one line in print."""
    from steepest.adapters import Adapter

    assert type(adapter).__dataclass_params__.frozen, "an adapter is frozen"  # type: ignore[attr-defined]
    assert Adapter.from_spec(json.loads(json.dumps(adapter.to_spec()))) == adapter, "to_spec does not survive JSON"
    assert "\n" not in repr(adapter), "its repr takes more than a line"


class _Net(nn.Module):
    """Two layers to adapt, and one to leave alone."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.a, self.b, self.head = (
            nn.Linear(IN, IN, dtype=dtype),
            nn.Linear(IN, OUT, dtype=dtype),
            nn.Linear(OUT, 3, dtype=dtype),
        )
        with torch.no_grad():
            for i, p in enumerate(self.parameters()):
                p.copy_(_random(*p.shape, seed=20 + i) / 3)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return self.head(torch.tanh(self.b(torch.tanh(self.a(x)))))


def adapted(adapter: Adapter, *, dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    """The small network of these checks with the adapter on two of its layers, through PEFT."""
    from peft import get_peft_model

    net = _Net(dtype)
    return get_peft_model(net, _config(adapter, net, **options))


def _config(adapter: Adapter, net: nn.Module, **options: Any) -> Any:
    from steepest.adapters import calibrate, register

    fields = {f.name: getattr(adapter, f.name) for f in dataclasses.fields(adapter)}  # type: ignore[arg-type]
    config = register(type(adapter))(**fields, target_modules=["a", "b"], **options)
    if adapter.wants_gradient():
        x = _random(30, IN, seed=8).to(next(net.parameters()).dtype)
        calibrate(net, config, lambda: net(x).square().mean().backward())
    return config


def _singular(model: Any) -> list[Tensor]:
    """Singular values of the adapted layers' weights, with the adapter in them."""
    layers = [m for m in model.modules() if hasattr(m, "get_delta_weight")]
    return [torch.linalg.svdvals((m.get_base_layer().weight + m.get_delta_weight("default")).double()) for m in layers]


def train(model: Any, optimizer: torch.optim.Optimizer, steps: int, seed: int = 0) -> list[float]:
    """A few steps on random data; the losses."""
    from steepest.adapters import penalty

    dtype = next(model.parameters()).dtype
    x, y = _random(40, IN, seed=seed, dtype=dtype), torch.arange(40) % 3
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x).float(), y) + penalty(model)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@_check
def check_trains(adapter: Adapter) -> None:
    """Inside PEFT it trains under an optimiser of this library, which finds its points and keeps them; the singular
    values of orthogonal ones stay."""
    from steepest import Adam, param_groups

    model = adapted(adapter)
    layer = model.base_model.model.a
    groups = param_groups(model)
    number = sum(p.numel() for g in groups for p in g["params"])
    assert number == adapter.count(IN, IN) + adapter.count(OUT, IN), "not everything that is trained is in a group"
    points = sum(len(g["params"]) for g in groups if g["role"] == "point")
    assert points == 2 * sum(len(names) for names in adapter.points()), "param_groups does not find the points"
    before = _singular(model) if adapter.orthogonal() else []
    frozen = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    losses = train(model, Adam(groups, lr=0.005), 60)
    assert losses[-1] < losses[0], f"the loss does not fall: {losses[0]:.3f} to {losses[-1]:.3f}"
    assert all(torch.equal(p, frozen[n]) for n, p in model.named_parameters() if n in frozen), "a frozen weight moved"
    if before:
        for here, there in zip(_singular(model), before, strict=True):
            assert_close(here, there, "singular values after training", 1e-5)  # float32
    t = layer.tensors("default")
    for names, manifold in adapter.points().items():
        x = tuple(t[n].detach() for n in names)
        manifold.check_point(x if manifold.arity > 1 else x[0], f"{names} after training")


@_check
def check_saving(adapter: Adapter) -> None:
    """What is saved and loaded gives the same output, with its bases in the file or without, and trains on."""
    from peft import PeftModel

    x = _random(6, IN, seed=3, dtype=torch.float32)
    for saved in (False, True):
        model = adapted(adapter, init_weights=False, save_bases=saved)
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            loaded = PeftModel.from_pretrained(_Net(), folder, is_trainable=True)
        assert_close(loaded(x), model(x), f"loaded with save_bases={saved}", 1e-6)
        trained = [{n: p.shape for n, p in m.named_parameters() if p.requires_grad} for m in (loaded, model)]
        assert trained[0] == trained[1], "a loaded adapter trains something else"


@_check
def check_merging(adapter: Adapter) -> None:
    """Inside PEFT: merged, unmerged, disabled, unloaded."""
    model, x = adapted(adapter, init_weights=False), _random(6, IN, seed=3, dtype=torch.float32)
    y, base = model(x), _Net()(x)
    assert distance(y, base) > 1e-4, "init_weights=False starts at the identity"
    with model.disable_adapter():
        assert_close(model(x), base, "disabled", 1e-7)
    if not adapter.mergeable:
        try:
            model.merge_adapter()
        except ValueError as error:
            assert "merg" in str(error), "the refusal to merge does not say what is refused"
            assert_close(model(x), y, "a refused merge has changed the model", 0.0)
            return
        raise AssertionError("merges what cannot be merged")
    model.merge_adapter()
    assert_close(model(x), y, "merged", 1e-5)
    model.unmerge_adapter()
    assert_close(model(x), y, "unmerged", 1e-5)
    assert_close(model.merge_and_unload()(x), y, "merged and unloaded", 1e-5)


@_check
def check_several(adapter: Adapter) -> None:
    """Several adapters by their names: each alone, both one after the other, one taken out."""
    model = adapted(adapter, init_weights=False)
    model.add_adapter("second", _config(adapter, model, init_weights=False, seed=7))
    x = _random(6, IN, seed=3, dtype=torch.float32)
    first = model(x)
    model.set_adapter("second")
    second = model(x)
    model.set_adapter("default")
    assert_close(model(x), first, "switched back", 0.0)
    model.base_model.set_adapter(["default", "second"])
    both = model(x)
    assert distance(both, first) > 1e-4, "the second adapter does nothing"
    if adapter.mergeable:
        merged = copy.deepcopy(model)
        merged.merge_adapter()
        assert_close(merged(x), both, "both merged", 1e-5)
    model.delete_adapter("default")
    assert_close(model(x), second, "the other one deleted", 0.0)


@_check
def check_half(adapter: Adapter) -> None:
    """On a base model in bfloat16 it computes in float32, and answers in bfloat16; its bases stay orthonormal."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = adapted(adapter, dtype=torch.bfloat16, init_weights=False)
    x = _random(6, IN, seed=3).bfloat16()
    y = model(x)
    assert y.dtype == torch.bfloat16, f"the output is in {y.dtype}"
    y.float().sum().backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert all(p.dtype == torch.float32 and p.grad is not None and p.grad.isfinite().all() for p in trained)
    if adapter.mergeable:
        model.merge_adapter()
        assert_close(model(x), y, "merged in bfloat16", 0.1)  # some entries' rounding, 2^-8 each
