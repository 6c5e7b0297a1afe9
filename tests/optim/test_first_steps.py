"""The first step of every optimiser for matrices, against its paper's formula in float64."""

import io
import math

import pytest
import torch

import steepest
from steepest import testing
from steepest.norms import Frobenius, Max, Nuclear, Rows, Spectral
from steepest.projectors import Principal
from steepest.projectors.gaussian import gaussian
from steepest.transforms import AdamScale, Momentum, chain

EXACT = Spectral("exact")


def polar(g):
    u, _, vt = torch.linalg.svd(g, full_matrices=False)
    return u @ vt


def clipped(g, c):
    u, s, vt = torch.linalg.svd(g, full_matrices=False)
    return (u * (s / (1 + (s / c) ** 2).sqrt())) @ vt


def rms(x, dim=None):
    return x.square().mean() ** 0.5 if dim is None else x.square().mean(dim, keepdim=True) ** 0.5


def conda(g):
    """With m = (1 - b1) g, v = (1 - b2) (g U)^2 and both corrections, m / sqrt(v) is the sign of g U, turned back."""
    u, _, vt = torch.linalg.svd(g, full_matrices=False)
    return (g @ vt.mT).sign() @ vt if g.shape[0] >= g.shape[1] else u @ (u.mT @ g).sign()


