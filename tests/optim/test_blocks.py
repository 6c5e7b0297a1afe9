"""Blocks of coordinates of any number of dimensions, points whose tensors and blocks differ in number, and manifolds
that hold a matrix.

`Cut` is flat: its coordinates are the entries of the point's tensors, cut up anew. So what acts entrywise moves its
points as it moves the plain tensors, whatever the cut.
"""

import copy
import dataclasses
import io
import math
import pickle

import pytest
import torch
from torch import nn

from steepest import Adam, Composed, Euclidean, Manifold, Muon, Product, Shampoo, constrain, param_groups, testing
from steepest.manifolds.base import as_tuple, like
from steepest.norms import Spectral
from steepest.optim import OPTIMIZERS, RoleOptimizer
from steepest.spec import tensor_field
from steepest.testing import optimizer as suite
from steepest.transforms import Momentum
from steepest.transforms.base import as_matrix

ALL = {name: family for name, family in OPTIMIZERS.items() if name != "composed" and "steepest" in family.__module__}
FACTORED = {"adafactor", "sm3"}
"""What takes a tensor whole besides matrix methods: sums along its axes."""
ENTRYWISE = [name for name, family in ALL.items() if not issubclass(family, RoleOptimizer) and name not in FACTORED]


@pytest.fixture(autouse=True)
def _no_trace():
    """What a test defines is found by no suite."""
    known = dict(Manifold.known)
    yield
    Manifold.known.clear()
    Manifold.known.update(known)


def define_cut():
    @dataclasses.dataclass(frozen=True)
    class Cut(Manifold):
        shapes: tuple[tuple[int, ...], ...]
        parts: tuple[tuple[int, ...], ...]
        scalars = ("real", "complex")

        arity = property(lambda self: len(self.shapes))
        point_ndims = property(lambda self: tuple(map(len, self.shapes)))
        blocks = property(lambda self: tuple(f"part{i}" for i in range(len(self.parts))))
        block_ndims = property(lambda self: tuple(map(len, self.parts)))

        def _cut(self, x, old, new):
            tensors = as_tuple(x)
            batch = tensors[0].shape[: tensors[0].ndim - len(old[0])]
            flat = torch.cat([t.reshape((*batch, -1)) for t in tensors], -1)
            pieces = flat.split([math.prod(s) for s in new], -1)
            pieces = tuple(p.reshape((*batch, *s)) for p, s in zip(pieces, new, strict=True))
            return pieces if len(new) > 1 else pieces[0]

        def _push(self, f, h):
            return self._cut(h, self.parts, self.shapes)

        def _pull(self, f, g):
            return self._cut(g, self.shapes, self.parts)

        _coords = _pull

        def _move(self, f, h):
            return like(f, [a + b for a, b in zip(as_tuple(f), as_tuple(self._push(f, h)), strict=True)])

        def _decay(self, f, h, rate):
            return like(h, [a + rate * b for a, b in zip(as_tuple(h), as_tuple(self._pull(f, f)), strict=True)])

        def project(self, x):
            return x

        def residual(self, x):
            t = as_tuple(x)[0]
            return 0 * t.abs().sum(tuple(range(-len(self.shapes[0]), 0)))

        def random_point(self, shape, **kwargs):
            shapes = shape if self.arity > 1 else (shape,)
            parts = tuple(torch.randn(s, **kwargs) for s in shapes)
            return parts if self.arity > 1 else parts[0]

        def shape_error(self, x):
            ends = [tuple(t.shape[t.ndim - len(s) :]) for t, s in zip(as_tuple(x), self.shapes, strict=True)]
            return "" if ends == list(self.shapes) else f"shapes {ends}, expected {self.shapes}"

        def dim(self, shape, scalars="real"):
            return sum(math.prod(s) for s in self.shapes) * (2 if scalars == "complex" else 1)

        @classmethod
        def examples(cls):
            return []

    return Cut


CUTS = {
    "arity 1, 2 blocks": (((6,),), ((2,), (2, 2))),
    "arity 2, 1 block": (((3,), (3, 3)), ((3, 4),)),
    "arity 2, 3 blocks": (((3, 2), (2, 2, 2, 2)), ((2, 3), (4, 2), (8,))),
    "arity 3, 3 blocks": (((2, 3, 4), (3, 2), (4,)), ((5, 2), (2, 2, 2, 2), (8,))),
    "arity 3, 2 blocks": (((4,), (), (3, 5)), ((19,), ())),
    "a core and its factors": (((2, 3, 4), (5, 2), (6, 3), (7, 4)), ((2, 3, 4), (5, 2), (6, 3), (7, 4))),
}
PLAIN = {
    "a product of Euclidean spaces": (Product((Euclidean(3), Euclidean(), Euclidean(1))), ((2, 3, 4), (3, 2), (4,))),
    "a kernel": (Euclidean(4), (2, 3, 2, 2)),
    "a vector": (Euclidean(1), (4,)),
    "a number": (Euclidean(0), ()),
}


