"""Compiles and launches every loss, in every dtype and with every option and kind of target that has a kernel.

The oldest release compiles all of them together, others every two.
"""

import itertools

import pytest
import torch
from support.cases import DTYPES
from support.launching import by_release, for_a_stand_in, launches
from support.loss_cases import KINDS, OPTIONS, every_loss, make, suit

pytestmark = for_a_stand_in


@pytest.mark.parametrize(("dtype", "kind"), by_release(DTYPES, KINDS, (torch.bfloat16, "index")), ids=str)
@pytest.mark.parametrize(("loss", "options"), OPTIONS)
def test_options(loss, options, dtype, kind):
    check(loss, options, dtype, kind)


@pytest.mark.parametrize(("dtype", "kind"), [*itertools.product(DTYPES, KINDS)], ids=str)
@every_loss
def test_targets(loss, dtype, kind):
    check(loss, lambda n, like: {}, dtype, kind)


def check(loss, options, dtype, kind):
    for reduction in ("none", "mean"):
        x, target = make((9, 40), dtype, kind, "cpu")
        given = options(40, lambda n: torch.rand(n).to(dtype))
        assert all(launches(lambda x: loss(x, suit(target, given), reduction=reduction, **given), x))
