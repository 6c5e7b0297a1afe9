"""Spectral adapters against W' written down with all its singular vectors; concepts side by side; other LAPACKs."""

import pytest
import torch
from torch import nn

from steepest.adapters import Source, SpectralAdapter

peft = pytest.importorskip("peft")
from steepest.adapters import SpectralAdapterConfig  # noqa: E402
from steepest.adapters import bases as bases_module  # noqa: E402

DOUBLE = torch.float64
SHAPES = [(10, 14), (14, 10), (9, 9)]
FORMS = [
    {"r": 3},
    {"r": 3, "offset": 4},
    {"r": 3, "offset": 2, "scales": True},
    {"r": 4, "form": "rotational"},
    {"r": 3, "form": "rotational", "offset": 5},
    {"r": 4, "form": "rotational", "scales": False},
    {"r": 1, "form": "rotational"},
    {"r": 9},
]


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def signed_svd(w):
    """With the sign that an entry of largest modulus in each right vector be positive."""
    u, s, vh = torch.linalg.svd(w, full_matrices=False)
    signs = torch.stack([torch.sign(row[row.abs().argmax()]) for row in vh])
    return u * signs, s, vh.mT * signs


def cayley(x):
    """The authors': (I - K)(I + K)^-1 with K = (X - X^T) / 2, for a square matrix X of free numbers."""
    k, identity = (x - x.mT) / 2, torch.eye(len(x), dtype=x.dtype)
    return (identity - k) @ torch.linalg.inv(identity + k)


def free_numbers(adapter, m, n, seed=0):
    """What the authors' code would train: A, B or two square matrices, and c."""
    r = adapter.r
    if adapter.form == "additive":
        free = {"A": randn(r, n, seed=seed), "B": randn(m, r, seed=seed + 1)}
    else:
        free = {"X_u": randn(r, r, seed=seed), "X_v": randn(r, r, seed=seed + 1)}
    scales = adapter.form == "rotational" if adapter.scales is None else adapter.scales
    return free | ({"c": 1 + 0.5 * randn(r, seed=seed + 2)} if scales else {})


def ours(free):
    def theta(x):
        return torch.stack([(x[j, i] - x[i, j]) / 2 for i in range(len(x)) for j in range(i + 1, len(x))] or [x[0, :0]])

    def flat(x):
        return theta(x) if len(x) > 1 else x.new_zeros(0)

    names = {"X_u": "theta_u", "X_v": "theta_v"}
    return {names.get(k, k): flat(v) if k in names else v for k, v in free.items()}


def dense(w, *concepts):
    """W' from the whole decomposition, in which each concept puts others for its columns and values."""
    u, s, v = signed_svd(w)
    u, s, v = u.clone(), s.clone(), v.clone()
    for adapter, free in concepts:
        here = slice(adapter.offset, adapter.offset + adapter.r)
        if adapter.form == "additive":
            u[:, here] += free["B"]
            v[:, here] += free["A"].mT
        else:
            u[:, here] = u[:, here] @ cayley(free["X_u"])
            v[:, here] = v[:, here] @ cayley(free["X_v"])
        s[here] *= free.get("c", 1.0)
    return u @ torch.diag(s) @ v.mT


