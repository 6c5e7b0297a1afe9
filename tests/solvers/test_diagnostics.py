"""Checks of derivatives: what is right passes, each way to be wrong is found and named; and their pictures."""

import math

import pytest
import torch

from steepest import (
    SPD,
    Euclidean,
    FixedRank,
    Grassmann,
    Product,
    Sphere,
    Stiefel,
    Unitary,
    check_gradient,
    check_hessian,
    minimize,
)
from steepest.manifolds.tensors import as_tuple
from steepest.solvers.figures import convergence


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def polynomial(manifold, x):
    """A function of what points stand for, of fourth degree."""
    weights = [torch.randn(t.shape, dtype=t.dtype, generator=generator(3)) for t in as_tuple(manifold.represent(x))]

    def fun(x):
        parts = zip(weights, as_tuple(manifold.represent(x)), strict=True)
        return torch.stack([((w.conj() * t).real + t.abs().square().square()).sum() for w, t in parts]).sum()

    return fun


PLACES = [
    (Euclidean(), (3, 2)),
    (Sphere(), (4,)),
    (Sphere(), (3, 4)),  # a batch
    (Stiefel("canonical"), (5, 2)),
    (Grassmann(), (5, 2)),
    (SPD(), (3, 3)),
    (SPD("bures-wasserstein"), (2, 2)),
    (FixedRank(), ((4, 2), (2, 3))),
    (Product((Stiefel(), Euclidean(1))), ((4, 2), (3,))),
    (Unitary(), (3, 3)),
]


def point(manifold, shape):
    dtype = torch.complex128 if manifold == Unitary() else torch.float64
    return manifold.random_point(shape, dtype=dtype, generator=generator())


@pytest.mark.parametrize("place", PLACES, ids=str)
@pytest.mark.parametrize("check", [check_gradient, check_hessian])
def test_what_is_right_passes(check, place):
    manifold, shape = place
    x = point(manifold, shape)
    found = check(polynomial(manifold, x), manifold, x)
    assert found, found
    assert abs(found.slope - found.expected) < 0.15  # the whole stretch is straight to 0.05 decades
    low, high = found.stretch
    assert high >= 9.9 * low
    assert not found.findings


def test_a_small_error_is_found():
    """The slope is that next to rounding: further up the error of the model hides a gradient that is 1e-5 off."""
    x = point(Stiefel(), (5, 2))
    found = check_gradient(lambda x: (x**4).sum(), Stiefel(), x, gradient=lambda x: 4 * (1 + 1e-5) * x**3)
    assert not found
    assert abs(found.slope - 1) < 0.1


def findings(check, *arguments, **options):
    found = check(*arguments, **options)
    assert not found
    assert "WRONG" in repr(found)
    return "\n".join(found.findings)


SPHERE = torch.tensor([0.6, 0.0, 0.8], dtype=torch.float64)


def fourth(x):
    return (x**4).sum()


@pytest.mark.parametrize(
    ("gradient", "said"),
    [
        (lambda x: -4 * x**3, "-1 times the derivative, in all 3 directions tried: the sign"),
        (lambda x: 2 * x**3, "0.5 times the derivative, in all 3 directions tried: a factor"),
        (lambda x: 4 * x**3 + torch.tensor([0.0, 1.0, 0.0]), "it differs from autograd's by"),
    ],
)
def test_what_is_wrong_with_a_gradient(gradient, said):
    assert said in findings(check_gradient, fourth, Sphere(), SPHERE, gradient=gradient)


def test_a_riemannian_gradient_in_place_of_the_euclidean():
    x = point(SPD(), (3, 3))

    def given(x):
        return -x  # of -log det, whose Euclidean gradient is -x^-1

    assert "Riemannian gradient already" in findings(check_gradient, lambda x: -x.logdet(), SPD(), x, gradient=given)


def test_a_conjugate():
    x = point(Unitary(), (3, 3))
    a = torch.randn(3, 3, dtype=torch.complex128, generator=generator(1))
    said = findings(check_gradient, lambda x: (a * x).real.sum(), Unitary(), x, gradient=lambda x: a)
    assert "conjugate" in said
    assert check_gradient(lambda x: (a * x).real.sum(), Unitary(), x, gradient=lambda x: a.conj())


