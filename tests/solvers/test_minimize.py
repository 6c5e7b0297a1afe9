"""The loop around all methods: what it refuses, when it ends, what it says and what it keeps."""

import math
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from steepest import SPD, Correlation, Euclidean, FixedRank, Grassmann, Product, Sphere, Stiefel, Unitary, minimize
from steepest.solvers import (
    LBFGS,
    ConjugateGradients,
    CoordinateDescent,
    FixedStep,
    NelderMead,
    NystromNewton,
    ParticleSwarm,
    RandomSubmanifold,
    SteepestDescent,
    Stop,
)
from steepest.solvers.base import Method

POINT = torch.tensor([0.6, 0.8, 0.0], dtype=torch.float64)
SCALES = torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64)


def quadratic(x):
    return (SCALES * x * x).sum() / 2


def quartic(x):
    """Convex, of no exact solution in a few steps."""
    return (x - 1).square().square().sum() + x.square().sum()


# What is refused. -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ((quadratic, 2 * POINT, Sphere()), ValueError, r"x0 is not a point of Sphere\(\).*manifold\.project"),
        ((quadratic, torch.ones(3, 4), SPD()), ValueError, r"x0: shape \(3, 4\)"),
        ((quadratic, POINT, FixedRank()), ValueError, "x0: a point of FixedRank.*2 tensor"),
        ((quadratic, POINT.numpy(), Sphere()), TypeError, "x0: got ndarray.*as_tensor"),
        ((quadratic, [0.6, 0.8, 0.0], Sphere()), TypeError, "x0: got float.*as_tensor"),
        ((quadratic, torch.tensor([1, 0, 0]), Sphere()), TypeError, r"x0: got a tensor of torch\.int64"),
        ((quadratic, POINT, "Sphere"), TypeError, "manifold: got 'Sphere'.*instance"),
        ((quadratic, POINT, Sphere), TypeError, "manifold: got <class.*instance"),
        ((quadratic, POINT, Sphere(), "Newtonian"), ValueError, "unknown 'Newtonian'.*ConjugateGradients.*LBFGS"),
        ((quadratic, POINT, Sphere(), LBFGS), TypeError, "method: got <class.*instance"),
        ((quadratic, torch.eye(3, dtype=torch.complex128), Correlation()), ValueError, "x0: entries are complex"),
        ((lambda x: x, POINT, Sphere()), TypeError, r"fun: got \(3,\) torch\.float64, expected.*one real number"),
        ((lambda x: x.sum() * 1j, POINT, Sphere()), TypeError, r"fun: got \(\) torch\.complex128.*`\.real`"),
        ((lambda x: x.sum().item(), POINT, Sphere()), TypeError, "fun: got float, expected a tensor"),
        ((lambda x: None, POINT, Sphere()), TypeError, "fun: got NoneType"),
        ((lambda x: x.detach().sum(), POINT, Sphere()), TypeError, "fun: .*detach.*NelderMead"),
        ((lambda x: x.sum() * math.nan, POINT, Sphere()), ValueError, "fun: its value at x0 is inf"),
        ((lambda x: x[0] + x[2].sqrt(), POINT, Sphere()), ValueError, "its gradient (nan|inf)"),
    ],
)
def test_bad_arguments(arguments, error, said):
    with pytest.raises(error, match=said):
        minimize(*arguments)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("tolerance", -1.0),
        ("tolerance", math.nan),
        ("max_iterations", -1),
        ("max_evaluations", -5),
        ("max_seconds", -0.1),
        ("checkpoint_every", -1.0),
        ("verbose", -1),
    ],
)
def test_bad_numbers(option, value):
    with pytest.raises(ValueError, match=option):
        minimize(quadratic, POINT, Sphere(), **{option: value})


def test_a_given_gradient_of_another_shape():
    with pytest.raises(TypeError, match=r"gradient: returned \(2,\), expected what x is made of: \(3,\)"):
        minimize(quadratic, POINT, Sphere(), gradient=lambda x: torch.ones(2))
    with pytest.raises(TypeError, match="gradient: returned NoneType"):
        minimize(quadratic, POINT, Sphere(), gradient=lambda x: None)