@pytest.mark.parametrize("options", FORMS, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_formula(shape, options):
    w, adapter = randn(*shape, seed=7), SpectralAdapter(**options)
    free = free_numbers(adapter, *shape)
    t = adapter.bases(Source(w)) | ours(free)
    expected = dense(w, (adapter, free))
    x = randn(2, 5, shape[1], seed=9)
    # Leading vectors come from W^T W: some 1e-16 times the squared condition number of what is taken, 1e2.
    torch.testing.assert_close(w + adapter.shift(t), expected, rtol=0, atol=1e-11)
    torch.testing.assert_close(x @ w.mT + adapter.add(t, x), x @ expected.mT, rtol=0, atol=1e-10)


@pytest.mark.parametrize("options", FORMS, ids=str)
def test_start_is_zero_without_rounding(options):
    w, adapter = randn(10, 14), SpectralAdapter(**options)
    source = Source(w)
    bases = adapter.bases(source)
    t = {k: v.float() for k, v in (bases | adapter.start(source, bases)).items()}
    assert not adapter.shift(t).any()
    assert not adapter.add(t, randn(5, 14).float()).any()


@pytest.mark.parametrize("scales", [False, True])
def test_rotations_turn_within_the_spans(scales):
    w, adapter = randn(10, 14), SpectralAdapter(r=4, form="rotational", offset=2, scales=scales)
    free = free_numbers(adapter, 10, 14)
    changed = w + adapter.shift(adapter.bases(Source(w)) | ours(free))
    u, s, v = signed_svd(w)
    values = s.clone()
    values[2:6] *= free.get("c", 1.0)
    torch.testing.assert_close(torch.linalg.svdvals(changed), values.abs().sort(descending=True).values)
    rest = [i for i in range(10) if i not in range(2, 6)]
    torch.testing.assert_close(changed @ v[:, rest], u[:, rest] * s[rest], rtol=0, atol=1e-11)
    torch.testing.assert_close(changed.mT @ u[:, rest], v[:, rest] * s[rest], rtol=0, atol=1e-11)


def test_the_added_scale_of_the_fusion_code_is_a_factor_here():
    w, adapter = randn(10, 14), SpectralAdapter(r=3, scales=True)
    free, d = free_numbers(adapter, 10, 14), 0.3 * randn(3, seed=4)
    u, s, v = signed_svd(w)
    added = torch.cat([s[:3] + d, s[3:]])
    both = [x.clone() for x in (u, v)]
    both[0][:, :3] += free["B"]
    both[1][:, :3] += free["A"].mT
    free["c"] = 1 + d / s[:3]
    torch.testing.assert_close(dense(w, (adapter, free)), both[0] * added @ both[1].mT)


# Inside PEFT. ---------------------------------------------------------------------------------------------------------


def model_of(w, **options):
    layer = nn.Linear(w.shape[1], w.shape[0], bias=False, dtype=w.dtype)
    layer.weight.data = w.clone()
    return peft.get_peft_model(nn.Sequential(layer), config_of(**options))


def config_of(**options):
    return SpectralAdapterConfig(target_modules=["0"], **options)


def fill(model, name, free):
    layer = model.base_model.model[0]
    for key, value in ours(free).items():
        layer.tensors_of(key)[name].data = value.to(layer.tensors_of(key)[name].dtype)


CONCEPTS = [
    [{"r": 3}, {"r": 3, "offset": 3}, {"r": 2, "offset": 6, "scales": True}],
    [{"r": 4, "form": "rotational"}, {"r": 4, "form": "rotational", "offset": 4}],
    [{"r": 2, "form": "rotational", "offset": 5}, {"r": 5}],
]


@pytest.mark.parametrize("concepts", CONCEPTS, ids=str)
def test_concepts_side_by_side(concepts):
    w, x = randn(10, 14), randn(6, 14, seed=1)
    made = []
    for i, options in enumerate(concepts):
        adapter = SpectralAdapter(**options)
        made.append((adapter, free_numbers(adapter, 10, 14, seed=10 * i)))
    names = ["default", "second", "third"][: len(made)]
    model = model_of(w, **concepts[0])
    for name, options in list(zip(names, concepts, strict=True))[1:]:
        model.add_adapter(name, config_of(**options))
    for name, (_, free) in zip(names, made, strict=True):
        fill(model, name, free)
    for name, concept in zip(names, made, strict=True):
        model.set_adapter(name)
        torch.testing.assert_close(model(x), x @ dense(w, concept).mT, rtol=0, atol=1e-10)
    joint = x @ dense(w, *made).mT
    model.base_model.set_adapter(names)
    torch.testing.assert_close(model(x), joint, rtol=0, atol=1e-10)
    model.base_model.set_adapter(names[::-1])
    model.merge_adapter()
    torch.testing.assert_close(model(x), joint, rtol=0, atol=1e-10)
    model.unmerge_adapter()
    torch.testing.assert_close(model.base_model.model[0].weight, w, rtol=0, atol=1e-12)
    model.base_model.set_adapter(names)
    torch.testing.assert_close(model.merge_and_unload()(x), joint, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("options", "number"),
    [
        ({"r": 3}, 3 * (10 + 14)),
        ({"r": 3, "scales": True, "offset": 2}, 3 * (10 + 14) + 3),
        ({"r": 4, "form": "rotational"}, 6 + 6 + 4),
        ({"r": 4, "form": "rotational", "scales": False}, 6 + 6),
    ],
)
def test_numbers_that_are_trained(options, number):
    model = model_of(randn(10, 14), **options)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == number
    assert SpectralAdapter(**options).count(10, 14) == number


OTHERS = [{"r": 4, "scales": True}, {"r": 4, "form": "rotational"}, {"r": 3, "form": "rotational", "offset": 1}]


@pytest.mark.parametrize("dtype", [DOUBLE, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("repeated", [False, True])
@pytest.mark.parametrize("options", OTHERS, ids=str)
def test_another_lapack_loads_the_same_model(tmp_path, monkeypatch, options, repeated, dtype):
    """Eigenvectors with other signs, and another basis where singular values are equal."""
    u, s, v = signed_svd(randn(10, 14))
    if repeated:
        s[1:4] = s[1:4].mean()
    w = (u * s @ v.mT).to(dtype)
    model = model_of(w, **options)
    adapter = SpectralAdapter(**options)
    fill(model, "default", free_numbers(adapter, 10, 14))
    x = randn(6, 14, seed=1).to(dtype)
    y = model(x)
    model.save_pretrained(tmp_path)
    eigh, turn = torch.linalg.eigh, torch.linalg.qr(randn(3, 3, seed=8))[0]

    def other(a):
        values, q = eigh(a)
        q = q * torch.where(torch.arange(q.shape[-1]) % 2 == 0, -1.0, 1.0)
        if repeated and dtype == DOUBLE:
            q[:, -4:-1] = q[:, -4:-1] @ turn
        return values, q

    monkeypatch.setattr(torch.linalg, "eigh", other)
    monkeypatch.setattr(bases_module, "fix_signs", lambda v: v)
    start = model_of(w, **options)
    frozen = [m.base_model.model[0].tensors("default")["V"] for m in (model, start)]
    assert (frozen[0] - frozen[1]).abs().max() > 0.1  # the other LAPACK is another one
    loaded = peft.PeftModel.from_pretrained(start.unload(), tmp_path)
    tolerance = {DOUBLE: 1e-10, torch.float32: 1e-5, torch.bfloat16: 0.1}[dtype]
    torch.testing.assert_close(loaded(x), y, rtol=0, atol=tolerance)


def test_another_base_model_is_refused(tmp_path):
    model = model_of(randn(10, 14), r=4)
    model.save_pretrained(tmp_path)
    other = nn.Sequential(nn.Linear(14, 10, bias=False, dtype=DOUBLE))
    with pytest.raises(ValueError, match="not that of this base weight"):
        peft.PeftModel.from_pretrained(other, tmp_path)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"form": "rotation"}, "form: got 'rotation', expected one of 'additive', 'rotational'"),
        ({"r": 0}, "r: got 0, expected a whole number from 1 on"),
        ({"r": True}, "r: got True"),
        ({"offset": -1}, "offset: got -1, expected a whole number from 0 on"),
        ({"offset": 1.0}, "offset: got 1.0"),
        ({"scales": 3}, "scales: got 3"),
    ],
)
def test_options_that_are_wrong(options, words):
    with pytest.raises(ValueError, match=words):
        SpectralAdapterConfig(**options)


def test_columns_that_a_layer_has_not():
    with pytest.raises(ValueError, match=r"offset \+ r: got 11, .* 14 inputs and 10 outputs"):
        model_of(randn(10, 14), r=4, offset=7)
    flat = randn(10, 3) @ randn(3, 14, seed=1)
    model_of(flat, r=3)
    with pytest.raises(ValueError, match=r"offset \+ r: got 5, but the weight of a layer has only 3 singular values"):
        model_of(flat, r=4, offset=1)