def place(name):
    """A manifold and the shape of its points."""
    if name in PLAIN:
        return PLAIN[name]
    shapes, parts = CUTS[name]
    return define_cut()(shapes, parts), shapes if len(shapes) > 1 else shapes[0]


def params_at(manifold, shape, copies=2, dtype=torch.float64):
    seed = torch.Generator().manual_seed(0)
    points = [as_tuple(manifold.random_point(shape, generator=seed, dtype=dtype)) for _ in range(copies)]
    return [nn.Parameter(t) for point in points for t in point]


def descend(optimizer, params, steps=5):
    seed = torch.Generator().manual_seed(1)
    for _ in range(steps):
        for p in params:
            p.grad = torch.randn(p.shape, generator=seed, dtype=p.dtype)
        optimizer.step()
    return [p.detach() for p in params]


PLACED = [check for check in testing.OPTIMIZER_CHECKS if check is not suite.check_parameters]


@pytest.mark.parametrize("check", PLACED, ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", [*CUTS, *PLAIN])
def test_the_suite(name, check, monkeypatch):
    """With Adam, Muon and Shampoo, each of which treats shapes in its own way."""
    manifold, shape = place(name)
    plain_groups = suite.Problem.groups
    monkeypatch.setattr(suite.Problem, "groups", lambda self: [{**plain_groups(self)[0], "geometry": self.manifold}])
    for family in (Adam, Muon, Shampoo):
        check(family, [(manifold, shape, torch.float64)])


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize("method", ENTRYWISE)
@pytest.mark.parametrize("name", [*CUTS, *PLAIN])
def test_entrywise_methods_do_not_see_the_cut(name, method, dtype):
    manifold, shape = place(name)
    cut, whole = params_at(manifold, shape, dtype=dtype), params_at(manifold, shape, dtype=dtype)
    ours = descend(ALL[method]([{"params": cut, "geometry": manifold}], lr=0.1, weight_decay=0.1), cut)
    plain = {"params": whole, "geometry": None, "matrix": None, "sizes": {}}  # says so, and is not searched for points
    theirs = descend(ALL[method]([plain], lr=0.1, weight_decay=0.1), whole)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-13)  # another order of the same operations


@pytest.mark.parametrize("name", [*CUTS, *PLAIN])
def test_muon_takes_the_first_axis_for_rows(name):
    manifold, shape = place(name)
    params = params_at(manifold, shape, copies=1)
    before = [p.detach().clone() for p in params]
    after = descend(Muon([{"params": params, "geometry": manifold}], lr=0.1, norm=Spectral("exact")), params, 1)
    x = tuple(before) if manifold.arity > 1 else before[0]
    step = like(x, [(a - b) / 0.1 for a, b in zip(before, after, strict=True)])
    coordinates = as_tuple(manifold.coords(x, step))
    for h, ndim in zip(coordinates, manifold.block_ndims, strict=True):
        s = torch.linalg.svdvals(as_matrix(h, ndim))
        torch.testing.assert_close(s, torch.ones_like(s), rtol=1e-9, atol=0)


@pytest.mark.of_each_kind
@pytest.mark.parametrize("name", ALL)
def test_constrained_tensors_that_are_no_matrices(name):
    """`Euclidean(4)` and `Euclidean(1)` say that a tensor is one point: a group keeps that."""
    layer = nn.Conv2d(3, 4, 2)
    constrain(layer, "weight", Euclidean(4))
    constrain(layer, "bias", Euclidean(1))
    for optimizer in (ALL[name](param_groups(layer), lr=0.1), ALL[name](layer.parameters(), lr=0.1)):
        assert [g["geometry"] for g in optimizer.param_groups] == [Euclidean(4).to_spec(), Euclidean(1).to_spec()]
        before = [p.detach().clone() for p in layer.parameters()]
        after = descend(optimizer, list(layer.parameters()), 3)  # odd, as steps of signs may cancel
        assert not any(torch.equal(a, b) for a, b in zip(before, after, strict=True))