def test_a_method_that_does_not_fit_says_why():
    with pytest.raises(ValueError, match=r"method: NelderMead keeps a simplex of 2000.*use ParticleSwarm"):
        minimize(quadratic, torch.zeros(2000), Euclidean(1), "NelderMead")


@pytest.mark.parametrize("name", ["lbfgs", "L-BFGS", "conjugate_gradients", "Conjugate Gradients", "steepest-descent"])
def test_names_in_any_spelling(name):
    assert minimize(quartic, POINT, Euclidean(1), name).success


# What it is given. ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method",
    [
        CoordinateDescent(selection="random"),
        RandomSubmanifold(2),
        RandomSubmanifold(2, "orthogonal"),
        ParticleSwarm(),
        NystromNewton(),
    ],
    ids=str,
)
def test_another_default_device(method):
    """Nothing is made where torch puts tensors by default, and random numbers come from generators of their device."""
    x0, before = torch.eye(3, 2, dtype=torch.float64), torch.get_default_device()
    scales = SCALES.diag()
    torch.set_default_device("meta")
    try:
        result = minimize(lambda x: (x * (scales @ x)).sum() + x.sum(), x0, Stiefel(), method, max_iterations=3)
    finally:
        torch.set_default_device(before)
    assert result.value < result.history[0].value


def test_a_parameter_is_left_alone():
    x0 = torch.nn.Parameter(POINT.clone())
    result = minimize(quadratic, x0, Sphere())
    assert result.success
    assert x0.grad is None
    assert torch.equal(x0, POINT)
    assert not result.x.requires_grad


def test_without_gradients_around_it():
    """Calls from inside of `no_grad` differentiate nevertheless."""
    with torch.no_grad():
        assert minimize(quadratic, POINT, Sphere()).success


def test_a_compiled_function():
    compiled = torch.compile(quartic, backend="eager")
    for method in ("LBFGS", NelderMead()):
        a, b = (minimize(f, POINT, Euclidean(1), method) for f in (quartic, compiled))
        torch.testing.assert_close(a.x, b.x, atol=1e-6, rtol=0)  # the simplex's tolerance


def test_a_number_with_one_dimension():
    assert minimize(lambda x: quadratic(x)[None], POINT, Sphere()).success


def test_lists_of_tensors():
    """A product, by default of plain tensors."""
    x0 = [torch.zeros(2, 2, dtype=torch.float64), POINT]
    result = minimize(lambda x: quartic(x[0]) + quartic(x[1]) + x[0].sum() * x[1].sum() / 10, x0)
    assert result.success
    assert isinstance(result.x, tuple)
    assert [t.shape for t in result.x] == [(2, 2), (3,)]


@pytest.mark.parametrize("method", ["LBFGS", "ConjugateGradients", "SteepestDescent", "Newton"])
def test_given_derivatives_are_autograds(method):
    """The same points to rounding, which a few steps do not enlarge much."""
    options = {"max_iterations": 4, "tolerance": 0.0}
    auto = minimize(quartic, POINT, Sphere(), method, **options)
    given = minimize(
        quartic,
        POINT,
        Sphere(),
        method,
        gradient=lambda x: 4 * (x - 1) ** 3 + 2 * x,
        hvp=lambda x, v: 12 * (x - 1) ** 2 * v + 2 * v,
        **options,
    )
    torch.testing.assert_close(given.x, auto.x, atol=1e-9, rtol=0)
    assert given.evaluations == auto.evaluations


def test_a_given_gradient_lets_the_function_be_of_anything():
    def fun(x):
        return torch.as_tensor(float(quartic(x).numpy()))  # numpy() refuses tensors that are traced

    for method in ("LBFGS", "ConjugateGradients"):
        result = minimize(fun, POINT, Euclidean(1), method, gradient=lambda x: 4 * (x - 1) ** 3 + 2 * x, tolerance=1e-3)
        assert result.success


def test_a_gradient_of_double_precision_for_a_point_of_single():
    x0 = POINT.float()
    result = minimize(lambda x: x.square().sum(), x0, Euclidean(1), gradient=lambda x: 2 * x.double())
    assert result.x.dtype == torch.float32


