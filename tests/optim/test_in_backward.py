"""Steps during the backward pass: the same numbers as after it, and the gradients gone."""

import copy

import pytest
import torch

import steepest
from steepest import param_groups, step_in_backward

STEPS = 4


class Net(torch.nn.Module):
    """A tied table, matrices, vectors, an orthonormal one, a pair of fixed rank, a layer that is not always used."""

    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(6, 4)
        self.first = torch.nn.Linear(4, 5)
        self.second = torch.nn.Linear(5, 5, bias=False)
        self.b = torch.nn.Parameter(torch.randn(5, 2))
        self.a = torch.nn.Parameter(torch.randn(2, 4))
        self.rare = torch.nn.Linear(4, 4)
        steepest.constrain(self.second, "weight", steepest.Orthogonal())
        steepest.constrain(self, ("b", "a"), steepest.FixedRank())

    def forward(self, tokens, rare=True):
        x = self.table(tokens)
        x = torch.tanh(self.second(torch.tanh(self.first(x)))) @ self.b @ self.a
        x = self.rare(x) if rare else x
        return torch.nn.functional.cross_entropy(x @ self.table.weight.T, tokens.flip(0))


def batches(seed):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(6, (8,), generator=generator) for _ in range(3)]


def run(model, optimizer, stepping=None):
    for step in range(STEPS):
        *before, last = batches(step)
        for tokens in before:
            if stepping is None:
                model(tokens).backward()
            else:
                with stepping.accumulate():
                    model(tokens).backward()
        model(last, rare=step % 2 == 0).backward()
        if stepping is not None:
            left = {n for n, p in model.named_parameters() if p.grad is not None}
            assert left == (set() if step % 2 == 0 else {"rare.weight", "rare.bias"})
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("name", ["SGD", "AdamW", "Muon", "GaLore", "Adafactor"])
def test_gives_the_same_as_steps_after_it(name):
    torch.manual_seed(0)
    model = Net().double()
    twin = copy.deepcopy(model)
    make = getattr(steepest, name)
    optimizer, other = (make(param_groups(m), lr=0.01) for m in (model, twin))
    run(model, optimizer, step_in_backward(optimizer))
    run(twin, other)
    for (n, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-14, msg=lambda m, n=n: f"{n}: {m}")  # other orders of sums
    state, theirs = optimizer.state_dict(), other.state_dict()
    for i, kept in state["state"].items():
        for key, value in kept.items():
            torch.testing.assert_close(value, theirs["state"][i][key], rtol=0, atol=1e-13)


def test_a_point_waits_for_all_of_its_tensors():
    """Of a pair of which one gradient comes in a pass of its own, nothing moves until the other is there."""
    model = Net().double()
    optimizer = steepest.SGD(param_groups(model), lr=0.1)
    step_in_backward(optimizer)
    start = model.b.detach().clone()
    (model.b @ torch.ones(2, 4, dtype=torch.float64)).sum().backward()
    assert torch.equal(model.b, start)
    assert model.b.grad is not None
    (torch.ones(5, 2, dtype=torch.float64) @ model.a).sum().backward()
    assert not torch.equal(model.b, start)
    assert model.b.grad is None


def test_it_can_be_ended():
    layer = torch.nn.Linear(3, 2)
    stepping = step_in_backward(steepest.SGD(layer.parameters(), lr=0.1))
    stepping.remove()
    layer(torch.ones(1, 3)).sum().backward()
    assert layer.weight.grad is not None


def test_gradients_are_never_all_there_at_once():
    """When the gradient of the first layer is ready, those of the layers behind it are gone."""
    layers = torch.nn.Sequential(*(torch.nn.Linear(4, 4) for _ in range(5)))
    step_in_backward(steepest.SGD(layers.parameters(), lr=0.1))
    alive = []
    for p in layers.parameters():
        p.register_post_accumulate_grad_hook(
            lambda _: alive.append(sum(q.grad is not None for q in layers.parameters()))
        )
    layers(torch.ones(2, 4)).sum().backward()
    assert max(alive) <= 2


def test_a_gradient_that_is_not_finite_is_named():
    layer = torch.nn.Linear(3, 2)
    optimizer = steepest.SGD(layer.named_parameters(), lr=0.1)
    step_in_backward(optimizer)
    with pytest.raises(ValueError, match="weight"):
        layer(torch.full((1, 3), torch.inf)).sum().backward()