def dion(g, r):
    """One step of power iteration from the Gaussian matrix that belongs to the shorter side."""
    tall = g if g.shape[0] >= g.shape[1] else g.mT
    n = tall.shape[1]
    q = torch.randn(n, r, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    p = torch.linalg.qr(tall @ q)[0]
    r = tall.mT @ p
    step = p @ (r / r.norm(dim=0)).mT
    return step if g.shape[0] >= g.shape[1] else step.mT


def normuon(g):
    even = polar(g) / rms(polar(g), 1)
    return even * polar(g).norm() / even.norm()


def adafactor(g):
    """The first second moment has rank one; parameters that are zero have the size eps."""
    r, c = (g.square().mean(dim, keepdim=True) for dim in (1, 0))
    u = g / (r @ c / r.mean()).sqrt()
    return u / max(1, rms(u))


def projected(basis, step):
    """What `step` makes of a tall matrix and its two leading `basis` vectors; wide ones go the transposed way."""

    def formula(g):
        tall = g if g.shape[0] >= g.shape[1] else g.mT
        out = step(tall, basis(tall))
        return out if g.shape[0] >= g.shape[1] else out.mT

    return formula


def leading(g, r=2):
    return torch.linalg.svd(g, full_matrices=False)[2][:r].mT


def sketched(g):
    """The leading right vectors of g after one iteration from the Gaussian matrix that belongs to its shorter side."""
    q = torch.linalg.qr(g @ gaussian((g.shape[1], 2), 0, g))[0]
    return leading(q.mT @ g)


def waves(g):
    """Of the cosines of k half waves those two along which the absolute values of g are largest."""
    n = g.shape[1]
    k = torch.arange(n, dtype=torch.float64)
    d = torch.cos(math.pi / n * (k[:, None] + 0.5) * k)
    d = d / d.norm(dim=0)
    return d[:, (g @ d).abs().sum(0).topk(2).indices]


def sign_of(g, p):
    """Adam's first step in the subspace."""
    return (g @ p).sign() @ p.mT


def grown(g, p):
    """How much Adam scales each row in the subspace: its signs have the norm sqrt(r)."""
    return p.shape[1] ** 0.5 / (g @ p).norm(dim=1, keepdim=True)


def fira(g, p):
    return 0.5 * sign_of(g, p) + grown(g, p) * (g - g @ p @ p.mT)


def apollo_mini(g, p):
    return (128 * g.shape[0]) ** 0.5 / (g @ p).norm() * g


def flora(g):
    """Of the momentum (1 - beta) u, u Adafactor's direction, a part is kept in the subspace, and all of it is used."""
    r, c = (g.square().mean(dim, keepdim=True) for dim in (1, 0))
    u = 0.1 * g / (r @ c / r.mean()).sqrt()
    return u / max(1, rms(u))


def of(name, **options):
    return lambda params: getattr(steepest, name)(params, lr=1.0, **options)


def mini(params):
    return steepest.APOLLOMini([{"params": params, "projector": Principal(), "inner": ADAM}], lr=1.0)


ADAM = AdamScale(eps=1e-14)  # so that its first step is the sign
RANK_2 = {"rank": 2, "inner": ADAM}
EXACTLY = {**RANK_2, "projector": Principal()}


# What is subtracted from a matrix of m x n entries by a step with lr 1, momentum as it is at the first step.
def shampoo_squared(g):
    """L^-1/2 = U S^-1 U^T and R^-1/2 = V S^-1 V^T around U S V^T, times the root of the trace of S^2."""
    u, s, vt = torch.linalg.svd(g, full_matrices=False)
    return (u / s) @ vt * s.norm()


def shampoo_4bit(g):
    """One step of the QR algorithm from the identity for each side, and the gradient's length."""
    roots = []
    for a in (g @ g.mT, g.mT @ g):
        q = torch.linalg.qr(a)[0]
        w = (q.mT @ a @ q).diagonal()
        roots.append((q * (w + 1e-6 * w.max()) ** -0.25) @ q.mT)
    step = roots[0] @ g @ roots[1]
    return step * (g.norm() / step.norm())


FORMULAS = {
    "TrustRegion": (of("TrustRegion", norm=EXACT), polar),
    "TrustRegion, Frobenius": (of("TrustRegion", norm=Frobenius()), lambda g: g / g.norm()),
    "TrustRegion, largest entry": (of("TrustRegion", norm=Max()), torch.sign),
    "TrustRegion, rows": (of("TrustRegion", norm=Rows()), lambda g: g / g.norm(dim=1, keepdim=True)),
    "Scion": (of("Scion", norm=EXACT, radius=3.0), lambda g: 3 * (g.shape[0] / g.shape[1]) ** 0.5 * polar(g)),
    "SignSGD": (of("SignSGD"), torch.sign),
    "Lion": (of("Lion"), torch.sign),
    "Muon": (of("Muon", norm=EXACT, scale="moonlight"), lambda g: 0.2 * max(g.shape) ** 0.5 * polar(g)),
    "NorMuon": (of("NorMuon", norm=EXACT), lambda g: max(1, g.shape[0] / g.shape[1]) ** 0.5 * normuon(g)),
    "AdaMuon": (
        of("AdaMuon", norm=EXACT, weight_decay=0.0),
        lambda g: 0.2 * polar(g.sign()).sign(),  # o / sqrt((1 - b) o^2) is a multiple of the sign
    ),
    "AuON": (of("AuON"), lambda g: (1 - 0.95**2) * g / rms((1.5 * g / g.norm()).cosh())),
    "Hybrid-AuON": (
        of("AuON", hybrid=True, norm=EXACT),
        lambda g: polar(g) / rms((1.5 * polar(g) / polar(g).norm()).cosh()),
    ),
    "Dion": (of("Dion", scale="none"), lambda g: dion(g, min(g.shape))),
    "Dion of rank 2": (of("Dion", rank=2), lambda g: (g.shape[0] / g.shape[1]) ** 0.5 * dion(g, 2)),
    "Conda": (of("Conda", scale=1.0, eps=1e-14), conda),
    "SCALE": (of("SCALE"), lambda g: g / rms(g, 1)),
    "Adafactor": (of("Adafactor", eps=(None, 1.0)), adafactor),
    "SM3": (of("SM3"), lambda g: (1 - 0.9) * g.sign()),
    "GaLore": (of("GaLore", **EXACTLY, scale=1.0), projected(leading, sign_of)),
    "GaLorePlus": (of("GaLorePlus", **EXACTLY, scale=1.0), projected(leading, sign_of)),
    "Fira": (of("Fira", **EXACTLY, scale=0.5), projected(leading, fira)),
    "APOLLO": (of("APOLLO", **EXACTLY), projected(leading, lambda g, p: grown(g, p) * g)),
    "APOLLOMini": (mini, projected(lambda g: leading(g, 1), apollo_mini)),
    "FLORA": (of("FLORA", rank=2, relative=False), flora),
    "COAP": (of("COAP", **RANK_2), projected(sketched, sign_of)),
    "OnlineSubspaceDescent": (of("OnlineSubspaceDescent", **RANK_2, scale=1.0), projected(leading, sign_of)),
    "Trion": (
        of("Trion", rank=2, norm=EXACT, scale="none"),
        projected(waves, lambda g, p: polar(g @ p) @ p.mT),
    ),
    "DCTAdamW": (of("DCTAdamW", **RANK_2), projected(waves, sign_of)),
    "Spectra": (
        of("Spectra", threshold=1.5),
        lambda g: max(1, g.shape[0] / g.shape[1]) ** 0.5 * clipped(g.sign(), 1.5),
    ),
    "ShampooSquared": (of("ShampooSquared", momentum=0.0, eps=1e-12), shampoo_squared),
    "Shampoo4bit": (of("Shampoo4bit", momentum=0.0, bits=32), shampoo_4bit),
    "SOAP": (of("SOAP"), torch.zeros_like),  # it only looks; the second step in test_second_order.py
}


@pytest.mark.usefixtures("unconstrained")
@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (5, 5)], ids=str)
@pytest.mark.parametrize("name", FORMULAS)
def test_first_step(name, shape):
    build, formula = FORMULAS[name]
    g = torch.randn(shape, generator=torch.Generator().manual_seed(3 * sum(shape)), dtype=torch.float64)
    x = torch.nn.Parameter(torch.zeros(shape, dtype=torch.float64))
    x.grad = g.clone()
    build([x]).step()
    # the methods' eps of 1e-8 and less, relative to entries of about one
    torch.testing.assert_close(-x.detach(), formula(g), rtol=1e-6, atol=1e-6)


