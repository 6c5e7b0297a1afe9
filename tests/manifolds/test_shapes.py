"""The laws of frames and retractions at shapes that nobody chose."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from steepest import testing
from steepest.testing import manifold as laws
from steepest.testing.manifold import Case, dtypes

FREE = {
    f"{type(m).__name__} {getattr(m, 'metric', '')}": m
    for m, shape in testing.manifolds()
    if m.arity == 1 and m.ndim == 2 and not any(isinstance(v, torch.Tensor | tuple) for v in vars(m).values())
}
"""Manifolds of one matrix whose size no field fixes."""

CHECKS = [
    laws.check_random_point,
    laws.check_adjoint,
    laws.check_right_inverse,
    laws.check_coisometry,
    laws.check_inner,
    laws.check_retract,
    laws.check_carry,
    laws.check_decay,
]


@pytest.mark.parametrize("name", FREE)
@settings(max_examples=3)
@given(data=st.data(), seed=st.integers(0, 100))
def test_frames_and_retractions(name, data, seed):
    m = FREE[name]
    legal = [(n, p) for n in range(1, 8) for p in range(1, 8) if not m.shape_error(torch.zeros(n, p))]
    n, p = data.draw(st.sampled_from(legal))
    dtype = data.draw(st.sampled_from(dtypes(m)))
    for check in CHECKS:
        check(Case(m, (n, p), seed, dtype))


@pytest.mark.parametrize("name", FREE)
@given(batch=st.lists(st.integers(1, 3), max_size=3), seed=st.integers(0, 100))
@settings(max_examples=4)
def test_batches_of_any_depth(name, batch, seed):
    m = FREE[name]
    shape = next(s for e, s in testing.manifolds() if e == m)
    case = Case(m, shape, seed, dtypes(m)[0])
    x = case.point(tuple(batch))
    v = m.push(x, case.coordinates(x))
    assert m.norm(x, v).shape == tuple(batch)
    assert m.residual(m.retract(x, v)).shape == tuple(batch)
    m.check_point(m.retract(x, v))