# A manifold that holds a matrix. --------------------------------------------------------------------------------------


def define_scaled():
    @dataclasses.dataclass(frozen=True, eq=False)
    class Scaled(Manifold):
        """All matrices under <u, v> = tr(u^T G v)."""

        metric: torch.Tensor

        def __post_init__(self):
            tensor_field(self, "metric")

        def frame(self, x):
            return x, torch.linalg.cholesky(self.metric.to(x))

        def _push(self, f, h):
            return torch.linalg.solve_triangular(f[1].mT, h, upper=True)

        def _pull(self, f, g):
            return torch.linalg.solve_triangular(f[1], g, upper=False)

        def _coords(self, f, v):
            return f[1].mT @ v

        def _move(self, f, h):
            return f[0] + self._push(f, h)

        def project(self, x):
            return x

        def residual(self, x):
            return 0 * x.abs().sum((-2, -1))

        def random_point(self, shape, **kwargs):
            return torch.randn(shape, **kwargs)

        def shape_error(self, x):
            n = len(self.metric)
            return "" if x.shape[-2:-1] == (n,) else f"shape {tuple(x.shape)} has not {n} rows"

        def dim(self, shape, scalars="real"):
            return math.prod(shape)

        @classmethod
        def examples(cls):
            return []

    return Scaled


def spd(n, seed):
    a = torch.randn(n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return a @ a.mT / n + torch.eye(n, dtype=torch.float64)


class Two(nn.Module):
    def __init__(self, first, second):
        super().__init__()
        n = len(first.metric)
        self.a, self.b = nn.Parameter(torch.ones(n, 2)), nn.Parameter(torch.ones(n, 2))
        constrain(self, "a", first)
        constrain(self, "b", second)


@pytest.mark.parametrize("n", [3, 40])
def test_large_fields_tell_manifolds_apart(n):
    """A printed matrix of 40 x 40 has dots in its middle; two that differ there alone are two manifolds all the same,
    in groups, in checkpoints and in copies."""
    scaled = define_scaled()
    one, two = spd(n, 0), spd(n, 0)
    two[n // 2, n // 2] += 5
    model = Two(scaled(one), scaled(two))
    assert n == 3 or repr(scaled(one)) == repr(scaled(two))
    for groups in (param_groups(model), model.parameters()):
        optimizer = Adam(groups, lr=0.1)
        assert [g["geometry"]["metric"] for g in optimizer.param_groups] == [one.tolist(), two.tolist()]
    twin = copy.deepcopy(model)
    other = Adam(param_groups(twin), lr=9.0)
    descend(optimizer, list(model.parameters()), 2)
    file = io.BytesIO()
    torch.save([model.state_dict(), optimizer.state_dict()], file)
    file.seek(0)
    weights, state = torch.load(file, weights_only=True)
    twin.load_state_dict(weights)
    other.load_state_dict(state)
    copies = [(model, optimizer), (twin, other), copy.deepcopy((model, optimizer))]
    copies.append((copies[2][0], pickle.loads(pickle.dumps(copies[2][1]))))
    results = [descend(o, [p for g in o.param_groups for p in g["params"]], 3) for _, o in copies]
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], result, strict=True))
    with pytest.raises(ValueError, match="geometry of group 0") as error:
        Adam(param_groups(Two(scaled(two), scaled(one)))).load_state_dict(state)
    assert max(len(text) for text in (str(error.value), *repr(optimizer).splitlines())) < 1000


def test_a_long_geometry_is_read_once_and_again_when_it_changes(monkeypatch):
    scaled = define_scaled()
    p = nn.Parameter(torch.ones(3, 2, dtype=torch.float64))
    optimizer = Composed([{"params": [p], "geometry": scaled(spd(3, 0))}], [Momentum(0.0)], lr=1.0)
    read = []
    original = Manifold.from_spec.__func__
    monkeypatch.setattr(Manifold, "from_spec", classmethod(lambda cls, spec: read.append(spec) or original(cls, spec)))
    for _ in range(3):
        p.grad = torch.ones_like(p)
        optimizer.step()
    assert not read
    p.data.zero_()
    optimizer.param_groups[0]["geometry"]["metric"][0][0] = 9.0
    metric = torch.tensor(optimizer.param_groups[0]["geometry"]["metric"], dtype=torch.float64)
    optimizer.step()
    assert len(read) == 1
    torch.testing.assert_close(-p.detach(), torch.linalg.solve(metric, torch.ones_like(p)), rtol=1e-12, atol=0)