def test_nuclear_steps_have_rank_one():
    g = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    u, _, vt = torch.linalg.svd(g, full_matrices=False)
    x = torch.nn.Parameter(torch.zeros(6, 4, dtype=torch.float64))
    x.grad = g
    steepest.TrustRegion([x], lr=1.0, norm=Nuclear()).step()
    torch.testing.assert_close(-x.detach(), u[:, :1] @ vt[:1], rtol=0, atol=1e-12)


def test_every_new_name_has_a_formula():
    said = {name.split(",")[0].split(" of ")[0] for name in FORMULAS}
    elsewhere = {
        "SGD",
        "Adam",
        "AdamW",
        "AMSGrad",
        "Adagrad",
        "Shampoo",
        "PSGD",
    }  # beside torch.optim, or the paper's algorithm
    assert {cls.__name__ for cls in testing.optimizers().values()} <= said | elsewhere


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_muon_is_a_trust_region(momentum):
    """Intrinsic Muon on a manifold and Muon on a plain matrix are cases of one name."""
    for manifold, shape in ((None, (5, 3)), (steepest.Stiefel(), (5, 3)), (steepest.SPD(), (4, 4))):
        runs = []
        for build in (
            lambda group: steepest.TrustRegion([group], lr=0.1, momentum=momentum, norm=EXACT),
            lambda group: steepest.Muon([group], 0.1, momentum, nesterov=False, norm=EXACT, scale="none"),
        ):
            generator = torch.Generator().manual_seed(0)
            x = torch.randn(shape, generator=generator, dtype=torch.float64)
            x = x if manifold is None else manifold.random_point(shape, generator=generator, dtype=torch.float64)
            p = torch.nn.Parameter(x)
            optimizer = build({"params": [p], "geometry": manifold, "role": "point" if manifold else "matrix"})
            for _ in range(5):
                p.grad = torch.randn(shape, generator=generator, dtype=torch.float64)
                optimizer.step()
            runs.append(p.detach())
        assert torch.equal(*runs)


def test_frank_wolfe_stays_in_the_ball():
    """x <- (1 - lr) x - lr radius d keeps a start inside inside, and reaches the minimiser of a linear function."""
    generator = torch.Generator().manual_seed(0)
    x = torch.nn.Parameter(torch.zeros(5, 4, dtype=torch.float64))
    g = torch.randn(5, 4, generator=generator, dtype=torch.float64)
    optimizer = steepest.TrustRegion([x], lr=0.1, momentum=0.5, norm=EXACT, radius=2.0)
    for _ in range(200):
        x.grad = g
        optimizer.step()
        assert torch.linalg.matrix_norm(x, 2) <= 2 + 1e-12
    torch.testing.assert_close(x.detach(), -2 * polar(g), rtol=0, atol=1e-8)


def test_constrained_scion_bounds_every_role():
    model = torch.nn.Sequential(torch.nn.Embedding(9, 4), torch.nn.Linear(4, 6), torch.nn.Linear(6, 9))
    for p in model.parameters():
        p.data.zero_()
    groups = steepest.param_groups(model)
    optimizer = steepest.Scion(groups, lr=0.3, norm=EXACT, radius=0.5, table_radius=2.0, constrained=True)
    for _ in range(40):
        for p in model.parameters():
            p.grad = torch.randn_like(p)
        optimizer.step()
    embedding, middle, last = (m.weight for m in model)
    assert torch.linalg.matrix_norm(middle, 2) <= 0.5 * (6 / 4) ** 0.5 * 1.0001
    assert embedding.abs().max() <= 2.0 / 4 * 1.0001
    assert torch.linalg.matrix_norm(last, 2) <= 0.5 * (9 / 6) ** 0.5 * 1.0001
    assert rms(model[1].bias) <= 1.0001
    assert torch.linalg.matrix_norm(middle, 2) > 0.1


