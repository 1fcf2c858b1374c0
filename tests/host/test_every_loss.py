"""Compiles and launches every loss, in every dtype and with every option and kind of target that has a kernel.

The oldest release compiles all of them together, others every two.
"""

import itertools

import pytest
import torch
from support.cases import DTYPES
from support.launching import by_release, for_a_stand_in, launches
from support.loss_cases import KINDS, OPTIONS, every_loss, make, suit

from sigtorch import sigmoid_dice_loss

pytestmark = for_a_stand_in


@pytest.mark.parametrize(("dtype", "kind"), by_release(DTYPES, KINDS, (torch.bfloat16, "index")), ids=str)
@pytest.mark.parametrize(("loss", "options"), OPTIONS)
def test_options(loss, options, dtype, kind):
    check(loss, options, dtype, kind)


@pytest.mark.parametrize(("dtype", "kind"), [*itertools.product(DTYPES, KINDS)], ids=str)
@every_loss
def test_targets(loss, dtype, kind):
    check(loss, lambda n, like: {}, dtype, kind)


@pytest.mark.parametrize("dims", [-1, 0, (0, 1)], ids=str)
@pytest.mark.parametrize(
    ("dtype", "kind"), by_release(DTYPES, [k for k in KINDS if k != "index"], (torch.bfloat16, "uint8")), ids=str
)
def test_dice(dtype, kind, dims):
    for bce_weight in (0.0, 0.5):
        x, target = make((9, 40), dtype, kind, "cpu")
        assert launches(lambda x: sigmoid_dice_loss(x, target, dims=dims, bce_weight=bce_weight), x) == (1, 1)


def check(loss, options, dtype, kind):
    for reduction in ("none", "mean"):
        x, target = make((9, 40), dtype, kind, "cpu")
        given = options(40, lambda n: torch.rand(n).to(dtype))
        assert all(launches(lambda x: loss(x, suit(target, given), reduction=reduction, **given), x))