# Complex numbers. -----------------------------------------------------------------------------------------------------


def test_the_nearest_unitary_matrix():
    """Of least distance to A: its polar factor, by the singular value decomposition."""
    a = torch.randn(4, 4, dtype=torch.complex128, generator=torch.Generator().manual_seed(1))
    u, _, vh = torch.linalg.svd(a)
    near = Unitary().project(u @ vh + 0.2 * a)
    result = minimize(lambda x: (x - a).abs().square().sum(), near, Unitary(), tolerance=1e-8)
    assert result.success
    torch.testing.assert_close(result.x, u @ vh, atol=1e-7, rtol=0)  # ten tolerances


@pytest.mark.parametrize("method", ["LBFGS", "Newton"])
def test_a_hermitian_eigenspace(method):
    a = torch.randn(5, 5, dtype=torch.complex128, generator=torch.Generator().manual_seed(1))
    a = a + a.mH
    x0 = Grassmann().random_point((5, 2), dtype=torch.complex128, generator=torch.Generator().manual_seed(2))
    for manifold in (Stiefel(), Grassmann()):
        result = minimize(lambda x: (x.mH @ a @ x).diagonal().sum().real, x0, manifold, method)
        assert abs(result.value - float(torch.linalg.eigvalsh(a)[:2].sum())) < 1e-10  # the tolerance squared, and room


def test_a_complex_covariance():
    """tr(S X) - log det X is least at the inverse of S."""
    a = torch.randn(3, 6, dtype=torch.complex128, generator=torch.Generator().manual_seed(1))
    s = a @ a.mH / 6
    x0 = torch.eye(3, dtype=torch.complex128)
    result = minimize(lambda x: (s @ x).diagonal().sum().real - torch.linalg.slogdet(x)[1], x0, SPD(), tolerance=1e-8)
    assert result.success
    torch.testing.assert_close(result.x @ s, x0, atol=1e-7, rtol=0)  # ten tolerances


# When it ends. --------------------------------------------------------------------------------------------------------


def test_a_limit_of_time():
    started = time.perf_counter()

    def slow(x):
        time.sleep(0.02)
        return quartic(x)

    method = SteepestDescent(barzilai_borwein=False)
    result = minimize(slow, POINT, Euclidean(1), method, tolerance=0.0, max_seconds=0.1)
    assert result.reason == "max_seconds = 0.1 reached"
    assert not result.success
    assert 0.1 <= time.perf_counter() - started < 2


def test_limits_of_numbers():
    result = minimize(quartic, POINT, Euclidean(1), max_iterations=3, tolerance=0.0)
    assert (result.reason, result.iterations, result.success) == ("max_iterations = 3 reached", 3, False)
    result = minimize(quartic, POINT, Euclidean(1), max_evaluations=9, tolerance=0.0)
    assert result.reason == "max_evaluations = 9 reached"
    assert 9 <= result.evaluations.total <= 15  # one iteration more at most
    result = minimize(quartic, POINT, Euclidean(1), max_iterations=0)
    assert torch.equal(result.x, POINT)
    assert len(result.history) == 1