@pytest.mark.parametrize("build", [
    lambda group: steepest.Scion([group], lr=0.1, constrained=True, norm=EXACT),
    lambda group: steepest.TrustRegion([group], lr=0.1, radius=1.0, norm=EXACT),
])  # fmt: skip
@pytest.mark.parametrize("role", ["point", "matrix"])
def test_balls_are_for_plain_parameters(build, role):
    """A point of a manifold is not drawn towards zero, and its steps have the length lr."""
    factors = [torch.nn.Parameter(torch.randn(s, dtype=torch.float64)) for s in ((6, 2), (2, 5))]
    optimizer = build({"params": factors, "geometry": steepest.FixedRank(), "role": role})
    before = factors[0].detach() @ factors[1].detach()
    for p in factors:
        p.grad = torch.zeros_like(p)
    optimizer.step()
    torch.testing.assert_close(factors[0].detach() @ factors[1].detach(), before, rtol=1e-9, atol=1e-9)
    x = torch.nn.Parameter(torch.eye(6, 3, dtype=torch.float64))
    optimizer = build({"params": [x], "geometry": steepest.Stiefel(), "role": role})
    x.grad = torch.randn(6, 3, dtype=torch.float64)
    optimizer.step()
    assert 0.02 < (x.detach() - torch.eye(6, 3)).norm() < 0.5


@pytest.mark.parametrize("shape", [(64, 32), (32, 64), (64, 64)], ids=str)
@pytest.mark.parametrize("rank", [1, 3])
def test_dion_does_not_step_along_rounding(shape, rank):
    """On a gradient of low rank in float32 the step has that rank, and it follows when the rank grows."""
    generator = torch.Generator().manual_seed(0)
    x = torch.nn.Parameter(torch.zeros(shape))
    optimizer = steepest.Dion([x], lr=1.0, scale="none")

    def step(r):
        a, b = (torch.randn(s, generator=generator) for s in ((shape[0], r), (r, shape[1])))
        before = x.detach().clone()
        x.grad = a @ b
        optimizer.step()
        return torch.linalg.svdvals((before - x.detach()).double())

    s = step(rank)
    assert s[rank:].max() < 1e-4
    assert s[0] <= rank**0.5 * 1.001  # columns of length one along `rank` orthonormal rows
    for _ in range(6):
        s = step(32)
    assert (s > 0.1).sum() > 16


def test_a_group_has_a_base_of_its_own_in_every_form():
    """As a value, a chain, a list or a name, given at once or later; and a checkpoint holds it as plain values."""
    forms = (Momentum(0.5), chain(Momentum(0.5)), [Momentum(0.5)], [Momentum(0.5).to_spec()])
    ends = []
    for late in (False, True):
        for form in forms:
            x = torch.nn.Parameter(torch.ones(4, 3))
            optimizer = steepest.Spectra([{"params": [x], **({} if late else {"base": form})}], lr=0.1, threshold=1.0)
            if late:
                optimizer.param_groups[0]["base"] = form
                optimizer.param_groups[0]["norm"] = Rows()  # a value of another kind that somebody keeps there
            for _ in range(2):
                x.grad = torch.arange(12.0).view(4, 3)
                optimizer.step()
            file = io.BytesIO()
            torch.save(optimizer.state_dict(), file)
            file.seek(0)
            assert torch.load(file, weights_only=True)["param_groups"][0]["base"] == [Momentum(0.5).to_spec()]
            ends.append(x.detach())
    assert all(torch.equal(ends[0], end) for end in ends)


def test_roles_are_known():
    for cls in (steepest.Muon, steepest.Scion, steepest.SCALE, steepest.TrustRegion, steepest.Adam):
        with pytest.raises(ValueError, match="role: unknown 'embeding', expected one of point, matrix, embedding"):
            cls([{"params": [torch.nn.Parameter(torch.ones(2, 2))], "role": "embeding"}])


def test_a_group_of_vectors_keeps_the_rate_that_it_says():
    vector, matrix = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2, 2))
    own = steepest.Muon([{"params": [vector], "lr": 0.5}]).param_groups
    assert [g["lr"] for g in own] == [0.5]
    mixed = steepest.Muon([{"params": [vector, matrix], "lr": 0.5}], adamw_lr=0.1).param_groups
    assert [(g["role"], g["lr"]) for g in mixed] == [("matrix", 0.5), ("other", 0.1)]


@pytest.mark.parametrize("size", [4, 64])
def test_what_auon_scales_by(size):
    """r = 1 + gamma^2 / (2 m n) to leading order, so that it tells only tiny matrices apart."""
    g = torch.randn(size, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    r = rms((1.5 * g / g.norm()).cosh()).item()
    assert math.isclose(r - 1, 1.5**2 / (2 * size**2), rel_tol=0.3)
