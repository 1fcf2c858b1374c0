"""Compiles and launches the losses of images in every layout and dtype."""

import pytest
import torch
from support.cases import DTYPES
from support.launching import by_release, for_a_stand_in, launches
from support.loss_cases import IMAGES, WITH_OPTIONS, images

pytestmark = for_a_stand_in


@pytest.mark.parametrize(("dtype", "layout"), by_release(DTYPES, IMAGES, (torch.bfloat16, "channels_last")), ids=str)
@pytest.mark.parametrize("loss", WITH_OPTIONS, ids=lambda f: f.__name__)
def test_losses_of_images(loss, dtype, layout):
    for reduction, given in (("none", {}), ("mean", {"ignore_index": 255, "weight": torch.rand(5, 1, 1).to(dtype)})):
        x, target = images(dtype, layout)
        assert all(launches(lambda x: loss(x, target, dim=1, reduction=reduction, **given), x))