@pytest.mark.parametrize("method", ["LBFGS", "ConjugateGradients", "SteepestDescent", "Newton"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rounding_is_recognised(method, dtype):
    """A tolerance that no number of this precision can meet ends with the truth, long before all iterations."""
    a = torch.randn(12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    a = (a @ a.mT).to(dtype)
    x0 = torch.eye(12, 3, dtype=dtype)
    weights = torch.arange(1, 4).diag().to(dtype)  # no minimiser is part of a family, where steps would be any

    def fun(x):
        return -(x.mT @ a @ x @ weights).trace()

    result = minimize(fun, x0, Stiefel(), method, tolerance=1e-18, max_iterations=5000)
    assert "rounding" in result.reason
    assert not result.success
    assert result.iterations < 500
    best = float(torch.linalg.eigvalsh(a.double())[-3:] @ weights.double().diagonal())
    assert abs(result.value + best) <= 20 * torch.finfo(dtype).eps * best  # sums of 36 products


def test_callbacks():
    seen = []

    def callback(record, x):
        seen.append((record.iteration, record.value, float(quartic(x))))
        return record.iteration == 2

    result = minimize(quartic, POINT, Euclidean(1), callback=callback)
    assert [i for i, _, _ in seen] == [0, 1, 2]
    assert all(value == at_x for _, value, at_x in seen)
    assert result.reason == "the callback ended it"
    assert not result.success


def test_the_best_point_is_returned():
    """Not the last one: a method that climbs in the end."""

    class Wanders(Method):
        def step(self, at, state):
            if state["iteration"] == 3:
                raise Stop("tired")
            return at.move((-0.1 if state["iteration"] < 2 else 1.0) * at.gradient), state

        @classmethod
        def examples(cls):
            return []

    try:
        result = minimize(quadratic, POINT, Euclidean(1), Wanders())
    finally:
        del Method.known["Wanders"]
    assert result.reason == "tired"
    assert result.value == min(r.value for r in result.history)
    assert result.value < result.history[-1].value
    assert result.value == float(quadratic(result.x))


def test_a_function_without_a_lower_bound():
    result = minimize(lambda x: -x.exp().sum(), POINT, Euclidean(1))
    assert not result.success
    assert math.isfinite(result.value)
    assert result.x.isfinite().all()


# What it says. --------------------------------------------------------------------------------------------------------


def test_the_table(capsys):
    result = minimize(quartic, POINT, Euclidean(1), verbose=2)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["step", "value", "gradient", "evals", "seconds"]
    assert [int(line.split()[0]) for line in lines[1:-1]] == list(range(0, result.iterations + 1, 2))
    assert float(lines[1].split()[1]) == pytest.approx(float(quartic(POINT)), rel=1e-15)
    assert lines[-1] == result.reason == "gradient norm is at most the tolerance, 1e-06"
    assert "step 1" in lines[2]
    minimize(quartic, POINT, Euclidean(1))
    assert not capsys.readouterr().out


def test_the_result_in_words():
    text = repr(minimize(quartic, POINT, Euclidean(1)))
    assert text.startswith("LBFGS: gradient norm is at most the tolerance, 1e-06 (success=True)")
    assert "values" in text
    assert "gradients" in text


# What it keeps. -------------------------------------------------------------------------------------------------------


def run(path, **options):
    return minimize(quartic, POINT, Euclidean(1), **{"max_iterations": 4, "tolerance": 0.0, **options}, checkpoint=path)


def test_a_run_goes_on(tmp_path):
    first = run(tmp_path / "run.pt")
    second = run(tmp_path / "run.pt", max_iterations=6)
    whole = run(None, max_iterations=6)
    assert torch.equal(second.x, whole.x)
    assert second.iterations == 6
    assert second.history[:5] == first.history
    assert second.seconds >= first.seconds
    assert second.evaluations.gradients >= whole.evaluations.gradients


def test_a_run_that_goes_on_remembers_its_best_point_and_its_patience(tmp_path):
    """Steps of three halves of what converges lead away from the start; small ones upward end after forty."""
    away = SteepestDescent(FixedStep(1.0), barzilai_borwein=False)
    options = {"method": away, "tolerance": 0.0}
    minimize(quadratic, POINT, Euclidean(1), max_iterations=20, checkpoint=tmp_path / "run.pt", **options)
    goes_on, whole = (
        minimize(quadratic, POINT, Euclidean(1), max_iterations=100, checkpoint=path, **options)
        for path in (tmp_path / "run.pt", None)
    )
    assert (goes_on.iterations, goes_on.reason) == (whole.iterations, whole.reason)
    assert torch.equal(goes_on.x, whole.x)
    assert goes_on.value == whole.value == min(r.value for r in whole.history)
    assert goes_on.gradient_norm == whole.gradient_norm


def test_a_run_that_a_method_ends_is_kept(tmp_path):
    """Whatever time has passed."""
    path = tmp_path / "run.pt"
    first = minimize(quartic, POINT, Euclidean(1), "NelderMead", checkpoint=path, checkpoint_every=1e9)
    assert path.exists()
    again = minimize(quartic, POINT, Euclidean(1), "NelderMead", checkpoint=path)
    assert first.success
    assert (again.iterations, again.reason) == (first.iterations, first.reason)
    assert torch.equal(again.x, first.x)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"method": ConjugateGradients()}, "method is .*LBFGS.*this run's .*ConjugateGradients"),
        ({"seed": 3}, "its seed is 0, this run's 3"),
    ],
)
def test_the_file_of_another_run(tmp_path, options, said):
    run(tmp_path / "run.pt")
    with pytest.raises(ValueError, match=r"checkpoint: .*run\.pt is of another run.*" + said):
        run(tmp_path / "run.pt", **options)