def test_the_wrong_tensor_of_several():
    m = Product((Sphere(), Euclidean(1)))
    x = (SPHERE, torch.ones(2, dtype=torch.float64))

    def wrong(x):
        return (2 * x[0] * 0 + 1, 3 * x[1])

    said = findings(check_gradient, lambda x: x[0].sum() + x[1].square().sum(), m, x, gradient=wrong)
    assert "tensors of the point in which it does: 1" in said


def test_a_backward_formula_of_ones_own():
    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x * x

        @staticmethod
        def backward(ctx, g):
            return g * ctx.saved_tensors[0] + 0.1 * torch.arange(3)

    said = findings(check_gradient, lambda x: Square.apply(x).sum(), Euclidean(1), SPHERE)
    assert "this is autograd's gradient: a backward formula" in said


def test_what_is_no_function():
    noise = generator(1)
    said = findings(check_gradient, lambda x: x.sum() + torch.randn((), generator=noise), Euclidean(1), SPHERE)
    assert "fun is not a function" in said


def test_a_kink():
    said = findings(check_gradient, lambda x: (x - SPHERE).abs().sum() + x.sum(), Euclidean(1), SPHERE)
    assert "kink" in said


def test_a_function_of_representatives():
    """On a quotient: it depends on the factors, and not on their product alone."""
    x = point(FixedRank(), ((4, 2), (2, 3)))
    assert "represent" in findings(check_gradient, lambda x: x[0].sum() + (x[0] @ x[1])[0, 1], FixedRank(), x)


@pytest.mark.parametrize(
    ("options", "slope", "said"),
    [
        ({"hvp": lambda x, v: 6 * x**2 * v}, 2, "the Hessian says"),
        ({"gradient": lambda x: 2 * x**3}, 1, "see check_gradient"),
        (
            {"hvp": lambda x, v: torch.stack([12 * x[0] ** 2 * v[0] + v[1], x[1] * v[0], 12 * x[2] ** 2 * v[2]])},
            2,
            "it is not symmetric",
        ),
        ({"hvp": lambda x, v: 12 * x**2 * v * v.norm()}, 3, "it is not linear"),
    ],
)
def test_what_is_wrong_with_a_hessian(options, slope, said):
    found = check_hessian(fourth, Sphere(), SPHERE, **options)
    assert not found
    assert said in repr(found)
    assert abs(found.slope - slope) < 0.15


def test_given_products_that_are_right():
    assert check_hessian(fourth, Sphere(), SPHERE, gradient=lambda x: 4 * x**3, hvp=lambda x, v: 12 * x**2 * v)


def test_a_polynomial_that_its_taylor_polynomial_equals():
    """The error is rounding everywhere: no slope, and right; a wrong factor then shows."""
    x = torch.ones(3, 2, dtype=torch.float64)
    for found in (check_gradient(lambda x: x.sum(), None, x), check_hessian(lambda x: x.square().sum(), None, x)):
        assert found
        assert math.isnan(found.slope)
        assert found.stretch is None
        assert "right, as far as its values tell" in repr(found)
    assert not check_gradient(lambda x: x.sum(), None, x, gradient=lambda x: 1.001 * torch.ones_like(x))
    assert not check_hessian(lambda x: x.square().sum(), None, x, hvp=lambda x, v: 2.001 * v)


@pytest.mark.parametrize("offset", [0.0, 1e6, -1e3])
def test_rounding_does_not_deceive(offset):
    """A large constant makes the differences of f vanish below some t, where the error is that of slope one."""
    assert check_gradient(lambda x: fourth(x) + offset, Sphere(), SPHERE)
    assert not check_gradient(lambda x: fourth(x) + offset, Sphere(), SPHERE, gradient=lambda x: 3.9 * x**3)

    def cancelled(x):
        return (fourth(x) + offset) - offset  # rounding far above that of the value

    assert check_gradient(cancelled, Sphere(), SPHERE)


