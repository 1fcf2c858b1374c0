"""Compiles and launches the losses of images in every layout and dtype, and the loss of a chunk of logits."""

import pytest
import torch
from support.cases import DTYPES
from support.launching import by_release, for_a_stand_in, launches
from support.loss_cases import IMAGES, LOSSES, images
from without_gpu import standin

from sigtorch.kernels import chunked_losses

pytestmark = for_a_stand_in


@pytest.mark.parametrize(("dtype", "layout"), by_release(DTYPES, IMAGES, (torch.bfloat16, "channels_last")), ids=str)
@pytest.mark.parametrize("loss", LOSSES, ids=lambda f: f.__name__)
def test_losses_of_images(loss, dtype, layout):
    for reduction, given in (("none", {}), ("mean", {"ignore_index": 255, "weight": torch.rand(5, 1, 1).to(dtype)})):
        x, target = images(dtype, layout)
        assert all(launches(lambda x: loss(x, target, dim=1, reduction=reduction, **given), x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(4, 16), (5, 40), (9, 4097)], ids=str)
def test_chunks_of_logits(shape, dtype):
    scale, bias, at = torch.ones((), dtype=dtype), torch.ones(shape[0], 1, dtype=dtype), torch.arange(3)
    for s, b in ((None, None), (scale, scale), (scale, bias)):
        before = standin.launches()
        chunked_losses.negatives(torch.randn(shape, dtype=dtype), s, b, at)
        for out in {dtype, torch.bfloat16 if dtype == torch.float32 else dtype}:
            chunked_losses.negatives_with_gradient(torch.randn(shape, dtype=dtype), s, b, at, out)
            before += 1
        assert standin.launches() == before + 2