def test_the_file_of_another_function_or_manifold(tmp_path):
    run(tmp_path / "run.pt")
    with pytest.raises(ValueError, match="its value of the function"):
        minimize(lambda x: quartic(x) + 1, POINT, Euclidean(1), checkpoint=tmp_path / "run.pt")
    with pytest.raises(ValueError, match=r"its manifold is .*Euclidean.*this run's .*Sphere"):
        minimize(quartic, POINT, Sphere(), checkpoint=tmp_path / "run.pt")


@pytest.mark.parametrize("damage", [b"", b"no checkpoint", "half"])
def test_a_damaged_file(tmp_path, damage):
    path = tmp_path / "run.pt"
    run(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] if damage == "half" else damage)
    with pytest.raises(ValueError, match=r"(?s)checkpoint: .*run\.pt cannot be read.*remove it"):
        run(path)


def test_another_kind_of_file(tmp_path):
    torch.save({"weights": torch.ones(2)}, tmp_path / "run.pt")
    with pytest.raises(ValueError, match=r"checkpoint: .*run\.pt is no run of this version"):
        run(tmp_path / "run.pt")


def test_a_folder_that_is_not_there(tmp_path):
    assert run(tmp_path / "new" / "run.pt").iterations == 4
    assert (tmp_path / "new" / "run.pt").exists()


def test_an_error_in_mid_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "run.pt"
    run(path)
    before = path.read_bytes()

    def half(content, file):
        file.write_bytes(b"half a file")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(OSError, match="disk full"):
        run(path, max_iterations=6)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["run.pt"]


KILLED = """
import os, signal, sys, torch
from pathlib import Path
from steepest import Euclidean, minimize

save, count = torch.save, 0

def deadly(content, file):
    global count
    count += 1
    if count == 3:
        Path(file).write_bytes(b"half a file")
        os.kill(os.getpid(), signal.SIGKILL)
    save(content, file)

torch.save = deadly
x0 = torch.tensor([0.6, 0.8, 0.0], dtype=torch.float64)
fun = lambda x: (x - 1).square().square().sum() + x.square().sum()
minimize(fun, x0, Euclidean(1), max_iterations=6, tolerance=0.0, checkpoint=sys.argv[1], checkpoint_every=0.0)
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="SIGKILL is POSIX's")
def test_a_process_killed_in_mid_save(tmp_path):
    """The file of the save before is whole, and the run goes on from there to the unbroken one's numbers."""
    path = tmp_path / "run.pt"
    ended = subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False, capture_output=True, timeout=120)
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
    assert len(torch.load(path, weights_only=True)["history"]) == 3  # x0 and two iterations
    assert torch.equal(run(path, max_iterations=6).x, run(None, max_iterations=6).x)


def test_points_of_several_tensors_are_kept(tmp_path):
    manifold = Product((Sphere(), FixedRank()))
    x0 = manifold.random_point(((3,), (4, 1), (1, 3)), generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def fun(x):
        return quadratic(x[0]) + (x[1] @ x[2] - 1).square().sum()

    options = {"tolerance": 0.0, "method": NelderMead()}
    minimize(fun, x0, manifold, **options, max_iterations=3, checkpoint=tmp_path / "run.pt")
    second = minimize(fun, x0, manifold, **options, max_iterations=6, checkpoint=tmp_path / "run.pt")
    whole = minimize(fun, x0, manifold, **options, max_iterations=6)
    assert all(torch.equal(a, b) for a, b in zip(second.x, whole.x, strict=True))
