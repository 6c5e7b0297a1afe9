"""PEFT's own tests of custom models and configs, with our adapters in the place of its methods; for `run.py` alone."""

import pytest
import tests.test_config as configs
import tests.test_custom_models as models
import tests.testing_common as common
import torch
from rows import config_of, multi_rows, ready_config_of, single_rows

from steepest.adapters import FAMILIES, Source
from steepest.adapters.layer import AdapterLayer

ALL = [(config_of(family), {}) for family in FAMILIES.values()]

# pytest's marks hold these very lists, so their contents are exchanged
models.TEST_CASES[:] = single_rows()
models.ALL_PEFT_CONFIG_CLASSES[:] = [ready_config_of(family) for family in FAMILIES.values()]
models.MULTIPLE_ACTIVE_ADAPTERS_TEST_CASES[:] = multi_rows()
configs.LAYER_INDEXING_CONFIG_CLASSES[:] = ALL
for test in vars(configs.TestPeftConfig).values():  # those of configs are in a tuple
    for mark in getattr(test, "pytestmark", []):
        if mark.name == "parametrize" and mark.args[1] is configs.ALL_CONFIG_CLASSES:
            ours = pytest.mark.parametrize(mark.args[0], ALL).mark
            test.pytestmark[test.pytestmark.index(mark)] = ours


def _unless_mergeable(model_id, config_cls, config_kwargs):
    """PEFT's tests ask this before they merge; its own answer names its methods."""
    if not config_cls.family.mergeable:
        pytest.skip(f"what {config_cls.family.__name__} adds depends on the token, so it cannot be merged")


models._skip_if_merging_not_supported = common._skip_if_merging_not_supported = _unless_mergeable


def _gradient(layer, method, config, key):
    """In the place of what `calibrate` leaves on a layer: PEFT's tests do not call it."""
    weight = layer._weight().double()
    return Source(weight).normal(*weight.shape) if method.wants_gradient() else None


AdapterLayer._gradient = _gradient


class SeededDeepMLP(models.DeepMLP):
    """The same weights each time: an adapter with frozen bases refuses another base model than that of its training,
    and some of PEFT's tests load one that is drawn anew."""

    def __init__(self, *args, **kwargs):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            super().__init__(*args, **kwargs)


models.DeepMLP = SeededDeepMLP


class EvenSGD(torch.optim.SGD):
    """Steps of length lr for every tensor.

    PEFT's tests take steps of 0.5 from inputs up to 90 with a plain SGD, where whatever is not bounded overflows; they
    name the methods of PEFT that need smaller ones. What the tests look at, that everything trained moves and is found
    again in a file, does not depend on it.
    """

    @torch.no_grad()
    def step(self, closure=None):
        for p in (p for group in self.param_groups for p in group["params"] if p.grad is not None):
            p.grad /= p.grad.norm().clamp_min(torch.finfo(p.dtype).tiny)
        return super().step(closure)


@pytest.fixture(autouse=True)
def _even_steps(monkeypatch):
    monkeypatch.setattr(torch.optim, "SGD", EvenSGD)


from tests.test_config import TestPeftConfig  # noqa: E402, F401
from tests.test_custom_models import (  # noqa: E402, F401
    TestMultipleActiveAdapters,
    TestPeftCustomModel,
    TestPeftFsdpStateDict,
    TestRequiresGrad,
)