def test_single_precision():
    x = point(Stiefel(), (5, 2)).float()

    def fun(x):
        return (x**4).sum()

    assert check_gradient(fun, Stiefel(), x)
    assert check_hessian(fun, Stiefel(), x)
    assert not check_gradient(fun, Stiefel(), x, gradient=lambda x: 3 * x**3)
    assert not check_hessian(fun, Stiefel(), x, hvp=lambda x, v: 6 * x**2 * v)


def test_directions():
    v = torch.tensor([0.8, 0.0, -0.6], dtype=torch.float64)
    along = check_gradient(fourth, Sphere(), SPHERE, v)
    longer = check_gradient(fourth, Sphere(), SPHERE, 2 * v)
    # the error of the same step, of t and of t / 2 (grid points differ: by the law t^2)
    ratio = longer.errors[-20] / along.errors[-20]
    assert abs(ratio - 4) < 0.1
    with pytest.raises(ValueError, match=r"direction: not a tangent vector of Sphere.*random_tangent"):
        check_gradient(fourth, Sphere(), SPHERE, torch.ones(3, dtype=torch.float64))
    with pytest.raises(ValueError, match="direction"):
        check_gradient(fourth, Sphere(), SPHERE, 0 * v)


def test_places_that_do_not_do():
    with pytest.raises(ValueError, match=r"fun: at x its value is inf"):
        check_gradient(lambda x: (x - 2).log().sum(), None, torch.ones(3, 1))
    with pytest.raises(ValueError, match="its dimension is zero"):
        check_gradient(lambda x: x.sum(), Stiefel(), torch.ones(1, 1))
    with pytest.raises(ValueError, match="x is not a point"):
        check_gradient(fourth, Sphere(), 2 * SPHERE)


# Pictures. ------------------------------------------------------------------------------------------------------------


def texts(figure):
    from matplotlib.text import Text

    return " ".join(t.get_text() for t in figure.findobj(Text))


def test_pictures_of_checks(tmp_path):
    right, wrong = check_gradient(fourth, Sphere(), SPHERE), check_hessian(fourth, Sphere(), SPHERE, hvp=lambda x, v: v)
    exact = check_gradient(lambda x: x.sum(), None, torch.ones(3, 2, dtype=torch.float64))
    cases = [(right, "gradient is right: slope 2"), (wrong, "Hessian is WRONG: slope 2"), (exact, "rounding")]
    for check, said in cases:
        assert said in texts(check.plot())
    wrong.plot().savefig(tmp_path / "check.png")
    lines = {line.get_label(): line for line in right.plot().axes[0].lines}
    (x0, x1), (y0, y1) = lines["slope 2: right"].get_data()
    assert abs(math.log(y1 / y0) / math.log(x1 / x0) - 2) < 1e-9


def test_pictures_of_runs(tmp_path):
    """Methods without gradients, values at the optimum and runs of no iteration are drawn too."""
    x0 = torch.ones(3, dtype=torch.float64)

    def fun(x):
        return (x - 2).square().sum()

    names = ["LBFGS", "SteepestDescent", "NelderMead"]
    runs = {name: minimize(fun, x0, Euclidean(1), name, max_iterations=20) for name in names}
    runs["no step"] = minimize(fun, x0 + 1, Euclidean(1))
    figure = convergence(runs, 0.0)
    figure.savefig(tmp_path / "runs.png")
    norm, _, value, _ = figure.axes
    assert len([line for line in norm.lines if line.get_marker() != "o"]) == 3  # of the simplex, none
    assert len([line for line in value.lines if line.get_marker() != "o"]) == 4
    assert all(math.isfinite(y) and y > 0 for axes in (norm, value) for line in axes.lines for y in line.get_ydata())
    assert [axes.get_yscale() for axes in (norm, value)] == ["log", "log"]
    alone = runs["NelderMead"].plot()
    assert "NelderMead: max_iterations" in texts(alone)
    assert len(alone.axes) == 2
    assert convergence({}).axes
