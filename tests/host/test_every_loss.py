"""Compiles and launches every loss, in every dtype and with every option and kind of target that has a kernel."""

import pytest
import torch
from support.cases import DTYPES
from support.launching import for_a_stand_in, launches
from support.loss_cases import KINDS, OPTIONS, make, suit

pytestmark = for_a_stand_in


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("loss", "options"), OPTIONS)
def test_losses(loss, options, dtype, kind):
    for reduction in ("none", "mean"):
        x, target = make((9, 40), dtype, kind, "cpu")
        given = options(40, lambda n: torch.rand(n).to(dtype))
        assert all(launches(lambda x: loss(x, suit(target, given), reduction=reduction, **given), x))
