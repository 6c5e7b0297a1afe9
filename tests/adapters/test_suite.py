"""The common suite on every adapter that a walk through the package finds."""

import pytest

from steepest import testing

pytest.importorskip("peft")


@pytest.mark.parametrize("check", testing.ADAPTER_CHECKS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("adapter", testing.adapters(), ids=str)
def test_adapter(adapter, check):
    check(adapter)
